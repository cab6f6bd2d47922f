"""vLLM as the predictor's backend: its command, a supervised process on a private port, golden prompts through it."""

import asyncio
import logging
import os
import re
import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from redline import machine
from redline.artifact import Artifact
from redline.errors import MissingError
from redline.runtimes import llm_env, triton
from redline.runtimes.predictor import NotReadyError
from redline.runtimes.readiness import replay as replay_golden
from redline.tensors import Arrays
from redline.verdict import Verdict

log = logging.getLogger("redline.serve")
_START_S = 300.0  # the first start on a machine compiles for a minute
_TOP = 20  # of a first token's logprobs asked for: vLLM's own bound
_ABSENT = -100.0  # the logprob of a golden token that is not even among those
_BLOCKS = re.compile(r"^vllm:cache_config_info\{(.*)\}", re.MULTILINE)


def engine_cores() -> list[int]:
    """vLLM's threads get every core but the last, which is left to HTTP: its own front's, and ours."""
    cores = sorted(os.sched_getaffinity(0))
    return cores[:-1] or cores


def command(model: Path, name: str, port: int, serving: Mapping[str, Any]) -> list[str]:
    """`vllm serve` of an HF folder, offline and quiet; serving: a manifest's.

    Raises:
        MissingError: vLLM's environment is not installed; the line that does it.
    """
    environment = {
        "HF_HUB_OFFLINE": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_USE_AOT_COMPILE": "0",  # with it every start compiles anew
        "VLLM_CACHE_ROOT": str(machine.cache_folder() / "vllm"),
        "TORCHINDUCTOR_CACHE_DIR": str(machine.cache_folder() / "vllm" / "inductor"),
        "VLLM_CPU_KVCACHE_SPACE": str(serving["kv_cache_gib"]),
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, engine_cores())),
    }
    python = llm_env.python("vllm")
    return [
        *("env", "-u", "PYTHONPATH", *(f"{key}={value}" for key, value in environment.items())),
        *(str(python), "-m", "vllm.entrypoints.cli.main", "serve", str(model.resolve())),
        *("--host", "127.0.0.1", "--port", str(port), "--served-model-name", name),
        *(
            "--dtype",
            "bfloat16",
            "--max-model-len",
            str(serving["context"]),
            "--max-num-seqs",
            str(serving["max_inflight"]),
        ),
        *("--disable-uvicorn-access-log", "--disable-fastapi-docs", "--no-enable-log-requests"),
    ]


class _Guarded(triton.Triton):
    """The same guard, pipe and log as Triton's, around another command."""

    def __init__(self, command: list[str], port: int, folder: Path) -> None:
        self.port = port
        self._command, self._folder = command, folder
        self._log, self._environment = folder / "vllm.log", dict(os.environ)


class Vllm:
    """While it is dead, requests get 503; the predictor starts it again."""

    def __init__(self, artifact: Artifact) -> None:
        self._artifact = artifact
        self._server: _Guarded | None = None
        self.client: httpx.AsyncClient | None = None
        self.block_tokens, self.blocks = 0, 0  # of the KV cache

    async def start(self) -> None:
        manifest, port = self._artifact.manifest, triton.free_port()
        argv = command(self._artifact.model, manifest.name, port, manifest.serving)
        folder = Path(tempfile.mkdtemp(prefix="redline-vllm-"))
        server = _Guarded(argv, port, folder)
        try:
            await server.start()
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        self._server = server
        streams = httpx.Limits(max_connections=None, max_keepalive_connections=64)
        timeout = httpx.Timeout(10.0, read=None)  # a stream may think for long; a dead engine closes its socket
        self.client = httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{port}", limits=streams, timeout=timeout, trust_env=False
        )
        deadline = time.monotonic() + _START_S
        while not await self._healthy():
            if server.exit_code is not None or time.monotonic() > deadline:
                raise MissingError(f"vLLM did not start (exit code {server.exit_code}); its log ends:\n{server.tail()}")
            await asyncio.sleep(0.1)
        self.blocks, self.block_tokens = kv_cache((await self.client.get("/metrics")).text)

    async def _healthy(self) -> bool:
        assert self.client is not None
        try:
            return (await self.client.get("/health")).status_code == 200
        except httpx.TransportError:
            return False

    async def infer(self, arrays: Arrays) -> Arrays:
        """A golden prompt's tokens → the logprobs of its golden first tokens."""
        if self.client is None:
            raise NotReadyError("vLLM is not running")
        ask = first_token(self._artifact.manifest.name, arrays["tokens"].tolist())
        try:
            answer = await self.client.post("/v1/completions", json=ask)
            found = top_logprobs(answer.raise_for_status().json())
        except httpx.HTTPError as e:
            raise NotReadyError(f"vLLM gave no answer: {e}") from e
        return {"logprobs": np.array([found.get(token, _ABSENT) for token in arrays["top"].tolist()])}

    async def metrics(self) -> bytes:
        try:
            return (await self.client.get("/metrics")).content if self.client else b""
        except httpx.TransportError:
            return b""

    async def ended(self) -> str:
        if self._server is None:
            raise RuntimeError("ended() before start()")
        code = await self._server.ended()
        log.error("vLLM ended with exit code %s; its log ends:\n%s", code, self._server.tail())
        await self.stop()
        return f"vLLM ended with exit code {code}"

    async def stop(self) -> None:
        if self._server is not None:
            server, self._server = self._server, None
            if self.client:
                await self.client.aclose()
            self.client = None
            await server.stop()


async def replay(artifact: Artifact) -> Verdict:
    """Start vLLM for the golden prompts alone, for `redline inspect --replay`."""
    engine = Vllm(artifact)
    try:
        await engine.start()
        return await replay_golden(artifact, engine.infer)
    finally:
        await engine.stop()


def first_token(model: str, tokens: list[int]) -> dict[str, Any]:
    """What asks for the first token after `tokens`, with the logprobs of the likeliest."""
    ask = {"model": model, "prompt": tokens, "max_tokens": 1, "temperature": 0, "logprobs": _TOP}
    return ask | {"return_tokens_as_token_ids": True}


def top_logprobs(answer: dict[str, Any]) -> dict[int, float]:
    """token → logprob, the likeliest first."""
    (first,) = answer["choices"][0]["logprobs"]["top_logprobs"]
    return {int(token.removeprefix("token_id:")): float(value) for token, value in first.items()}


def kv_cache(metrics: str) -> tuple[int, int]:
    """(blocks, tokens a block) of the paged KV cache, as vLLM's metrics say."""
    found = _BLOCKS.search(metrics)
    labels = dict(re.findall(r'(\w+)="([^"]*)"', found[1])) if found else {}
    try:
        return int(labels["num_gpu_blocks"]), int(labels["block_size"])
    except (KeyError, ValueError) as e:
        raise MissingError(f"this vLLM's metrics don't say how large its KV cache is: {sorted(labels)}") from e
