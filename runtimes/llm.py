"""Serve an LLM artifact: KServe's control plane and OpenAI's routes in this process, vLLM in one of its own.

A vLLM that dies is started again, three times; then this process exits with 1. SIGTERM refuses what is new, lets the
running streams end, then ends vLLM.
"""

import socket
from typing import Any

import uvloop

from redline.artifact import Artifact
from redline.errors import RequestError, UsageError
from redline.runtimes import llm_env
from redline.runtimes.llm_engine import Vllm
from redline.runtimes.llm_front import Front
from redline.runtimes.predictor import Predictor
from redline.runtimes.rest import App
from redline.runtimes.server import Settings, _Http, _Serving
from redline.tensors import Arrays

_DRAIN_S = 120  # for running streams: longer than a request of tensors takes


class _LlmPredictor(Predictor):
    async def infer(self, arrays: Arrays) -> Arrays:
        raise RequestError(f"{self.name} is a language model: ask POST /v1/chat/completions or /v1/completions")


class _LlmServing(_Serving):
    def __init__(self, artifact: Artifact, engine: Vllm, http: socket.socket, settings: Settings) -> None:
        super().__init__(artifact, engine, http, settings)
        self._engine = engine
        self._predictor = _LlmPredictor(artifact, engine, settings.max_inflight)

    def _http(self, app: App) -> _Http:
        http = super()._http(app)
        http.config.app = Front(self._predictor, app, self._settings.max_body, self._engine)
        http.config.timeout_graceful_shutdown = _DRAIN_S
        return http


def check(artifact: Artifact, engine: str) -> None:
    """Before anything is started: can this artifact be served here?

    Raises:
        UsageError, MissingError: no.
    """
    if engine != "auto":
        raise UsageError(f"--engine {engine}: {artifact.path} is a language model, which vLLM alone serves")
    serving: dict[str, Any] = artifact.manifest.serving
    if missing := {"context", "max_inflight", "kv_cache_gib"} - serving.keys():
        raise UsageError(f"{artifact.path}: an LLM artifact's manifest says {sorted(missing)} under serving")
    if not (artifact.model / "config.json").is_file():
        raise UsageError(f"{artifact.model} is not a model folder: no config.json (a Hugging Face folder was wanted)")
    llm_env.python("vllm")


def serve(artifact: Artifact, http: socket.socket, settings: Settings) -> None:
    """Until SIGTERM or SIGINT; raises what made it impossible to go on."""
    uvloop.run(_LlmServing(artifact, Vllm(artifact), http, settings).run())
