"""The road of a language model: bf16 and its quantized candidates, gated on perplexity, timed side by side, proven."""

import argparse
import hashlib
import json
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

from redline import artifact, machine
from redline.artifact import file_sha256, writing
from redline.bench.neighbors import _descendants_s
from redline.bench.serving import free_ports, served
from redline.bench.tokens import TokenReport, measure, placed, serving
from redline.errors import MissingError, UsageError
from redline.optimize.build import Cache
from redline.optimize.llm_artifact import serving as serving_options
from redline.optimize.llm_artifact import write
from redline.optimize.llm_board import Board, Candidate
from redline.optimize.llm_job import LanguageJob
from redline.optimize.llm_measure import Asking
from redline.optimize.llm_report import print_outcome
from redline.optimize.passes.llm_quantize import SmoothQuantW8A8, quantize
from redline.optimize.progress import Progress
from redline.runtimes import llm_env
from redline.runtimes.llm_engine import command

_ROUNDS = 10
_GOLDEN_LENGTHS = (4, 9, 17, 33, 64, 127, 200, 384)  # tokens of a prompt: within a block of KV cache, and past it
_TOP = 5  # of its likeliest next tokens
_COLD_S = 400.0


def run(job: LanguageJob, args: argparse.Namespace) -> int:
    if wrong := [flag for flag in ("p99", "rows", "max_drop", "baseline") if getattr(args, flag) is not None]:
        raise UsageError(f"{', '.join('--' + w.replace('_', '-') for w in wrong)}: not for a language job")
    if args.recipes not in ("auto", "all") or getattr(args, "target", "cpu") != "cpu":
        raise UsageError("a language job tries all of its candidates, on this CPU: no --recipes, no --target")
    for name in ("vllm",) if args.no_prove else ("vllm", "guidellm"):
        llm_env.python(name)
    if args.rate is not None:
        job = replace(job, sla=replace(job.sla, rate=args.rate))
    out = args.out or Path("out") / job.name
    with writing(out) as folder, Progress(5 + len(job.quantize)) as progress:
        road = Road(job, args.job, progress, Cache(machine.cache_folder() / "steps", fresh=args.fresh))
        road.walk()
        report = None if args.no_prove else road.prove()
        write(folder, road.board, args.job, road.source_sha256, report)
    print_outcome(road.board.to_json(), report, out, as_json=args.json)
    return report.exit_code if report else 0


class Road:
    def __init__(self, job: LanguageJob, job_file: Path, progress: Progress, cache: Cache) -> None:
        self._job, self._job_file, self._step, self._cache = job, job_file, progress.step, cache

    @cached_property
    def source(self) -> Path:
        return self._job.folder()

    @cached_property
    def source_sha256(self) -> str:
        files = [self.source / name for name in ("config.json", "model.safetensors", "tokenizer.json")]
        return hashlib.sha256("".join(map(file_sha256, files)).encode()).hexdigest()

    @cached_property
    def windows(self) -> dict[str, list[list[int]]]:
        try:
            from tokenizers import Tokenizer
        except ImportError as e:
            raise MissingError("a language job needs `pip install 'redline[llm]'`") from e
        tokenizer = Tokenizer.from_file(str(self.source / "tokenizer.json"))
        return {split: self._job.windows(split, tokenizer) for split in ("calibration", "validation", "test")}

    def walk(self) -> None:
        """Build, gate, time; the fastest that keeps the gate wins."""
        with self._step("source model") as say:
            tokens = {split: sum(map(len, w)) for split, w in self.windows.items()}
            say(", ".join(f"{count:,} tokens of {split}" for split, count in tokens.items()))
        candidates = [Candidate("vllm-bf16", (), self.source), *map(self._quantized, self._job.quantize)]
        board = self.board = Board(self._job, candidates)
        with ExitStack() as stack:
            asking = {c.name: stack.enter_context(self._vllm(c)) for c in candidates}
            with self._step("perplexity") as say:
                for candidate in candidates:
                    candidate.perplexity["validation"] = asking[candidate.name].perplexity(self.windows["validation"])
                    candidate.gate = board.judge(candidate)
                    say(f"{candidate.name} {candidate.gate.why} …")
            with self._step("tokens/s, interleaved") as say:
                self._race(asking)
                say(", ".join(f"{c.name} {board.tokens_per_s(c):.0f}/s" for c in candidates))
            with self._step(f"{board.winner.name}: golden") as say:
                self._make_golden(asking)
                for candidate in {c.name: c for c in (board.source, board.winner)}.values():
                    candidate.perplexity["test"] = asking[candidate.name].perplexity(self.windows["test"])
                say(f"{len(board.winner.golden)} prompts; test perplexity {board.winner.perplexity['test']:.2f}")

    def _quantized(self, config: SmoothQuantW8A8) -> Candidate:
        kept = "" if config == SmoothQuantW8A8() else f"-a{config.alpha:g}-{'-'.join(config.keep) or 'all'}"
        name = f"vllm-w8a8-smoothquant{kept}"
        key = {
            "pass": type(config).__name__,
            "config": asdict(config),
            "source": self.source_sha256,
            "windows": hashlib.sha256(json.dumps(self.windows["calibration"]).encode()).hexdigest(),
            "code": machine.code_sha256("optimize/passes/llm_quantize.py"),
        }
        with self._step(name) as say:
            notes: list[str] = []

            def make(scratch: Path) -> None:
                verdict = quantize(config, self.source, self.windows["calibration"], scratch / "model", say)
                notes.append(verdict.why)

            folder = self._cache.step(key, make)
            say(notes[0] if notes else "cached")
        return Candidate(name, (config,), folder / "model")

    @contextmanager
    def _vllm(self, candidate: Candidate) -> Iterator[Asking]:
        (port,) = free_ports(1)
        argv = command(candidate.folder, self._job.name, port, serving_options(self._job))
        with served(argv, f"http://127.0.0.1:{port}/health", timeout_s=_COLD_S):
            yield Asking(f"http://127.0.0.1:{port}", self._job.name)

    def _race(self, asking: dict[str, Asking]) -> None:
        """All candidates on the same prompts in every round; the order turns, the first round only warms up."""
        pool = [token for window in self.windows["validation"] for token in window]
        size, streams = self._job.sla.prompt_tokens, self._job.streams
        for turn in range(1 + _ROUNDS):
            starts = [(turn * streams + i) * size % (len(pool) - size) for i in range(streams)]
            prompts = [pool[start : start + size] for start in starts]
            at = turn % len(self.board.candidates)
            for candidate in (*self.board.candidates[at:], *self.board.candidates[:at]):
                _await_idle()
                before = _descendants_s()
                took = asking[candidate.name].generate_ns(prompts, self._job.sla.output_tokens)
                if turn:
                    candidate.round_ns.append(took)
                    candidate.cpu_ns.append(round((_descendants_s() - before) * 1e9))

    def _make_golden(self, asking: dict[str, Asking]) -> None:
        """Prompts, their likeliest next tokens, and both models' logprobs of those."""
        winner, source = self.board.winner, self.board.source
        pairs = zip(self.windows["validation"], _GOLDEN_LENGTHS, strict=False)
        prompts = [window[:length] for window, length in pairs]
        alone = asking[winner.name].first_tokens(prompts)
        among = asking[winner.name].first_tokens(prompts, len(prompts))
        before = asking[source.name].first_tokens(prompts)
        for prompt, a, b, s in zip(prompts, alone, among, before, strict=True):
            top = [token for token in a if token in b and token in s][:_TOP]
            winner.moved = max([winner.moved, *(abs(a[t] - b[t]) for t in top)])
            logprobs = {"logprobs": [a[t] for t in top], "source": [s[t] for t in top]}
            winner.golden.append({"tokens": prompt, "top": top, **logprobs})

    def prove(self) -> TokenReport:
        """The winner behind the predictor, as `redline serve` would, under guidellm's open-loop load."""
        with self._step(f"proof of {self.board.winner.name}") as say, TemporaryDirectory(prefix="redline-") as folder:
            trial = Path(folder) / "trial"
            trial.mkdir()
            write(trial, self.board, self._job_file, self.source_sha256, None, "not yet")
            say(f"{self._job.sla.words} …")
            cpus, placement = placed()
            sla, seconds = self._job.sla, self._job.sla.seconds_needed()
            with serving(artifact.load(trial)) as url:
                report = measure(
                    url, self._job.name, self.source, sla, duration_s=seconds, placement=placement, cpus=cpus
                )
            say(f"{report.status}: {report.why}")
        return report


def _await_idle() -> None:
    """vLLM's worker spins on its core for a while after its last step, which the next one would be charged for."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        before = _descendants_s()
        time.sleep(0.2)
        if _descendants_s() - before < 0.04:
            return
