"""From a backend to open ports and back: start, wait for a signal or a fatal error, drain, leave nothing."""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import uvicorn
import uvloop

from redline.artifact import Artifact
from redline.errors import UsageError
from redline.runtimes.predictor import Backend, Predictor
from redline.runtimes.rest import App, Rest
from redline.tensors import WIRE, Tensor

log = logging.getLogger("redline.serve")
_LINGER_S = 0.5  # after SIGTERM: still answering, unready and closing connections, while balancers look elsewhere
_GRACE_S = 15  # for requests in flight


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    host: str
    http_port: int  # 0: any free one
    grpc_port: int
    max_inflight: int
    max_body: int  # bytes


class _Http(uvicorn.Server):
    """Signals are ours: uvicorn would close its socket at once."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def bind(host: str, port: int) -> socket.socket:
    """The port is taken before anything is loaded."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    taken = socket.socket(family, socket.SOCK_STREAM)
    taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        taken.bind((host, port))
        taken.listen(2048)  # else two servers that are still loading could both have it
    except OSError as e:
        taken.close()
        raise UsageError(f"can't listen on {host}:{port}: {e.strerror}; name another port (0: any free one)") from e
    return taken


def import_kserve() -> ModuleType:
    """kserve.model_server reads sys.argv when imported: ours is not for it."""
    argv, sys.argv = sys.argv, sys.argv[:1]
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")  # Triton's guard is forked, and executes at once
    warnings.filterwarnings("ignore", message="ORJSONResponse is deprecated")  # KServe's choice
    try:
        import kserve
        import kserve.model_server
    finally:
        sys.argv = argv
    for name in ("kserve", "kserve.trace", "uvicorn.error"):
        logging.getLogger(name).setLevel(logging.WARNING)
    return kserve  # type: ignore[no-any-return]


def serve(artifact: Artifact, backend: Backend, http: socket.socket, settings: Settings) -> None:
    """Until SIGTERM or SIGINT; raises what made it impossible to go on."""
    uvloop.run(_Serving(artifact, backend, http, settings).run())


class _Serving:
    def __init__(self, artifact: Artifact, backend: Backend, http: socket.socket, settings: Settings) -> None:
        self._backend, self._socket, self._settings = backend, http, settings
        self._predictor = Predictor(artifact, backend, settings.max_inflight)

    async def run(self) -> None:
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        app, servicer = self._kserve()
        http = self._http(app)
        listening = asyncio.create_task(http.serve(sockets=[self._socket]))
        from redline.runtimes import rpc

        host = f"[{self._settings.host}]" if ":" in self._settings.host else self._settings.host
        grpc, grpc_port = await rpc.start(servicer, f"{host}:{self._settings.grpc_port}", self._settings.max_body)
        url = f"http://{host}:{self._socket.getsockname()[1]}/v2/models/{self._predictor.name}"
        line = f"ready: {url} (grpc port {grpc_port})"
        opening = asyncio.create_task(self._predictor.keep_open(lambda: print(line, flush=True)))
        stopping = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait((opening, stopping), return_when=asyncio.FIRST_COMPLETED)
            if not stop.is_set():
                opening.result()  # it only ends by an error
        finally:
            stopping.cancel()
            self._predictor.draining = True
            if stop.is_set():
                await asyncio.sleep(_LINGER_S)
            http.should_exit = True
            await asyncio.gather(listening, grpc.stop(_GRACE_S))
            opening.cancel()
            await asyncio.wait((opening,))
            await self._backend.stop()

    def _kserve(self) -> tuple[Any, Any]:
        """KServe's application (health, metadata, metrics), and its gRPC servicer with our inference."""
        kserve = import_kserve()
        from kserve.metrics import PREDICT_HIST_TIME
        from kserve.protocol.rest.server import RESTServer

        from redline.runtimes.rpc import Servicer

        predictor = self._predictor
        predictor.observe = PREDICT_HIST_TIME.labels(model_name=predictor.name).observe

        class Model(kserve.Model):  # type: ignore[misc,name-defined]
            """What KServe's registry knows of the model; inference never comes this way."""

            async def healthy(self) -> bool:
                return predictor.unready is None

            def get_input_types(self) -> list[dict[str, Any]]:
                return [_metadata(t) for t in predictor.inputs]

            def get_output_types(self) -> list[dict[str, Any]]:
                return [_metadata(t) for t in predictor.outputs]

        server = kserve.ModelServer(http_port=self._settings.http_port, enable_grpc=False, enable_latency_logging=False)
        model = Model(predictor.name)
        model.ready = True  # readiness is Rest's and Servicer's to tell
        server.register_model(model)
        RESTServer("", server.dataplane, server.model_repository_extension, 0).create_application()
        return kserve.model_server.app, Servicer(predictor, server.dataplane, server.model_repository_extension)

    def _http(self, app: App) -> _Http:
        front = Rest(self._predictor, app, self._settings.max_body)
        return _Http(
            uvicorn.Config(
                front,
                http="httptools",
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=65,
                timeout_graceful_shutdown=_GRACE_S,
            )
        )


def _metadata(tensor: Tensor) -> dict[str, Any]:
    return {"name": tensor.name, "datatype": WIRE[tensor.dtype], "shape": [-1, *tensor.row_shape]}
