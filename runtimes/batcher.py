"""The in-process micro-batcher: one worker thread owns the engine and takes what waits, never waiting for more."""

import asyncio
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from redline.errors import RedlineError
from redline.runtimes.engines import Engine
from redline.tensors import Arrays, Tensor

_STOP_S = 5.0  # a load can't be interrupted: past this the thread is left to die with the process


@dataclass(slots=True)
class _Job:
    arrays: Arrays
    rows: int
    answer: asyncio.Future[Arrays]


class Batcher:
    """Answers through an embedded engine, which is loaded and run in one thread of its own.

    A batch that fails is run again one request at a time, so that a poisonous request fails alone.
    """

    def __init__(self, load: Callable[[], Engine], outputs: tuple[Tensor, ...], max_rows: int) -> None:
        """max_rows: in one batch; 0 where requests must not be mixed."""
        self._load, self._outputs, self._max_rows = load, outputs, max_rows
        self._waiting: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._held: _Job | None = None  # taken from the queue, too large for the batch it was taken for
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)

    async def start(self) -> None:
        """Load the engine; raises what loading raised."""
        self._loop = asyncio.get_running_loop()
        self._loaded: asyncio.Future[None] = self._loop.create_future()
        self._thread.start()
        await self._loaded

    async def infer(self, arrays: Arrays) -> Arrays:
        job = _Job(arrays, len(next(iter(arrays.values()))), self._loop.create_future())
        self._waiting.put(job)
        return await job.answer

    async def ended(self) -> str:
        await asyncio.Event().wait()  # the engine lives as long as the process
        return ""

    async def stop(self) -> None:
        self._waiting.put(None)
        if self._thread.is_alive():
            await asyncio.to_thread(self._thread.join, _STOP_S)

    def _work(self) -> None:
        try:
            self._engine = self._load()
        except BaseException as e:  # whatever it was, the caller of start() must hear of it
            self._tell(_fail, [self._loaded], e)
            return
        self._tell(_succeed, [(self._loaded, None)])
        while (job := self._held or self._waiting.get()) is not None:
            self._held = None
            if not job.answer.cancelled():
                self._run(self._join(job))

    def _join(self, first: _Job) -> list[_Job]:
        """first, and every waiting request that fits with it."""
        jobs, rows = [first], first.rows
        while rows < self._max_rows:
            try:
                job = self._waiting.get_nowait()
            except queue.Empty:
                break
            if job is None:
                self._waiting.put(None)
                break
            if job.answer.cancelled():
                continue
            if rows + job.rows > self._max_rows:
                self._held = job
                break
            jobs.append(job)
            rows += job.rows
        return jobs

    def _run(self, jobs: list[_Job]) -> None:
        try:
            answers = [self._infer(jobs[0].arrays, jobs[0].rows)] if len(jobs) == 1 else self._infer_joined(jobs)
        except Exception as e:  # an engine may raise anything; it belongs to these requests alone
            if len(jobs) == 1:
                self._tell(_fail, [jobs[0].answer], e)
            else:
                for job in jobs:
                    self._run([job])
            return
        self._tell(_succeed, [(job.answer, a) for job, a in zip(jobs, answers, strict=True)])

    def _infer_joined(self, jobs: list[_Job]) -> list[Arrays]:
        joined = {name: np.concatenate([job.arrays[name] for job in jobs]) for name in jobs[0].arrays}
        whole = self._infer(joined, sum(job.rows for job in jobs))
        ends = np.cumsum([job.rows for job in jobs]).tolist()
        return [{n: a[end - job.rows : end] for n, a in whole.items()} for job, end in zip(jobs, ends, strict=True)]

    def _infer(self, arrays: Arrays, rows: int) -> Arrays:
        given = self._engine.infer(arrays)
        answers: Arrays = {}
        for spec in self._outputs:
            got = given.get(spec.name)
            if got is None or got.shape != (rows, *spec.row_shape) or got.dtype != spec.dtype:
                what = None if got is None else f"{got.dtype} {list(got.shape)}"
                wanted = f"{spec.dtype} {[rows, *spec.row_shape]}"
                raise RedlineError(f"output {spec.name!r}: wanted {wanted}, the engine gave {what}")
            answers[spec.name] = got
        return answers

    def _tell(self, call: Callable[..., None], *args: object) -> None:
        try:
            self._loop.call_soon_threadsafe(call, *args)
        except RuntimeError:  # the loop has closed: nobody is waiting any more
            return


def _succeed(answers: list[tuple[asyncio.Future[Any], Any]]) -> None:
    for future, answer in answers:
        if not future.done():
            future.set_result(answer)


def _fail(futures: list[asyncio.Future[Arrays]], error: BaseException) -> None:
    for future in futures:
        if not future.done():
            future.set_exception(error)
