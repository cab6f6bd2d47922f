"""A real Triton behind the predictor; its answers are compared with the embedded engine's in test_server.py."""

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
from live_server import Server, running
from onnx import helper
from tiny_artifact import make_artifact, manifest, request

from redline import artifact as artifacts
from redline.errors import MissingError
from redline.runtimes import triton
from redline.tensors import Tensor

pytestmark = pytest.mark.triton


def _family(pid: int) -> dict[str, int]:
    """Names and ids of every process under pid."""
    parents: dict[int, list[int]] = {}
    names: dict[int, str] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            head, _, tail = stat.read_text().rpartition(")")
        except OSError:
            continue
        child = int(head.split()[0])
        names[child] = head.partition("(")[2]
        parents.setdefault(int(tail.split()[1]), []).append(child)
    found: dict[str, int] = {}
    queue = [pid]
    while queue:
        for child in parents.get(queue.pop(), []):
            found[names[child]] = child
            queue.append(child)
    return found


def _shared_memory(folder: Path) -> list[str]:
    names = [p.name for p in folder.glob("redline-triton-*")]
    return [p.name for p in Path("/dev/shm").iterdir() if any(p.name.startswith(n) for n in names)]  # noqa: S108


def _nothing_left(family: dict[str, int], shared: list[str], folder: Path) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        alive = [n for n, pid in family.items() if Path(f"/proc/{pid}").exists()]
        left = [s for s in shared if (Path("/dev/shm") / s).exists()]  # noqa: S108
        left += [p.name for p in folder.glob("redline-triton-*")]
        if not alive and not left:
            return
        time.sleep(0.05)
    raise AssertionError(f"processes {alive}, files {left}")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_nothing_outlives_the_predictor(artifact: Path, tmp_path: Path, number: signal.Signals) -> None:
    with running(artifact, tmp_path / "log", "--engine", "triton") as server:
        family, shared = _family(server.process.pid), _shared_memory(tmp_path)
        assert {"tritonserver", "triton_python_b"} <= family.keys() and shared
        assert server.end(number) == (0 if number == signal.SIGTERM else -number)
        _nothing_left(family, shared, tmp_path)


def _kill(server: Server, name: str) -> None:
    os.kill(_family(server.process.pid)[name], signal.SIGKILL)


def test_a_killed_triton_means_503_then_recovery_then_an_exit(artifact: Path, tmp_path: Path) -> None:
    arrays = request(4)
    with running(artifact, tmp_path / "log", "--engine", "triton") as server:
        want = server.send("binary", arrays).score
        for name in ("tritonserver", "triton_python_b", "tritonserver"):  # the stub, when Triton itself stays alive
            _kill(server, name)
            answers = [server.send("binary", arrays)]
            with ThreadPoolExecutor(4) as pool:
                stop_at = time.monotonic() + 20
                while time.monotonic() < stop_at and answers[-1].status != 200:
                    answers += pool.map(lambda w: server.send(w, arrays), ("v1", "v2", "grpc", "binary"))
            assert {a.status for a in answers} == {503, "UNAVAILABLE", 200}
            assert all(np.array_equal(a.score, want) for a in answers if a.status == 200)
        family = _family(server.process.pid)
        _kill(server, "tritonserver")
        assert server.process.wait(60) == 1
        assert "started again 3 times, giving up" in server.log.read_text()
        _nothing_left(family, [], tmp_path)


def test_an_idle_server_answers_at_once_after_a_burst(servers: "dict[str, Server]", artifact: Path) -> None:
    """Any queue policy in the configuration would make some of these wait for up to 500 ms."""
    server: Server = servers("triton")  # type: ignore[operator]
    arrays = request(8)
    with ThreadPoolExecutor(16) as pool:
        assert {a.status for a in pool.map(lambda _: server.send("binary", arrays), range(128))} == {200}
    waits = []
    for _ in range(40):
        time.sleep(0.025)
        started = time.perf_counter()
        assert server.send("binary", arrays).status == 200
        waits.append(time.perf_counter() - started)
    assert np.quantile(waits, 0.9) < 0.05, waits


def test_a_model_that_triton_cannot_load_shows_its_log(tmp_path: Path) -> None:
    broken = make_artifact(tmp_path / "a", engine_options={"nonsense": 1})
    with (
        pytest.raises(AssertionError, match=r"unknown options \['nonsense'\]"),
        running(broken, tmp_path / "log", "--engine", "triton"),
    ):
        pass


def test_a_wheel_with_other_bytes_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDLINE_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(triton, "_SHA256", "0" * 64)
    monkeypatch.setattr(triton.subprocess, "run", _fake_pip)
    with pytest.raises(MissingError, match=r"sha256 .* wanted 0000"):
        triton.find()
    assert list((tmp_path / "triton").iterdir()) == []


def _fake_pip(command: list[str], **_: object) -> object:
    (Path(command[-1]) / "nvidia_pytriton-0.7.0-py3-none-any.whl").write_bytes(b"other")
    return type("Done", (), {"returncode": 0, "stderr": ""})()


_TYPES = {"bool": 9, "int8": 3, "uint8": 2, "int32": 6, "int64": 7, "float16": 10, "float32": 1, "float64": 11}


def _mirror(out: Path) -> Path:
    """A model that gives back what it gets, in every type, with none, one and two axes after the rows."""
    tails: dict[str, list[int]] = {t: [[], [5], [2, 3]][i % 3] for i, t in enumerate(_TYPES)}
    ins = [helper.make_tensor_value_info(f"x_{t}", n, ["rows", *tails[t]]) for t, n in _TYPES.items()]
    outs = [helper.make_tensor_value_info(f"y_{t}", n, ["rows", *tails[t]]) for t, n in _TYPES.items()]
    nodes = [helper.make_node("Identity", [f"x_{t}"], [f"y_{t}"]) for t in _TYPES]
    model = helper.make_model(
        helper.make_graph(nodes, "mirror", ins, outs), opset_imports=[helper.make_opsetid("", 20)], ir_version=10
    )
    inputs = {f"x_{t}": np.arange(3 * np.prod(tails[t])).reshape(3, *tails[t]).astype(t) for t in _TYPES}
    answers = {f"y_{t}": inputs[f"x_{t}"] for t in _TYPES}
    with artifacts.writing(out) as folder:
        onnx.save(model, folder / "model.onnx")
        artifacts.save_golden(folder / "golden.npz", [(inputs, answers, answers)])
        specs = [
            tuple(Tensor(name=f"{side}_{t}", dtype=t, shape=("rows", *tails[t])) for t in _TYPES) for side in ("x", "y")
        ]
        artifacts.seal(folder, manifest(model="model.onnx", inputs=specs[0], outputs=specs[1], replay_tolerance=0.0))
    return out


def test_every_type_and_shape_comes_through_unchanged(tmp_path: Path) -> None:
    """Ready at a tolerance of 0: under numpy 2 this Triton's as_numpy() gave wrong integers of the right shape."""
    with running(_mirror(tmp_path / "a"), tmp_path / "log", "--engine", "triton") as server:
        assert server.ready() == 200
