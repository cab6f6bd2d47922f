"""The TensorRT engine over its Protocols, with NumPy for the device: no GPU was here. What is real says so."""

import ctypes
import importlib.util
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from redline import artifact
from redline.cli import main
from redline.errors import GraphError, MissingError, RequestError, UsageError
from redline.kernels import device_memory
from redline.runtimes import engines
from redline.runtimes.engines import tensorrt
from redline.tensors import Arrays

KINDS = {"ids": np.int64, "dense": np.float32, "score": np.float32}
rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx_bindings") is None, reason="TensorRT for RTX is not installed ([rtx])"
)


def have_gpu() -> bool:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


class Memory:
    """Device memory in this process; every call is written down."""

    stream = 77

    def __init__(self) -> None:
        self.blocks: dict[int, np.ndarray[Any, Any]] = {}
        self.calls: list[str] = []
        self.inside = 0

    @contextmanager
    def here(self) -> Iterator[None]:
        self.inside += 1
        yield
        self.inside -= 1

    def allocate(self, size_bytes: int) -> tuple[int, Any]:
        assert self.inside
        block = np.full(size_bytes, 0xAB, np.uint8)
        address = 0x1000 * (len(self.blocks) + 1)
        self.blocks[address] = block
        self.calls.append(f"allocate {size_bytes}")
        return address, block

    def upload(self, address: int, array: np.ndarray[Any, Any]) -> None:
        assert self.inside
        assert array.flags.c_contiguous
        self.blocks[address][: array.nbytes] = np.frombuffer(array.tobytes(), np.uint8)
        self.calls.append("upload")

    def download(self, array: np.ndarray[Any, Any], address: int) -> None:
        array.reshape(-1).view(np.uint8)[:] = self.blocks[address][: array.nbytes]
        self.calls.append("download")

    def wait(self) -> None:
        self.calls.append("wait")

    def read(self, address: int, shape: Sequence[int], dtype: Any) -> np.ndarray[Any, Any]:
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        return self.blocks[address][:size].view(dtype).reshape(shape)


class Context:
    """score = sum of the row's ids + sum of its dense values."""

    def __init__(self, memory: Memory, largest: int = 1000) -> None:
        self.memory, self.largest = memory, largest
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.runs = True
        self.output_rows: int | None = None

    def set_input_shape(self, name: str, shape: Sequence[int]) -> bool:
        if not 1 <= shape[0] <= self.largest:
            return False
        self.shapes[name] = tuple(shape)
        return True

    def get_tensor_shape(self, name: str) -> Sequence[int]:
        assert name == "score"
        return (self.shapes["ids"][0] if self.output_rows is None else self.output_rows,)

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        assert stream_handle == Memory.stream
        self.memory.calls.append("execute")
        ids, dense = (self.memory.read(self.addresses[n], self.shapes[n], KINDS[n]) for n in ("ids", "dense"))
        answer = (ids.sum(1) + dense.sum(1)).astype(np.float32)
        self.memory.read(self.addresses["score"], answer.shape, np.float32)[:] = answer
        return self.runs


class CudaEngine:
    num_io_tensors = 3

    def __init__(self, context: Context) -> None:
        self.context = context

    def get_tensor_name(self, index: int) -> str:
        return ("score", "ids", "dense")[index]  # in no order that means anything

    def get_tensor_mode(self, name: str) -> Any:
        return "OUTPUT" if name == "score" else "INPUT"

    def get_tensor_dtype(self, name: str) -> Any:
        return KINDS[name]

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> Sequence[Sequence[int]]:
        width = {"ids": 2, "dense": 3}[name]
        return [(n, width) for n in (1, 100, self.context.largest)]

    def create_execution_context(self) -> tensorrt.Context:
        return self.context


LIBRARY: Any = SimpleNamespace(TensorIOMode=SimpleNamespace(INPUT="INPUT"), nptype=lambda kind: kind)


def make() -> tuple[tensorrt.TensorRt, Memory, Context]:
    memory = Memory()
    context = Context(memory)
    return tensorrt.TensorRt(LIBRARY, CudaEngine(context), memory), memory, context


def request(rows: int, seed: int = 0) -> Arrays:
    rng = np.random.default_rng(seed)
    return {"ids": rng.integers(0, 99, (rows, 2)), "dense": rng.standard_normal((rows, 3)).astype(np.float32)}


def wanted(inputs: Arrays) -> np.ndarray[Any, Any]:
    return (inputs["ids"].sum(1) + inputs["dense"].sum(1)).astype(np.float32)


def test_answers_at_every_size() -> None:
    engine, _, _ = make()
    for rows in (1, 7, 500, 3):
        inputs = request(rows, rows)
        answers = engine.infer(inputs)
        assert answers.keys() == {"score"}
        assert (answers["score"].shape, answers["score"].dtype) == ((rows,), np.float32)
        np.testing.assert_array_equal(answers["score"], wanted(inputs))


def test_the_order_of_calls_and_memory_that_only_grows() -> None:
    engine, memory, _ = make()
    engine.infer(request(10))
    assert memory.calls == [
        "allocate 160", "upload", "allocate 120", "upload", "allocate 40", "execute", "download", "wait",
    ]  # fmt: skip
    memory.calls.clear()
    engine.infer(request(4))
    assert memory.calls == ["upload", "upload", "execute", "download", "wait"]
    memory.calls.clear()
    engine.infer(request(11))
    assert [c for c in memory.calls if c.startswith("allocate")] == ["allocate 176", "allocate 132", "allocate 44"]
    assert memory.inside == 0


def test_arrays_as_they_come_from_the_wire() -> None:
    engine, _, _ = make()
    inputs = request(6)
    odd = {"ids": np.asfortranarray(inputs["ids"]), "dense": np.repeat(inputs["dense"], 2, axis=0)[::2]}
    for array in odd.values():
        array.flags.writeable = False
    np.testing.assert_array_equal(engine.infer(odd)["score"], wanted(inputs))


def test_an_answer_is_not_changed_by_the_next() -> None:
    engine, _, _ = make()
    first = engine.infer(request(5, 1))["score"]
    engine.infer(request(5, 2))
    np.testing.assert_array_equal(first, wanted(request(5, 1)))


def test_threads_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, memory, _ = make()
    upload = memory.upload

    def slow(address: int, array: np.ndarray[Any, Any]) -> None:
        upload(address, array)
        threading.Event().wait(0.002)  # without the lock another thread would write its rows here

    monkeypatch.setattr(memory, "upload", slow)
    wrong: list[int] = []

    def ask(seed: int) -> None:
        for rows in (3, 9):
            inputs = request(rows, seed)
            if not np.array_equal(engine.infer(inputs)["score"], wanted(inputs)):
                wrong.append(seed)

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_requests_that_do_not_fit() -> None:
    engine, _, context = make()
    good = request(4)
    for bad, message in (
        ({"ids": good["ids"]}, r"wanted inputs \['dense', 'ids'\], got \['ids'\]"),
        ({**good, "more": good["ids"]}, r"got \['dense', 'ids', 'more'\]"),
        ({**good, "ids": good["ids"].astype(np.int32)}, "input 'ids': wanted int64, got int32"),
        (request(1001), r"input 'ids': the engine takes \[1, 2\] to \[1000, 2\], got \[1001, 2\]"),
    ):
        with pytest.raises(RequestError, match=message):
            engine.infer(bad)
    np.testing.assert_array_equal(engine.infer(good)["score"], wanted(good))  # it still answers
    context.output_rows = -1
    with pytest.raises(GraphError, match=r"output 'score' has shape \[-1\]"):
        engine.infer(good)
    context.output_rows, context.runs = None, False
    with pytest.raises(RuntimeError, match="refused to run"):
        engine.infer(good)


def test_no_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", absent)
    with pytest.raises(MissingError, match=r"no driver \(libcuda\.so\.1\)"):
        engines.load("tensorrt", tmp_path / "model.plan", {})
    with pytest.raises(UsageError, match=r"unknown options \['threads'\]"):
        engines.load("tensorrt", tmp_path / "model.plan", {"threads": 1})


def test_no_memory_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: None)
    monkeypatch.setattr(device_memory, "find_spec", lambda name: None)
    with pytest.raises(MissingError, match=r"pip install 'redline\[gpu\]'"):
        device_memory.open_device()


@pytest.mark.parametrize(
    ("plan", "module", "extra"), [(b"vtrt..", "tensorrt_rtx_bindings", "rtx"), (b"ptrt", "tensorrt", "gpu")]
)
def test_the_plan_says_which_library(plan: bytes, module: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def found(name: str) -> Any:
        asked.append(name)
        return SimpleNamespace(Runtime=None)

    monkeypatch.setattr(tensorrt.importlib, "import_module", found)
    tensorrt.library_of(plan)
    assert asked == [module]
    monkeypatch.setattr(tensorrt.importlib, "import_module", lambda name: SimpleNamespace())  # tensorrt-stubs
    with pytest.raises(MissingError, match=rf"a plan of {module} needs `pip install 'redline\[{extra}\]'`"):
        tensorrt.library_of(plan)


def test_a_plan_that_can_not_be_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model.plan").write_bytes(b"damaged")
    runtime = SimpleNamespace(deserialize_cuda_engine=lambda plan: None)
    library = SimpleNamespace(Runtime=lambda logger: runtime, Logger=SimpleNamespace)
    library.Logger = type("Logger", (), {"WARNING": 1, "__init__": lambda self, level: None})
    monkeypatch.setattr(tensorrt, "open_device", Memory)
    monkeypatch.setattr(tensorrt, "library_of", lambda plan: library)
    with pytest.raises(GraphError, match=r"can't load model\.plan: damaged, or built for another architecture"):
        engines.load("tensorrt", tmp_path / "model.plan", {})


def test_serving_it_here_says_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The line of an artifact whose engine is no engine of this process."""
    from tiny_artifact import make_artifact

    made = make_artifact(tmp_path / "made", target="cuda:sm_86")
    assert main(["serve", str(made), "--http-port", "0", "--grpc-port", "0"]) == 3
    said = capsys.readouterr().err
    assert "triton-onnxruntime, NVIDIA's Triton" in said
    assert f"redline deploy {made} --out DIR" in said


@pytest.mark.skipif(have_gpu(), reason="this machine has an NVIDIA driver")
def test_serving_a_plan_without_a_gpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tiny_artifact import make_artifact

    made = make_artifact(tmp_path / "made", target="cuda:sm_86", kind="tensorrt", engine="tensorrt")
    command = [sys.executable, "-m", "redline", "serve", str(made), "--http-port", "0", "--grpc-port", "0"]
    ran = subprocess.run(
        command, capture_output=True, text=True, check=False
    )  # kserve is imported: a process of its own
    assert ran.returncode == 3
    assert main(["inspect", str(made), "--json", "--replay"]) == 3
    for said in (ran.stderr, capsys.readouterr().err):
        assert "runs on an NVIDIA GPU, and this machine has no driver" in said


@rtx
def test_the_protocols_name_what_the_library_has() -> None:
    import tensorrt_rtx_bindings as trt

    for protocol, real in (
        (tensorrt.Context, trt.IExecutionContext),
        (tensorrt.CudaEngine, trt.ICudaEngine),
        (tensorrt.Runtime, trt.Runtime),
        (tensorrt.Library, trt),
    ):
        names = {n for n in (*vars(protocol), *protocol.__annotations__) if not n.startswith("_")}
        assert names, protocol
        assert not {n for n in names if not hasattr(real, n)}, protocol
    assert trt.TensorIOMode.INPUT != trt.TensorIOMode.OUTPUT
    assert np.dtype(trt.nptype(trt.DataType.INT64)) == np.int64
    assert np.dtype(trt.nptype(trt.DataType.FLOAT)) == np.float32


@pytest.mark.skipif(importlib.util.find_spec("cuda") is None, reason="cuda.core is not installed ([rtx])")
def test_the_memory_calls_what_cuda_core_has() -> None:
    from cuda.bindings import driver
    from cuda.core import Buffer, Device, Stream

    for real, names in (
        (Device, ("set_current", "create_stream", "allocate")),
        (Buffer, ("handle",)),
        (Stream, ("handle", "sync")),
        (driver, ("cuMemcpyHtoDAsync", "cuMemcpyDtoHAsync")),
        (driver.CUresult, ("CUDA_SUCCESS",)),
    ):
        assert not [n for n in names if not hasattr(real, n)], real


@pytest.mark.gpu
@pytest.mark.skipif(not have_gpu(), reason="no NVIDIA driver here (libcuda.so.1)")
@rtx
def test_a_real_plan_on_a_real_gpu(tmp_path: Path) -> None:
    from cuda.core import Device
    from tiny_artifact import make_artifact

    from redline.optimize.passes.tensorrt import TARGETS, build

    target = f"cuda:sm_{Device(0).arch}"
    if target not in TARGETS:
        pytest.skip(f"TensorRT for RTX builds for {', '.join(TARGETS)}, this GPU is {target}")
    found = artifact.load(make_artifact(tmp_path / "made"))
    profile = {"ids": [[n, 2] for n in (1, 64, 512)], "dense": [[n, 3] for n in (1, 64, 512)]}
    build(found.model, tmp_path / "model.plan", target, profile)
    engine = engines.load("tensorrt", tmp_path / "model.plan", {})
    for inputs, golden, _ in found.golden():
        np.testing.assert_allclose(engine.infer(inputs)["score"], golden["score"], atol=2e-3)
