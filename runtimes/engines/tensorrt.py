"""TensorRT in process: a plan that `tensorrt` or `tensorrt_rtx` built, its first bytes say which.

Not run on a GPU so far: tests drive it through the Protocols below, with NumPy for the device's memory.
"""

import importlib
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np

from redline.errors import GraphError, RequestError, missing_extra
from redline.kernels.device_memory import DeviceMemory, open_device
from redline.runtimes.engines import refuse_unknown
from redline.tensors import Arrays

_RTX = b"vtrt"


class Context(Protocol):
    """What is used of IExecutionContext."""

    def set_input_shape(self, name: str, shape: Sequence[int]) -> bool: ...
    def get_tensor_shape(self, name: str) -> Sequence[int]: ...
    def set_tensor_address(self, name: str, address: int) -> bool: ...
    def execute_async_v3(self, stream_handle: int) -> bool: ...


class CudaEngine(Protocol):
    """What is used of ICudaEngine."""

    num_io_tensors: int

    def get_tensor_name(self, index: int) -> str: ...
    def get_tensor_mode(self, name: str) -> Any: ...
    def get_tensor_dtype(self, name: str) -> Any: ...
    def get_tensor_profile_shape(self, name: str, profile_index: int) -> Sequence[Sequence[int]]: ...
    def create_execution_context(self) -> Context: ...


class Runtime(Protocol):
    """What is used of Runtime."""

    def deserialize_cuda_engine(self, plan: bytes) -> CudaEngine | None: ...


class Library(Protocol):
    """What is used of the modules `tensorrt` and `tensorrt_rtx_bindings`."""

    Logger: Any  # .WARNING
    TensorIOMode: Any  # .INPUT

    def Runtime(self, logger: Any) -> Runtime: ...  # noqa: N802 (TensorRT's name)
    def nptype(self, dtype: Any) -> Any: ...


@dataclass(slots=True)
class _Room:
    """Device memory for one tensor; it grows to the largest request seen."""

    dtype: np.dtype[Any]
    size_bytes: int = 0
    address: int = 0
    keeps: Any = None


class TensorRt:
    def __init__(self, library: Library, engine: CudaEngine, memory: DeviceMemory) -> None:
        """The engine was made while the device was current."""
        self._engine, self._memory = engine, memory
        self._lock = threading.Lock()  # a context and its buffers serve one thread at a time
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        self._rooms = {n: _Room(np.dtype(library.nptype(engine.get_tensor_dtype(n)))) for n in names}
        is_input = library.TensorIOMode.INPUT
        self._inputs = [n for n in names if engine.get_tensor_mode(n) == is_input]
        self._outputs = [n for n in names if n not in self._inputs]
        self._context = engine.create_execution_context()
        if self._context is None:
            raise GraphError("TensorRT has no room for an execution context on this device")

    def infer(self, inputs: Arrays) -> Arrays:
        self._check(inputs)
        with self._lock, self._memory.here():
            for name in self._inputs:
                self._put(name, np.ascontiguousarray(inputs[name]))
            answers = {name: self._place(name) for name in self._outputs}
            if not self._context.execute_async_v3(self._memory.stream):
                raise RuntimeError("TensorRT refused to run; its log says why")
            for name, array in answers.items():
                self._memory.download(array, self._rooms[name].address)
            self._memory.wait()
        return answers

    def _check(self, inputs: Arrays) -> None:
        if inputs.keys() != set(self._inputs):
            raise RequestError(f"wanted inputs {sorted(self._inputs)}, got {sorted(inputs)}")
        for name, array in inputs.items():
            if array.dtype != self._rooms[name].dtype:
                raise RequestError(f"input {name!r}: wanted {self._rooms[name].dtype}, got {array.dtype}")

    def _put(self, name: str, array: np.ndarray[Any, Any]) -> None:
        if not self._context.set_input_shape(name, array.shape):
            smallest, _, largest = (list(shape) for shape in self._engine.get_tensor_profile_shape(name, 0))
            raise RequestError(f"input {name!r}: the engine takes {smallest} to {largest}, got {list(array.shape)}")
        self._reserve(name, array.nbytes)
        self._memory.upload(self._rooms[name].address, array)

    def _place(self, name: str) -> np.ndarray[Any, Any]:
        """Where the answer will lie, here and on the device; its shape follows from the inputs'."""
        shape = tuple(self._context.get_tensor_shape(name))
        if any(d < 0 for d in shape):
            raise GraphError(f"output {name!r} has shape {list(shape)}: it depends on the data, not on shapes alone")
        array = np.empty(shape, self._rooms[name].dtype)
        self._reserve(name, array.nbytes)
        return array

    def _reserve(self, name: str, size_bytes: int) -> None:
        room = self._rooms[name]
        if room.keeps is None or room.size_bytes < size_bytes:
            room.address, room.keeps = self._memory.allocate(max(1, size_bytes))
            room.size_bytes = size_bytes
            if not self._context.set_tensor_address(name, room.address):
                raise RuntimeError(f"TensorRT refused the address of {name!r}")


def is_rtx_plan(path: Path) -> bool:
    with path.open("rb") as f:
        return f.read(len(_RTX)) == _RTX


def library_of(plan: bytes) -> Library:
    """The module that built the plan.

    Raises:
        MissingError: it is not installed; the pip line.
    """
    module, extra = ("tensorrt_rtx_bindings", "rtx") if plan.startswith(_RTX) else ("tensorrt", "gpu")
    try:
        found = importlib.import_module(module)
    except ImportError as e:
        raise missing_extra(extra, f"a plan of {module}") from e
    if not hasattr(found, "Runtime"):  # tensorrt-stubs leaves an empty package
        raise missing_extra(extra, f"a plan of {module}")
    return cast(Library, found)


def load(path: Path, options: Mapping[str, Any]) -> TensorRt:
    refuse_unknown("tensorrt", options, set())
    memory = open_device()
    plan = path.read_bytes()
    library = library_of(plan)
    with memory.here():
        engine = library.Runtime(library.Logger(library.Logger.WARNING)).deserialize_cuda_engine(plan)
        if engine is None:
            raise GraphError(
                f"TensorRT can't load {path.name}: damaged, or built for another architecture or version; build it "
                "again from the model.onnx beside it (docs/tensorrt.md)"
            )
        return TensorRt(library, engine, memory)
