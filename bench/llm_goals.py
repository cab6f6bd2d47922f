"""What does the predictor cost a language model? `python -m redline.bench.llm_goals ARTIFACT`.

One vLLM, asked in turns through the predictor and at its own private port: nothing else differs.
"""

import argparse
import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from redline import artifact
from redline.bench.goals import _EXIT, _MISSED, _NO_RESULT, Figure, judge_goal, read_goals
from redline.bench.stats import quantile_interval_ms, quantile_ms, ratio_interval
from redline.bench.tokens import serving
from redline.errors import MeasurementError, RedlineError, UsageError

_GOALS = Path(__file__).with_name("goals_llm.toml")
_ROUNDS, _ALONE, _TOKENS = 10, 60, 24


def _private_port() -> int:
    """vLLM's, from its command line: it is a descendant of ours."""
    import psutil

    for child in psutil.Process().children(recursive=True):
        words = child.cmdline()
        if "--served-model-name" in words:
            return int(words[words.index("--port") + 1])
    raise MeasurementError("no vLLM among this process's descendants")


def _ask(model: str, number: int) -> dict[str, Any]:
    """Every request starts with words of its own, so that no prefix is cached."""
    words = " ".join(f"{(number * 7919 + i * 104729) % 9973}" for i in range(12))
    text = f"{words}. Tell me a long story about these numbers."
    ask = {"model": model, "messages": [{"role": "user", "content": text}], "stream": True, "ignore_eos": True}
    return ask | {"max_tokens": _TOKENS, "temperature": 0, "stream_options": {"include_usage": True}}


async def _stream_ns(client: httpx.AsyncClient, url: str, ask: dict[str, Any]) -> int:
    """Until the first token, which is the second event: the first one only names the role."""
    start, first, events, last = time.perf_counter_ns(), 0, 0, ""
    async with client.stream("POST", f"{url}/v1/chat/completions", json=ask) as answer:
        async for line in answer.aiter_lines():
            if line.startswith("data: {"):
                events, last = events + 1, line[6:]
            if events == 2 and not first:
                first = time.perf_counter_ns()
    if answer.status_code != 200 or json.loads(last)["usage"]["completion_tokens"] != _TOKENS:
        raise MeasurementError(f"{url}: status {answer.status_code}, wanted {_TOKENS} tokens, got {last[-200:]}")
    return first - start


async def _measured(model: str, urls: list[str], streams: int) -> tuple[list[list[int]], list[list[int]]]:
    """(ns of a round of `streams` at once, TTFT ns at one stream) of each URL, in turns."""
    rounds, alone = [list[int]() for _ in urls], [list[int]() for _ in urls]
    number = 0
    async with httpx.AsyncClient(timeout=300, trust_env=False) as client:
        for turn in range(1 + _ROUNDS):
            for i in (0, 1) if turn % 2 else (1, 0):
                asks = [_ask(model, number := number + 1) for _ in range(streams)]
                start = time.perf_counter_ns()
                await asyncio.gather(*(_stream_ns(client, urls[i], ask) for ask in asks))
                if turn:  # the first only warms up
                    rounds[i].append(time.perf_counter_ns() - start)
        for turn in range(_ALONE):
            for i in (0, 1) if turn % 2 else (1, 0):
                alone[i].append(await _stream_ns(client, urls[i], _ask(model, number := number + 1)))
    return rounds, alone


def figures(path: Path) -> dict[str, Figure]:
    found = artifact.load(path)
    if found.manifest.kind != "llm":
        raise UsageError(f"{path} is of kind {found.manifest.kind!r}, wanted a language model's artifact")
    with serving(found) as url:
        urls = [url, f"http://127.0.0.1:{_private_port()}"]
        streams = int(found.manifest.serving["max_inflight"])
        rounds, alone = asyncio.run(_measured(found.manifest.name, urls, streams))
    (ours, bare), (mine, its) = (np.array(pair, np.int64) for pair in (rounds, alone))
    extra, test = mine - its, found.manifest.metric["test"]
    rise = test["candidate"] / test["source"] - 1
    made: dict[str, Figure] = {
        "tokens_ratio": Figure(*ratio_interval(bare, ours)),
        "ttft_extra_ms": Figure(quantile_ms(extra, 0.5), *quantile_interval_ms(extra, 0.5, 0.975)),
        "perplexity_rise": Figure(rise, rise, rise),
    }
    for name, taken, tokens in (("predictor", ours, mine), ("vllm", bare, its)):
        speed = streams * _TOKENS / float(np.median(taken)) * 1e9
        ttft = quantile_ms(tokens, 0.5)
        made |= {f"tokens_per_s_{name}": Figure(speed, speed, speed), f"ttft_p50_ms_{name}": Figure(ttft, ttft, ttft)}
    return made


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("artifact", type=Path)
    try:
        found = figures(parser.parse_args().artifact)
    except RedlineError as e:
        print(f"llm_goals: {e}", file=sys.stderr)
        return e.exit_code
    goals = read_goals(_GOALS)
    verdicts = [judge_goal(goal, found[goal.metric]) for goal in goals]
    for goal, verdict in zip(goals, verdicts, strict=True):
        f = found[goal.metric]
        words = f"{f.value:.4g} [{f.low:.4g}, {f.high:.4g}]"
        print(f"{verdict:9}  {goal.name}: {words}, wanted {goal.comparison} {goal.value:g}")
    for name in sorted(found.keys() - {goal.metric for goal in goals}):
        print(f"{'beside':9}  {name}: {found[name].value:.4g}")
    return next((_EXIT[v] for v in (_MISSED, _NO_RESULT) if v in verdicts), 0)


if __name__ == "__main__":
    sys.exit(main())
