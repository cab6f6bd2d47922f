"""Latency of the survivors and of the unoptimized model, interleaved on the same inputs.

The clock is the process's CPU time on one thread: wall time on a shared machine measures the neighbors.
"""

import gc
import time
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from redline.runtimes.engines import Engine
from redline.tensors import Arrays

_SLICE_ROWS = 400  # small requests repeat within a timed slice, up to about this many rows
Times = dict[int, NDArray[np.int64]]  # rows → [rounds], ns a request


def measure(
    engines: Mapping[str, Engine],
    requests: Mapping[int, list[Arrays]],
    *,
    rounds: int = 60,
    tick: Callable[[], None] = lambda: None,
) -> dict[str, Times]:
    """CPU ns a request: {engine: {rows: [rounds]}}. Every round runs all on the same requests."""
    names = list(engines)
    for engine in engines.values():
        for pool in requests.values():
            for request in pool:
                engine.infer(request)
    spent = {name: {rows: np.zeros(rounds, np.int64) for rows in requests} for name in names}
    gc.disable()
    try:
        for turn in range(rounds):
            order = names[turn % len(names) :] + names[: turn % len(names)]
            for rows, pool in requests.items():
                chosen = [pool[(turn + i) % len(pool)] for i in range(max(1, min(20, _SLICE_ROWS // rows)))]
                for name in order:
                    infer = engines[name].infer
                    infer(chosen[0])  # brings this engine's weights back into the cache its rival filled
                    start = time.process_time_ns()
                    for request in chosen:
                        infer(request)
                    spent[name][rows][turn] = (time.process_time_ns() - start) // len(chosen)
            tick()
    finally:
        gc.enable()
    return spent
