"""The same promises on the real vLLM, with the artifact that `make demo-llm` made."""

import json
import re
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from live_server import Server, command, free_port
from test_llm import ask, error, streaming, until

from redline import artifact as artifacts
from redline.errors import MissingError
from redline.runtimes import llm_env

ARTIFACT = Path(__file__).parents[2] / "out" / "demo-llm" / "artifact"
pytestmark = [pytest.mark.vllm, pytest.mark.slow]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    try:
        llm_env.python("vllm")
    except MissingError:
        pytest.skip("no vLLM in the cache: run `make demo-llm`")
    if not (ARTIFACT / "manifest.json").exists():
        pytest.skip("no artifact: run `make demo-llm`")
    ports, log = [free_port(), free_port()], tmp_path_factory.mktemp("real") / "log"
    argv = command(ARTIFACT, "--http-port", str(ports[0]), "--grpc-port", str(ports[1]))
    with log.open("w") as out, subprocess.Popen(argv, stdout=out, stderr=out, text=True) as process:
        found = Server(process, *ports, log, artifacts.load(ARTIFACT).manifest.name)
        try:
            until(lambda: process.poll() is not None or answers(found), "vLLM starts", seconds=400)
            assert process.poll() is None, log.read_text()
            yield found
        finally:
            assert found.end() == 0


def answers(server: Server) -> bool:
    with suppress(OSError):
        return server.ready() == 200
    return False


def gauge(server: Server, name: str) -> float:
    found = re.search(rf"^vllm:{name}{{.*}} (\S+)$", server.call("GET", "/metrics").body.decode(), re.MULTILINE)
    assert found, name
    return float(found[1])


def test_it_streams_and_answers_sensibly(server: Server) -> None:
    with streaming(server, "What is the capital of France?", first="", model="smollm2", temperature=0) as stream:
        events = [json.loads(event) for event in stream.rest() if event.startswith("{")]
    text = "".join(choice["delta"].get("content") or "" for event in events for choice in event["choices"])
    assert "Paris" in text


def test_cancelled_streams_free_their_cache(server: Server) -> None:
    for i in range(24):
        with streaming(server, f"Story {i}, please", first="", model="smollm2", max_tokens=200):
            pass
    until(lambda: gauge(server, "num_requests_running") == 0 == gauge(server, "kv_cache_usage_perc"), "all is free")


def test_a_context_too_long(server: Server) -> None:
    answer = ask(server, "hello " * 3000, model="smollm2", stream=True)
    assert answer.status == 400 and "maximum context length is 2048 tokens" in error(answer)


def test_a_killed_engine_comes_back(server: Server) -> None:
    engine = next(c for c in psutil.Process(server.process.pid).children(recursive=True) if "EngineCore" in c.name())
    with streaming(server, "A long story", first="", model="smollm2", max_tokens=1000, ignore_eos=True) as stream:
        engine.kill()
        *_, failed, last = stream.rest()
        assert "error" in failed and last == "[DONE]"
    until(lambda: server.ready() == 503, "unready")
    until(lambda: server.ready() == 200, "ready again", seconds=400)
    assert ask(server, "hello", model="smollm2").status == 200
