"""One launch() for every kernel, over three backends: the CPU (kernels/host), cuda.core, PyCUDA.

Arguments stand in the order of every .cu here: input arrays, numbers, output arrays. Outputs are filled in place.
The GPU backends have not run on a GPU yet.
"""

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from redline.errors import MissingError, UsageError, missing_extra

if TYPE_CHECKING:
    from redline.kernels.device_memory import DeviceMemory

Argument = NDArray[Any] | int | float
Dimensions = tuple[int, int, int]
Backend = Literal["host", "cuda.core", "pycuda"]
SHARED_LIMIT_BYTES = 64 << 10  # of shared memory: what a block may have on every architecture from sm_75 on
_SHARED_UNASKED_BYTES = 48 << 10  # of dynamic shared memory; a kernel must be allowed more


@dataclass(frozen=True, slots=True)
class Kernel:
    source: Path  # a .cu
    name: str


@dataclass(frozen=True, slots=True)
class Shape:
    """Of a launch."""

    grid: Dimensions
    block: Dimensions
    smem: int = 0  # bytes of dynamic shared memory


def first_output(args: Sequence[Argument]) -> int:
    """Arrays behind the last number are outputs."""
    return max((i + 1 for i, arg in enumerate(args) if not isinstance(arg, np.ndarray)), default=0)


def launch(
    kernel: Kernel,
    grid: Dimensions,
    block: Dimensions,
    smem: int,
    args: Sequence[Argument],
    backend: Backend = "cuda.core",
) -> None:
    """Run the kernel and wait for it. smem: bytes of dynamic shared memory.

    Raises:
        MissingError: no driver, no device, or the backend's library is not installed.
        DeviceBugError: the host backend's checks found one.
    """
    if backend not in _BACKENDS:
        raise UsageError(f"unknown backend {backend!r}; known: {', '.join(_BACKENDS)}")
    for i, arg in enumerate(args[first_output(args) :], first_output(args)):
        if not (isinstance(arg, np.ndarray) and arg.flags.c_contiguous and arg.flags.writeable):
            raise UsageError(f"{kernel.name}: argument {i} is an output, so it must be a writable C-contiguous array")
    _BACKENDS[backend](kernel, Shape(grid, block, smem), args)


def need_driver() -> None:
    """Asked first: without a driver both libraries fail with words that help nobody."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError as e:
        raise MissingError(
            "launching on a GPU needs NVIDIA's driver (libcuda.so.1), and this machine has none: install it, "
            "or run the kernel on the CPU with the backend 'host'"
        ) from e
    if status := driver.cuInit(0):
        raise MissingError(f"NVIDIA's driver finds no device to launch on (cuInit gave {status}): see nvidia-smi")


def _host(kernel: Kernel, shape: Shape, args: Sequence[Argument]) -> None:
    from redline.kernels.host.run import run

    run(kernel, shape.grid, shape.block, shape.smem, args)


def _cuda_core(kernel: Kernel, shape: Shape, args: Sequence[Argument]) -> None:
    need_driver()
    try:
        import cuda.core  # noqa: F401
    except ImportError as e:
        raise missing_extra("gpu", "the backend 'cuda.core'") from e
    from redline.kernels.device_memory import CudaCore

    memory = CudaCore()
    with memory.here():
        run_on_device(memory, args, lambda values: launch_on(memory.stream, 0, kernel, shape, values))


def launch_on(stream: int, device: int, kernel: Kernel, shape: Shape, values: Sequence[Any]) -> None:
    """Queue it by cuda.core on a stream of this device, which is current; values: see run_on_device. Nothing waits."""
    from cuda.core import LaunchConfig, Stream
    from cuda.core import launch as submit

    config = LaunchConfig(grid=shape.grid, block=shape.block, shmem_size=shape.smem)
    submit(Stream.from_handle(stream), config, _loaded(kernel, shape.smem, device), *values)


@cache
def _loaded(kernel: Kernel, smem: int, device: int) -> Any:
    """On the device, and allowed its shared memory."""
    from cuda.bindings import driver
    from cuda.core import ObjectCode

    from redline.kernels.nvcc import compile_cuda

    function = ObjectCode.from_fatbin(str(compile_cuda(kernel.source).fatbin)).get_kernel(kernel.name)
    if smem > _SHARED_UNASKED_BYTES:  # cuda.core's own attribute can only be read
        most = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        (status,) = driver.cuKernelSetAttribute(most, smem, function.handle, driver.CUdevice(device))
        if status != driver.CUresult.CUDA_SUCCESS:
            raise MissingError(f"{kernel.name} needs {smem} bytes of shared memory a block, this device says {status}")
    return function


def _pycuda(kernel: Kernel, shape: Shape, args: Sequence[Argument]) -> None:
    need_driver()
    try:
        import pycuda.driver as cuda
    except ImportError as e:
        raise missing_extra("pycuda", "the backend 'pycuda'") from e
    from redline.kernels.device_memory import PyCuda
    from redline.kernels.nvcc import compile_cuda

    fatbin, memory = compile_cuda(kernel.source).fatbin, PyCuda()
    with memory.here():
        function = cuda.module_from_file(str(fatbin)).get_function(kernel.name)
        if shape.smem > _SHARED_UNASKED_BYTES:
            function.set_attribute(cuda.function_attribute.MAX_DYNAMIC_SHARED_SIZE_BYTES, shape.smem)

        def submit(values: list[Any]) -> None:
            function(*values, grid=shape.grid, block=shape.block, shared=shape.smem)
            cuda.Context.synchronize()

        run_on_device(memory, args, submit)


def run_on_device(memory: "DeviceMemory", args: Sequence[Argument], submit: Callable[[list[Any]], None]) -> None:
    """Arrays to the device, the launch, outputs back. The device is current; submit gets addresses and numbers."""
    values: list[Any] = []
    keeps = []
    for arg in args:
        if isinstance(arg, np.ndarray):
            address, keep = memory.allocate(max(arg.nbytes, 1))
            keeps.append(keep)
            memory.upload(address, np.ascontiguousarray(arg))
            values.append(np.uint64(address))
        else:
            values.append(number(arg))
    memory.wait()
    submit(values)
    for arg, value in list(zip(args, values, strict=True))[first_output(args) :]:
        assert isinstance(arg, np.ndarray)
        memory.download(arg, int(value))
    memory.wait()


def number(arg: int | float) -> Any:
    """As a kernel takes it."""
    return np.int32(arg) if isinstance(arg, int) else np.float32(arg)


_BACKENDS: dict[str, Callable[[Kernel, Shape, Sequence[Argument]], None]] = {
    "host": _host,
    "cuda.core": _cuda_core,
    "pycuda": _pycuda,
}
