"""What is asked of a running vLLM: perplexity, the logprobs of first tokens, seconds for many answers at once."""

import asyncio
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from redline.errors import MeasurementError
from redline.runtimes.llm_engine import first_token, top_logprobs

_ANSWER_S = 300.0  # with all others before it


@dataclass(frozen=True, slots=True)
class Asking:
    url: str
    model: str

    def perplexity(self, windows: Sequence[Sequence[int]]) -> float:
        """exp of the mean negative logprob of every token after a window's first; windows: text as tokens."""
        asks = [self._ask(w, max_tokens=1, temperature=0, prompt_logprobs=0) for w in windows]
        total, count = 0.0, 0
        for window, answer in zip(windows, self._all(asks, 1), strict=True):
            rows = answer["choices"][0]["prompt_logprobs"][1:]
            total += sum(row[str(token)]["logprob"] for row, token in zip(rows, window[1:], strict=True))
            count += len(rows)
        return math.exp(-total / count)

    def first_tokens(self, prompts: Sequence[Sequence[int]], at_once: int = 1) -> list[dict[int, float]]:
        """For each prompt: token → logprob of the likeliest next tokens."""
        asks = [first_token(self.model, list(prompt)) for prompt in prompts]
        return [top_logprobs(answer) for answer in self._all(asks, at_once)]

    def generate_ns(self, prompts: Sequence[Sequence[int]], tokens: int) -> int:
        """Until each of `prompts`, all at once, has `tokens` more."""
        asks = [self._ask(prompt, max_tokens=tokens, temperature=0, ignore_eos=True) for prompt in prompts]
        start = time.perf_counter_ns()
        answers = self._all(asks, len(asks))
        took = time.perf_counter_ns() - start
        if short := [a["usage"] for a in answers if a["usage"]["completion_tokens"] != tokens]:
            raise MeasurementError(f"{self.url}: answers of other lengths than {tokens} tokens: {short}")
        return took

    def _ask(self, prompt: Sequence[int], **options: Any) -> dict[str, Any]:
        return {"model": self.model, "prompt": list(prompt), **options}

    def _all(self, asks: list[dict[str, Any]], at_once: int) -> list[dict[str, Any]]:
        return asyncio.run(self._post(asks, at_once))

    async def _post(self, asks: list[dict[str, Any]], at_once: int) -> list[dict[str, Any]]:
        limits = httpx.Limits(max_connections=at_once)
        async with httpx.AsyncClient(base_url=self.url, limits=limits, timeout=_ANSWER_S, trust_env=False) as client:

            async def one(ask: dict[str, Any]) -> dict[str, Any]:
                answer = await client.post("/v1/completions", json=ask)
                if answer.status_code != 200:
                    raise MeasurementError(f"{self.url} answered {answer.status_code}: {answer.text[:500]}")
                found: dict[str, Any] = answer.json()
                return found

            try:
                return list(await asyncio.gather(*(one(ask) for ask in asks)))
            except httpx.TransportError as e:
                raise MeasurementError(f"{self.url} gave no answer: {e!r}") from e
