"""A kernel beside its rivals on a GPU: what bench_cuda times. Each operator's rivals.py brings its own."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from redline.kernels.launch import Kernel, Shape, launch_on, number


@dataclass(frozen=True, slots=True)
class Subject:
    call: Callable[[], Tensor]
    wanted: Tensor  # float32
    allowed: float  # the largest difference to it


@dataclass(frozen=True, slots=True)
class Work:
    """One shape: its subjects, and what an answer needs at least."""

    name: str
    subjects: dict[str, Subject]
    operations: int
    bytes_needed: int


def queued(kernel: Kernel, shape: Shape, args: Sequence[Any], device: str) -> Callable[[], Tensor]:
    """Its arrays go to the GPU once; a call queues a launch on the current stream and gives the last argument."""
    there = [torch.from_numpy(arg).to(device) if isinstance(arg, np.ndarray) else arg for arg in args]
    values = [np.uint64(x.data_ptr()) if isinstance(x, Tensor) else number(x) for x in there]
    answer = there[-1]

    def call() -> Tensor:
        launch_on(torch.cuda.current_stream().cuda_stream, torch.cuda.current_device(), kernel, shape, values)
        return answer

    return call
