"""One model behind admission: is it ready, is there room, does the request fit; then its backend answers."""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any, Protocol

from redline import hooks
from redline.artifact import Artifact
from redline.errors import BrokenError, RedlineError
from redline.runtimes.readiness import replay
from redline.tensors import Arrays, Tensor, check_request
from redline.verdict import Verdict

_RESTARTS = 3  # of a Triton that died; after that the process exits with 1, for its supervisor to see
log = logging.getLogger("redline.serve")


class NotReadyError(RedlineError):
    """503, UNAVAILABLE: no answer rather than a wrong one."""


class OverloadedError(RedlineError):
    """429, RESOURCE_EXHAUSTED: shed early, come back in a second."""


class Backend(Protocol):
    """What computes: the embedded engine's Batcher, or the hop to Triton."""

    async def start(self) -> None:
        """Load; raises what went wrong."""
        ...

    async def infer(self, arrays: Arrays) -> Arrays: ...

    async def ended(self) -> str:
        """Returns why, once it can't answer any more and may be started again; else never."""
        ...

    async def stop(self) -> None: ...


class Predictor:
    """Not ready while `reason` says why; `observe` gets the seconds of every answered request."""

    def __init__(self, artifact: Artifact, backend: Backend, max_inflight: int) -> None:
        manifest = artifact.manifest
        self.name, self.artifact = manifest.name, artifact
        self.reason: str | None = "loading"
        self.draining = False
        self.inflight = 0
        self.observe: Callable[[float], Any] = lambda seconds: None
        self._backend, self._max_inflight = backend, max_inflight
        self._before = hooks.resolve(manifest.preprocess) if manifest.preprocess else None
        self._after = hooks.resolve(manifest.postprocess) if manifest.postprocess else None
        # A hook that changes what travels says so: `function.inputs` (or `.outputs`), a tuple of Tensor.
        self.inputs: tuple[Tensor, ...] = getattr(self._before, "inputs", manifest.inputs)
        self.outputs: tuple[Tensor, ...] = getattr(self._after, "outputs", manifest.outputs)

    async def keep_open(self, tell: Callable[[], None]) -> None:
        """Load, warm up, replay, tell; and again when the backend ends, a bounded number of times.

        A replay that does not match leaves the server up and not ready.
        """
        for _ in range(1 + _RESTARTS):
            await self._backend.start()
            self.reason = "replaying golden requests"
            try:
                verdict = await replay(self.artifact, self._backend.infer)
            except RedlineError as e:
                verdict = Verdict(False, f"golden requests were not answered: {e}")
            self.reason = None if verdict else verdict.why
            if verdict:
                tell()
            else:
                log.error("not ready: %s", verdict.why)
            self.reason = await self._backend.ended()
        raise BrokenError(f"{self.reason}; it was started again {_RESTARTS} times, giving up")

    @property
    def unready(self) -> str | None:
        """Why new requests should go elsewhere; those that come while it drains are still answered."""
        return self.reason or ("stopping" if self.draining else None)

    def check_open(self) -> None:
        """Before a body is read: refuse what could not be answered anyway."""
        if self.reason is not None:
            raise NotReadyError(f"model {self.name} is not ready: {self.reason}")
        if self.inflight >= self._max_inflight:
            raise OverloadedError(f"{self.inflight} requests in flight, the most that {self.name} takes; retry")

    async def infer(self, arrays: Arrays) -> Arrays:
        """Answers to a request that has just come off the wire.

        Raises:
            RequestError: it does not fit the model.
            NotReadyError, OverloadedError: not now.
        """
        self.check_open()
        check_request(self.inputs, arrays, self.artifact.manifest.max_rows)
        started = time.perf_counter()
        self.inflight += 1
        try:
            if self._before is not None:
                arrays = await asyncio.to_thread(self._before, arrays)
                check_request(self.artifact.manifest.inputs, arrays, self.artifact.manifest.max_rows)
            answers = await self._backend.infer(arrays)
            if self._after is not None:
                answers = await asyncio.to_thread(self._after, answers)
        finally:
            self.inflight -= 1
        self.observe(time.perf_counter() - started)
        return answers
