"""The real server, over its four wires."""

import json
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from live_server import WIRES, Answer, Entry, Server, as_entries, as_instances, command, free_port, running
from tiny_artifact import make_artifact, request

from redline import artifact as artifacts
from redline.errors import ArtifactError
from redline.runtimes import engines
from redline.runtimes.command import choose_engine


@pytest.fixture(scope="module")
def golden(artifact: Path) -> Callable[[dict[str, Any]], Any]:
    engine = engines.load("onnxruntime", artifact / "model" / "model.onnx", {})
    return lambda arrays: engine.infer(arrays)["score"]


@pytest.mark.parametrize("wire", WIRES)
def test_every_wire_gives_the_same_bits(server: Server, golden: Callable[..., Any], wire: str) -> None:
    for rows in (1, 32, 512):
        arrays = request(rows, seed=rows + 1)
        answer = server.send(wire, arrays)
        assert answer.status == 200 and answer.score.tobytes() == golden(arrays).tobytes(), answer


def test_a_batch_of_many_wires_gives_each_its_own_answer(server: Server, golden: Callable[..., Any]) -> None:
    asked = [(WIRES[i % 4], request(1 + i % 7, seed=i)) for i in range(64)]
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda a: server.send(*a), asked))
    for (wire, arrays), answer in zip(asked, answers, strict=True):
        np.testing.assert_allclose(answer.score, golden(arrays), atol=1e-6, err_msg=wire)


def _entries(**changes: Any) -> list[Entry]:
    return as_entries(request(2) | changes)


_DENSE = request(2)["dense"]
_FAR = np.array([[0, 0], [3, 100]], np.int64)
_NAN = np.array([[0, 0, 0], [0, np.nan, 0]], np.float32)
# what is wrong: v2 entries, v1 instances, text per kind of wire (v1, v2 JSON, raw bytes)
_BAD: dict[str, tuple[list[Entry], Any, str]] = {
    "unknown input": (_entries(extra=_DENSE), [{"ids": [1, 2], "dense": [1, 2, 3], "extra": 1}], "extra"),
    "missing input": (_entries()[:1], [{"ids": [1, 2]}], r"wanted.*\['dense', 'ids'\]"),
    "twice": ([*_entries(), _entries()[0]], [], "twice|instances"),
    "float ids": (
        _entries(ids=np.zeros((2, 2), np.float32)),
        [{"ids": [1.5, 2], "dense": [1, 2, 3]}],
        "ids.*(int64|INT64)",
    ),
    "int dense": (_entries(dense=_DENSE.astype(np.int32)), [{"ids": [1, 2], "dense": "abc"}], "dense"),
    "bool dense": (_entries(dense=_DENSE > 0), [{"ids": [1, 2], "dense": [True, 1, 2]}], "dense.*(FP32|float32)"),
    "width": (_entries(dense=_DENSE[:, :2]), [{"ids": [1, 2], "dense": [1, 2]}], "dense.*wanted.*3"),
    "rank": (_entries(dense=_DENSE[:, 0]), [{"ids": [1, 2], "dense": 1}], "dense.*wanted.*3"),
    "no rows": (as_entries({n: a[:0] for n, a in request(1).items()}), [], "row"),
    "too many rows": (as_entries(request(513)), as_instances(request(513)), "wanted 1 to 512 rows, got 513"),
    "rows disagree": (_entries(dense=_DENSE[:1]), [{"ids": [[1, 2]], "dense": [1, 2, 3]}], "rows|row"),
    "id out of range": (
        _entries(ids=_FAR),
        as_instances(request(2) | {"ids": _FAR}),
        r"100 at row 1, column 1 \(item\)",
    ),
    "not a number": (_entries(dense=_NAN), as_instances(request(2) | {"dense": _NAN}), "not finite|not JSON"),
    "too large": (_entries(dense=np.full((2, 3), 1e39)), [{"ids": [1, 2], "dense": [1e39, 0, 0]}], "FP32|finite"),
}


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize("what", _BAD)
def test_bad_requests_are_refused_with_the_reason(embedded: Server, what: str, wire: str) -> None:
    entries, instances, text = _BAD[what]
    answer = (
        embedded.v1(instances)
        if wire == "v1"
        else embedded.grpc(entries)
        if wire == "grpc"
        else embedded.v2(entries, binary=wire == "binary")
    )
    assert answer.status == ("INVALID_ARGUMENT" if wire == "grpc" else 400), answer
    assert re.search(text, answer.error), answer.error


def test_unknown_outputs_are_refused(embedded: Server) -> None:
    answers = [embedded.v2(_entries(), binary=b, outputs=["nope"]) for b in (True, False)]
    answers.append(embedded.grpc(_entries(), outputs=["nope"]))
    assert [a.status for a in answers] == [400, 400, "INVALID_ARGUMENT"]
    assert all("unknown outputs ['nope']; this model gives ['score']" in a.error for a in answers)


_INFER = "/v2/models/tiny/infer"


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "status", "text"),
    [
        ("POST", _INFER, b"{", {}, 400, "not JSON"),
        ("POST", _INFER, b"[]", {}, 400, "wanted a JSON object"),
        ("POST", _INFER, b"", {}, 400, "not JSON"),
        ("POST", _INFER, b"{}", {"Inference_Header_Content_Length": "9"}, 400, "does not fit a body of 2"),
        ("POST", _INFER, b"{}", {"Inference_Header_Content_Length": "-1"}, 400, "does not fit"),
        ("POST", _INFER, b"{}", {"Content_Encoding": "gzip"}, 415, "uncompressed"),
        ("POST", _INFER, b"x" * 300_000, {}, 413, "larger than 256000 bytes"),
        ("POST", _INFER, [b"x" * 100_000] * 3, {"transfer_encoding": "chunked"}, 413, "larger than 256000 bytes"),
        ("GET", _INFER, None, {}, 405, ""),
        ("DELETE", _INFER, None, {}, 405, "not for"),
        ("POST", "/v2/models/other/infer", b"{}", {}, 404, "this server has the model 'tiny'"),
        ("POST", "/v1/models/other:predict", b"{}", {}, 404, "tiny"),
        ("POST", "/v2/repository/models/tiny/unload", None, {}, 403, "closed"),
        ("POST", "/v2/repository/models/tiny/load", None, {}, 403, "closed"),
    ],
)
def test_http_refusals(
    embedded: Server, method: str, path: str, body: Any, headers: dict[str, str], status: int, text: str
) -> None:
    answer = embedded.call(method, path, body, **headers)
    assert answer.status == status and text in answer.body.decode(), answer
    assert embedded.ready() == 200


def test_kserve_routes_still_answer(embedded: Server) -> None:
    for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/tiny/ready", "/v1/models/tiny", "/v1/models"):
        assert embedded.call("GET", path).status == 200, path
    shapes = {t["name"]: t["shape"] for t in json.loads(embedded.call("GET", "/v2/models/tiny").body)["inputs"]}
    assert shapes == {"ids": [-1, 2], "dense": [-1, 3]}
    embedded.send("binary", request(1))
    assert re.search(
        rb'request_predict_seconds_count\{model_name="tiny"\} [1-9]', embedded.call("GET", "/metrics").body
    )


def test_overload_is_shed_early(slow_artifact: Path, tmp_path: Path) -> None:
    arrays = request(512)
    with running(slow_artifact, tmp_path / "log", "--max-inflight", "2") as server, ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda i: server.send("grpc" if i % 2 else "binary", arrays), range(12)))
        statuses = {a.status for a in answers}
        assert statuses <= {200, 429, "RESOURCE_EXHAUSTED"} and 200 in statuses and len(statuses) > 1
        assert all(a.headers["retry-after"] == "1" for a in answers if a.status == 429)
        assert server.send("binary", arrays).status == 200


def test_sigterm_answers_what_is_in_flight_and_leaves_nothing(slow_artifact: Path, tmp_path: Path) -> None:
    arrays, answers = request(512), list[Answer]()
    with running(slow_artifact, tmp_path / "log") as server:
        threads = [
            threading.Thread(target=lambda w: answers.append(server.send(w, arrays)), args=(WIRES[i % 4],))
            for i in range(8)
        ]
        for thread in threads:
            thread.start()
        time.sleep(0.2)
        assert server.end() == 0
        for thread in threads:
            thread.join()
        assert [a.status for a in answers] == [200] * 8, answers
        for port in (server.http_port, server.grpc_port):
            socket.create_server(("127.0.0.1", port)).close()
    assert not list(tmp_path.glob("redline*"))


def test_golden_answers_that_no_longer_match_mean_503(tmp_path: Path) -> None:
    off = make_artifact(tmp_path / "off", off=0.12)
    with running(off, tmp_path / "log", ready=503) as server:
        reason = "golden request 0: output score differs by 0.12 > 1e-05"
        assert reason in server.log.read_text()
        assert server.call("GET", "/v2/health/live").status == 200
        for answer in (server.call("GET", "/v2/health/ready"), server.send("binary", request(1))):
            assert answer.status == 503 and reason in answer.error
        answer = server.send("grpc", request(1))
        assert answer.status == "UNAVAILABLE" and reason in answer.error


_HOOKS = """
import numpy as np
from redline.errors import RequestError
from redline.tensors import Tensor

def before(arrays):
    if arrays["user"].max() > 8:
        raise RequestError("user 9 has left")
    ids = np.stack([arrays["user"], arrays["user"]], axis=1)
    return {"ids": ids, "dense": np.zeros((len(ids), 3), np.float32)}

before.inputs = (Tensor(name="user", dtype="int64", shape=("rows",)),)

def after(answers):
    return {"score": -answers["score"]}
"""


@pytest.mark.parametrize("engine", ["embedded", pytest.param("triton", marks=pytest.mark.triton)])
def test_hooks_stand_around_the_engine(golden: Callable[..., Any], tmp_path: Path, engine: str) -> None:
    (tmp_path / "shop.py").write_text(_HOOKS)
    made = make_artifact(tmp_path / "a", preprocess="shop:before", postprocess="shop:after")
    with running(made, tmp_path / "log", "--engine", engine, path=str(tmp_path)) as server:
        users = np.array([1, 7])
        inputs = {"ids": np.stack([users, users], axis=1), "dense": np.zeros((2, 3), np.float32)}
        for wire in WIRES:
            assert (server.send(wire, {"user": users}).score == -golden(inputs)).all()
        left = server.send("v2", {"user": np.array([9])})
        assert (left.status, left.error) == (400, "user 9 has left")
        shapes = json.loads(server.call("GET", "/v2/models/tiny").body)["inputs"]
        assert shapes == [{"name": "user", "datatype": "INT64", "shape": [-1]}]


def _fails(*options: str) -> tuple[int, str]:
    done = subprocess.run(options, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stderr


def test_a_flipped_byte_is_refused(tmp_path: Path) -> None:
    model = make_artifact(tmp_path / "a") / "model" / "model.onnx"
    data = bytearray(model.read_bytes())
    data[100] ^= 1
    model.write_bytes(data)
    code, text = _fails(*command(tmp_path / "a", "--http-port", "0", "--grpc-port", "0"))
    assert code == 2 and "model/model.onnx was changed" in text


@pytest.mark.parametrize("taken", ["--http-port", "--grpc-port"])
def test_a_taken_port_is_said_before_anything_is_loaded(tmp_path: Path, taken: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as s:
        ports = {"--http-port": free_port(), "--grpc-port": free_port(), taken: s.getsockname()[1]}
        options = [text for name, port in ports.items() for text in (name, str(port))]
        code, text = _fails(*command(tmp_path / "no-artifact", *options))
    assert code == 2 and f"can't listen on 127.0.0.1:{ports[taken]}" in text


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (("--max-body", "64"), "a size with a unit"),
        (("--max-inflight", "0"), "at least 1"),
        (("--http-port", "99999"), "a port is"),
        (("--engine", "onnx"), "invalid choice"),
    ],
)
def test_bad_options_are_refused(artifact: Path, options: tuple[str, ...], text: str) -> None:
    code, error = _fails(*command(artifact, *options))
    assert code == 2 and text in error


def test_a_weaker_machine_is_refused(tmp_path: Path) -> None:
    made = make_artifact(tmp_path / "a", isa="avx2")
    with pytest.raises(ArtifactError, match="judged on avx2, this CPU has portable"):
        artifacts.load(made, here="portable")


@pytest.mark.parametrize(
    ("evidence", "engine", "why"),
    [
        (None, "embedded", "no load test"),
        ({"engines": {"embedded": {"highest_rate": 440.0}, "triton": {"highest_rate": 350.0}}}, "embedded", "440/s"),
        ({"engines": {"embedded": {"highest_rate": 300.0}, "triton": {"highest_rate": 350.0}}}, "triton", "350/s"),
        ({"engines": {"embedded": {"highest_rate": None}}}, "embedded", "no load test"),
    ],
)
def test_auto_follows_the_evidence(
    artifact: Path, monkeypatch: pytest.MonkeyPatch, evidence: Any, engine: str, why: str
) -> None:
    monkeypatch.setattr(artifacts.Artifact, "evidence", lambda self, name: evidence)
    chosen, reason = choose_engine("auto", artifacts.load(artifact))
    assert chosen == engine and why in reason


def test_the_command_line_loads_nothing_heavy() -> None:
    heavy = "{'kserve', 'fastapi', 'grpc', 'onnxruntime', 'torch'} & set(sys.modules)"
    code = f"import sys, redline.runtimes.command; assert not ({heavy}), {heavy}"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
