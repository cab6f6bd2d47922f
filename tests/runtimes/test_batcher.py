import asyncio
import threading
from collections.abc import Coroutine
from typing import Any

import numpy as np
import pytest

from redline.errors import RedlineError, UsageError
from redline.runtimes.batcher import Batcher
from redline.tensors import Arrays, Tensor

OUTPUTS = (Tensor(name="y", dtype="float32", shape=("rows",)),)


class Doubler:
    """Waits until it is told to go; refuses rows of 13."""

    def __init__(self) -> None:
        self.go, self.began, self.batches = threading.Event(), threading.Event(), list[list[float]]()

    def infer(self, inputs: Arrays) -> Arrays:
        self.batches.append(inputs["x"].tolist())
        self.began.set()
        assert self.go.wait(10)
        if 13 in inputs["x"]:
            raise ValueError("unlucky")
        return {"y": inputs["x"] * 2}


def rows(*values: float) -> Arrays:
    return {"x": np.array(values, np.float32)}


def play(max_rows: int, scene: Any) -> Doubler:
    async def whole() -> None:
        batcher = Batcher(lambda: engine, OUTPUTS, max_rows)
        await batcher.start()
        try:
            await asyncio.wait_for(scene(batcher, engine), 20)
        finally:
            engine.go.set()
            await batcher.stop()

    engine = Doubler()
    asyncio.run(whole())
    return engine


async def waiting(batcher: Batcher, engine: Doubler, *requests: Arrays) -> list["asyncio.Task[Arrays]"]:
    """The first is being computed, the others wait behind it."""
    tasks = [asyncio.create_task(batcher.infer(requests[0]))]
    while not engine.began.is_set():
        await asyncio.sleep(0.001)
    tasks += [asyncio.create_task(batcher.infer(r)) for r in requests[1:]]
    await asyncio.sleep(0.01)
    return tasks


@pytest.mark.parametrize(
    ("max_rows", "batches"),
    [(4, [[1], [2, 3, 4], [5, 6]]), (0, [[1], [2], [3, 4], [5, 6]]), (1, [[1], [2], [3, 4], [5, 6]])],
)
def test_takes_what_waits_up_to_its_rows(max_rows: int, batches: list[list[float]]) -> None:
    async def scene(batcher: Batcher, engine: Doubler) -> None:
        tasks = await waiting(batcher, engine, rows(1), rows(2), rows(3, 4), rows(5, 6))
        engine.go.set()
        assert [a["y"].tolist() for a in await asyncio.gather(*tasks)] == [[2], [4], [6, 8], [10, 12]]

    assert play(max_rows, scene).batches == batches


def test_a_poisonous_request_fails_alone() -> None:
    async def scene(batcher: Batcher, engine: Doubler) -> None:
        tasks = await waiting(batcher, engine, rows(1), rows(2), rows(13), rows(3))
        engine.go.set()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(answers.pop(2), ValueError)
        assert [a["y"].tolist() for a in answers if isinstance(a, dict)] == [[2], [4], [6]]

    assert play(8, scene).batches == [[1], [2, 13, 3], [2], [13], [3]]


def test_cancelled_requests_are_not_computed() -> None:
    async def scene(batcher: Batcher, engine: Doubler) -> None:
        tasks = await waiting(batcher, engine, rows(1), rows(2), rows(3))
        tasks[1].cancel()
        await asyncio.sleep(0.01)
        engine.go.set()
        await asyncio.gather(*tasks, return_exceptions=True)

    assert play(8, scene).batches == [[1], [3]]


def test_an_answer_of_another_shape_is_an_error() -> None:
    class Wrong:
        def infer(self, inputs: Arrays) -> Arrays:
            return {"y": np.zeros(7, np.float32)}

    async def scene() -> None:
        batcher = Batcher(Wrong, OUTPUTS, 0)
        await batcher.start()
        with pytest.raises(RedlineError, match=r"wanted float32 \[1\], the engine gave float32 \[7\]"):
            await batcher.infer(rows(1))
        await batcher.stop()

    asyncio.run(scene())


def test_start_raises_what_loading_raised() -> None:
    def load() -> Any:
        raise UsageError("no such engine")

    coroutine: Coroutine[Any, Any, None] = Batcher(load, OUTPUTS, 0).start()
    with pytest.raises(UsageError, match="no such engine"):
        asyncio.run(coroutine)
