"""What `cases()` of an operator's cuda.py gives to `make kernels`."""

from dataclasses import dataclass
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
