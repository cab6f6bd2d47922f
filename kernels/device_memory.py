"""Memory of the GPU, by cuda.core or, where only that is installed, by PyCUDA."""

import ctypes
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib.util import find_spec
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from redline.errors import MissingError, missing_extra


class DeviceMemory(Protocol):
    """One device and one stream; copies are queued on the stream, in order."""

    stream: int  # the CUstream handle

    def here(self) -> AbstractContextManager[None]:
        """Within it, this thread may use the device: a CUDA context belongs to a thread."""
        ...

    def allocate(self, size_bytes: int) -> tuple[int, Any]:
        """Its address, and what keeps it alive."""
        ...

    def upload(self, address: int, array: NDArray[Any]) -> None: ...

    def download(self, array: NDArray[Any], address: int) -> None: ...

    def wait(self) -> None:
        """Until the stream is done."""
        ...


def open_device() -> DeviceMemory:
    """The first device that CUDA_VISIBLE_DEVICES shows.

    Raises:
        MissingError: no NVIDIA driver here, or no library that allocates.
    """
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError as e:
        raise MissingError(
            "a TensorRT engine runs on an NVIDIA GPU, and this machine has no driver (libcuda.so.1): serve or prove "
            "the artifact on its GPU machine, or give NVIDIA's Triton what `redline deploy` renders (docs/tensorrt.md)"
        ) from e
    if find_spec("cuda") and find_spec("cuda.core"):
        return CudaCore()
    if find_spec("pycuda"):
        return PyCuda()
    raise missing_extra("gpu", "memory of the GPU")


class CudaCore:
    def __init__(self) -> None:
        from cuda.bindings import driver
        from cuda.core import Device

        self._driver = driver
        self._device = Device(0)
        self._device.set_current()
        self._stream = self._device.create_stream()
        self.stream = int(self._stream.handle)

    @contextmanager
    def here(self) -> Iterator[None]:
        self._device.set_current()
        yield

    def allocate(self, size_bytes: int) -> tuple[int, Any]:
        buffer = self._device.allocate(size_bytes, stream=self._stream)
        return int(buffer.handle), buffer

    def upload(self, address: int, array: NDArray[Any]) -> None:
        self._check(self._driver.cuMemcpyHtoDAsync(address, array.ctypes.data, array.nbytes, self.stream))

    def download(self, array: NDArray[Any], address: int) -> None:
        self._check(self._driver.cuMemcpyDtoHAsync(array.ctypes.data, address, array.nbytes, self.stream))

    def wait(self) -> None:
        self._stream.sync()

    def _check(self, answer: tuple[Any, ...]) -> None:
        if answer[0] != self._driver.CUresult.CUDA_SUCCESS:
            raise RuntimeError(f"CUDA could not copy: {answer[0]}")


class PyCuda:
    def __init__(self) -> None:
        import pycuda.driver as cuda

        cuda.init()
        self._cuda = cuda
        self._context = cuda.Device(0).retain_primary_context()  # TensorRT uses the primary one
        with self.here():
            self._stream = cuda.Stream()
        self.stream = int(self._stream.handle)

    @contextmanager
    def here(self) -> Iterator[None]:
        self._context.push()
        try:
            yield
        finally:
            self._context.pop()

    def allocate(self, size_bytes: int) -> tuple[int, Any]:
        buffer = self._cuda.mem_alloc(size_bytes)
        return int(buffer), buffer

    def upload(self, address: int, array: NDArray[Any]) -> None:
        self._cuda.memcpy_htod_async(address, np.ascontiguousarray(array), self._stream)

    def download(self, array: NDArray[Any], address: int) -> None:
        self._cuda.memcpy_dtoh_async(array, address, self._stream)

    def wait(self) -> None:
        self._stream.synchronize()
