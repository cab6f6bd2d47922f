"""A Triton of our own as the predictor's backend."""

import asyncio
import logging
import shutil
import tempfile
import time
from pathlib import Path

from redline.artifact import Artifact
from redline.errors import MissingError, RedlineError
from redline.model_repo_templates.render import render_triton
from redline.runtimes import triton
from redline.runtimes.predictor import NotReadyError
from redline.runtimes.triton_wire import Client
from redline.tensors import Arrays

log = logging.getLogger("redline.serve")
_START_S = 120.0
_ANSWER_S = 10.0  # a Triton that takes longer is stuck


class TritonHop:
    """Runs over a repository rendered for it; while it is dead, requests get 503."""

    def __init__(self, artifact: Artifact, instances: int = 1) -> None:
        self._artifact, self._instances = artifact, instances
        self._server: triton.Triton | None = None

    async def start(self) -> None:
        install = await asyncio.to_thread(triton.find)
        folder = Path(tempfile.mkdtemp(prefix="redline-triton-"))
        try:
            render_triton(self._artifact, folder / "repository", instances=self._instances)
            server = triton.Triton(install, folder)
            await server.start()
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        self._server = server
        manifest = self._artifact.manifest
        self._client = Client(server.port, manifest.name, manifest.outputs)
        deadline = time.monotonic() + _START_S
        while not await self._client.is_ready():
            if server.exit_code is not None or time.monotonic() > deadline:
                raise MissingError(
                    f"Triton did not start (exit code {server.exit_code}); its log ends:\n{server.tail()}"
                )
            await asyncio.sleep(0.05)

    async def ended(self) -> str:
        if self._server is None:
            raise RuntimeError("ended() before start()")
        code = await self._server.ended()
        log.error("Triton ended with exit code %s; its log ends:\n%s", code, self._server.tail())
        await self.stop()
        return f"Triton ended with exit code {code}"

    async def infer(self, arrays: Arrays) -> Arrays:
        server = self._server
        try:
            async with asyncio.timeout(_ANSWER_S):
                status, answers = await self._client.infer(arrays)
        except TimeoutError:
            self._kill(server)
            raise NotReadyError(f"Triton gave no answer in {_ANSWER_S:.0f} s and is started again") from None
        except OSError as e:
            raise NotReadyError(f"Triton gave no answer: {e}") from e
        if isinstance(answers, dict):
            return answers
        if "Stub process" in answers:  # then every request fails, and yet it calls itself ready
            self._kill(server)
        if "Stub process" in answers or status == 503:
            raise NotReadyError(f"Triton: {answers}")
        raise RedlineError(f"Triton: {answers}")

    def _kill(self, server: triton.Triton | None) -> None:
        if server is not None and server is self._server:
            server.kill()

    async def stop(self) -> None:
        if self._server is not None:
            server, self._server = self._server, None
            self._client.close()
            await server.stop()
