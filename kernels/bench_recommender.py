"""The whole recommender beside its rivals, `python -m redline.kernels.bench_recommender`.

Every automatic recipe and torch.compile against the fused ones, on two models: a synthetic DLRM of 26 tables and the
trained one of examples/recommender. A candidate counts only where it is as accurate as asked; the rival of a size is
the quickest automatic candidate there. Process CPU time of one thread, rounds interleaved, medians.
"""

import copy
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from redline import machine
from redline.bench.goals import Figure, judge_goals, read_goals
from redline.bench.stats import ratio_interval
from redline.errors import GraphError, MeasurementError, MissingError, RedlineError
from redline.kernels import build as build_kernels
from redline.kernels.fused_mlp.native import Peak
from redline.kernels.fused_recommender import job as synthetic
from redline.optimize.build import Cache, Source, build
from redline.optimize.job import Job, load_job
from redline.optimize.latency import Times, measure
from redline.optimize.recipe import AUTO, BASELINE, EXPERT, Recipe
from redline.runtimes import engines
from redline.runtimes.engines import Engine
from redline.tensors import Arrays, largest_gap
from redline.verdict import Verdict

ROWS = (1, 100, 512)
_OURS = "native-int8-fused"
_COMPILED = ("fp32", "bf16")
_MOVIELENS = Path(__file__).resolve().parents[1] / "examples" / "recommender" / "job.py"
_CORRELATION, _MEAN, _WORST = 0.995, 0.01, 0.05  # least, largest, largest: against fp32 over 65,536 rows
_WORST_BY_METRIC = 0.2  # on a timed input, where a metric has judged


class Compiled:
    """torch.compile, a graph for each number of rows. Raises MissingError for bf16 where the CPU would emulate it."""

    def __init__(self, source: Source, precision: str) -> None:
        import torch

        if precision == "bf16" and machine.weaker(machine.isa(), "avx512_vnni_bf16"):
            raise MissingError(f"bf16 needs a CPU with AVX512_BF16, this one has {machine.isa()}")
        torch._dynamo.config.recompile_limit = 64  # past it torch.compile runs eagerly, with a warning
        torch._dynamo.config.fail_on_recompile_limit_hit = True
        self._torch, self._dtype = torch, torch.bfloat16 if precision == "bf16" else torch.float32
        self._inputs, (self._output,) = [t.name for t in source.job.inputs], source.job.outputs
        self._run = torch.compile(copy.deepcopy(source.module).to(self._dtype), dynamic=False)

    def infer(self, inputs: Arrays) -> Arrays:
        given = [self._torch.from_numpy(inputs[name]) for name in self._inputs]
        with self._torch.inference_mode():
            answer = self._run(*(x.to(self._dtype) if x.is_floating_point() else x for x in given))
        return {self._output: answer.float().numpy()}


def judge_synthetic(engine: Engine) -> Verdict:
    arrays, wanted = synthetic.answered(2)
    blocks = np.split(np.arange(len(wanted)), len(wanted) // ROWS[-1])
    have = np.concatenate([engine.infer({k: a[rows] for k, a in arrays.items()})["score"] for rows in blocks])
    gap, correlation = np.abs(have - wanted), float(np.corrcoef(have, wanted)[0, 1])
    ok = correlation >= _CORRELATION and gap.mean() <= _MEAN and gap.max() <= _WORST
    return Verdict(bool(ok), f"correlation {correlation:.4f}, mean {gap.mean():.4f}, worst {gap.max():.3f}")


def judge_by_metric(job: Job) -> Callable[[Engine], Verdict]:
    before: list[float] = []

    def judge(engine: Engine) -> Verdict:
        score = job.score(engine.infer, "validation")
        before.append(score)  # the source model is judged first
        drop = before[0] - score
        return Verdict(drop <= job.gate.max_drop, f"{job.metric} {score:.4f}, drop {drop:+.4f}")

    return judge


def subjects(source: Source, cache: Cache) -> dict[str, Callable[[], Engine]]:
    def candidate(recipe: Recipe) -> Engine:
        return engines.load(recipe.engine, build(recipe, source, cache).model, recipe.options)

    found: dict[str, Callable[[], Engine]] = {r.name: partial(candidate, r) for r in (BASELINE, *AUTO, *EXPERT)}
    return found | {f"torch-compile-{precision}": partial(Compiled, source, precision) for precision in _COMPILED}


def admitted(
    source: Source,
    cache: Cache,
    judge: Callable[[Engine], Verdict],
    requests: Mapping[int, list[Arrays]],
    worst: float,
) -> dict[str, Engine]:
    """Candidates of like accuracy, the source model first; says why each other is none. worst: the most that one may be
    off on a timed input.

    Raises:
        MeasurementError: a fused one is not, or one answers a timed input in another shape or far off.
    """
    found = dict[str, Engine]()
    (output,) = source.job.outputs
    for name, load in subjects(source, cache).items():
        try:
            engine = load()
        except (GraphError, MissingError) as e:
            if name == _OURS:
                raise
            print(f"  {name:24} {e}")
            continue
        judged = judge(engine)
        print(f"  {name:24} {judged.why}{'' if judged.ok else ': too far off to be compared'}", flush=True)
        if judged.ok:
            found[name] = engine
        elif name in {r.name for r in EXPERT}:
            raise MeasurementError(f"{name} is not as accurate as asked: {judged.why}")
    for name, engine in found.items():
        for request in (request for pool in requests.values() for request in pool):
            have, want = engine.infer(request)[output], found[BASELINE.name].infer(request)[output]
            gap = largest_gap(have, want) if have.shape == want.shape else np.inf
            if not gap <= worst:
                raise MeasurementError(f"{name} answers {list(have.shape)}, wanted {list(want.shape)}; {gap:.2g} off")
    return found


def figures_of(model: str, times: Mapping[str, Times]) -> dict[str, Figure]:
    """How many times quicker than the quickest automatic candidate of that size; in bf16, than OpenVINO's."""
    found, expert = {}, {r.name for r in EXPERT}
    for rows in ROWS:
        rival = min(times.keys() - expert, key=lambda name: float(np.median(times[name][rows])))
        for name in sorted(times.keys() & expert):
            ratio = ratio_interval(times[rival][rows], times[name][rows])
            found[f"{model}_{name.replace('-', '_')}_{rows}"] = Figure(*ratio)
        if {"openvino-bf16", "native-bf16-fused"} <= times.keys():
            ratio = ratio_interval(times["openvino-bf16"][rows], times["native-bf16-fused"][rows])
            found[f"{model}_bf16_over_openvino_{rows}"] = Figure(*ratio)
    return found


def peak_shares(times: Mapping[str, Times], peak: Peak) -> dict[str, Figure]:
    """Of the whole synthetic forward in INT8: the time that its multiply-adds need on registers alone, over its own."""
    found = {}
    for rows in ROWS if peak.operations else ():
        share = ratio_interval(times["peak"][rows], times[_OURS][rows])
        per = synthetic.OPERATIONS * rows / peak.operations
        found[f"synthetic_peak_share_{rows}"] = Figure(*(x * per for x in share))
    return found


def table(times: Mapping[str, Times]) -> str:
    us = {name: [float(np.median(found[rows])) / 1e3 for rows in ROWS] for name, found in times.items()}
    ranked = sorted(us.items(), key=lambda line: line[1][-1])
    head = f"  {'us':24}" + "".join(f"{rows:>6} rows" for rows in ROWS)
    return "\n".join([head, *(f"  {name:24}" + "".join(f"{t:11.1f}" for t in found) for name, found in ranked)])


def compare(
    model: str, source: Source, cache: Cache, judge: Callable[[Engine], Verdict], worst: float, peak: Peak
) -> dict[str, Figure]:
    requests = {rows: source.job.real_requests(8, rows) for rows in ROWS}
    print(f"{model}: what each loses, and whether it is compared", flush=True)
    running = admitted(source, cache, judge, requests, worst)
    times = measure(running | {"peak": peak}, requests, rounds=100)
    shares = peak_shares(times, peak) if model == "synthetic" else {}
    del times["peak"]
    print(table(times), flush=True)
    return figures_of(model, times) | shares


def main() -> int:
    try:
        here: Any = machine.conditions()
        print(f"whole recommenders; {here['cpu']}, {here['isa']}; one thread, CPU time")
        cache, peak = Cache(machine.cache_folder() / "steps"), Peak(build_kernels.library(build_kernels.strongest()))
        source = Source(synthetic.job, Path(synthetic.__file__))
        found = compare("synthetic", source, cache, judge_synthetic, _WORST, peak)
        job = load_job(_MOVIELENS)
        assert isinstance(job, Job)
        source = Source(job, _MOVIELENS)
        found |= compare("movielens", source, cache, judge_by_metric(job), _WORST_BY_METRIC, peak)
        return judge_goals(found, read_goals(suite="recommender"))
    except RedlineError as e:
        print(f"kernels: {e}", file=sys.stderr)
        return e.exit_code


if __name__ == "__main__":
    sys.exit(main())
