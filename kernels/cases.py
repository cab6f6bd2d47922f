"""What an operator's folder brings to `make kernels`, found by walking the folders, so that nobody lists them."""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from redline.kernels.launch import Kernel, Shape


@dataclass(frozen=True, slots=True)
class Case:
    """A kernel on one shape: what it is launched with (the answer is the last argument) and what it must answer."""

    label: str
    kernel: Kernel
    shape: Shape
    args: list[Any]
    wanted: NDArray[np.float32]
    allowed: float


def brought(module: str, function: str) -> Iterator[Any]:
    """What function() of every operator's `module`.py gives, in the order of the folders' names."""
    for path in sorted(Path(__file__).parent.glob(f"*/{module}.py")):
        yield from getattr(import_module(f"redline.kernels.{path.parent.name}.{module}"), function)()
