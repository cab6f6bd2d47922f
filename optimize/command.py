"""`redline optimize JOB`: the whole road up to a proven artifact."""

import argparse
import dataclasses
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from redline.artifact import writing
from redline.errors import BrokenError, missing_extra
from redline.machine import cache_folder

if TYPE_CHECKING:
    from redline.optimize.job import Job


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("job", type=Path, metavar="JOB", help="Python file with `job = Job(...)`")
    parser.add_argument(
        "--recipes", default="auto", metavar="auto|all|NAME,...", help="which recipes to try (default: auto)"
    )
    parser.add_argument("--p99", metavar="50ms", help="the red line; default: the job's")
    parser.add_argument("--rate", type=float, metavar="R", help="requests/s of the proof; default: the job's")
    parser.add_argument("--rows", type=int, metavar="N", help="rows in a request; default: the job's")
    parser.add_argument("--max-drop", type=float, metavar="X", help="largest loss of the metric; default: the job's")
    parser.add_argument(
        "--target", default="cpu", metavar="cpu|cuda:sm_86", help="a GPU's engine is built here, and measured there"
    )
    parser.add_argument("--no-prove", action="store_true", help="skip the load test; the artifact says `unproven`")
    parser.add_argument("--fresh", action="store_true", help="redo every step, cached or not")
    parser.add_argument("--out", type=Path, metavar="DIR", help="new folder (default: out/JOB-1, -2, ...)")
    parser.add_argument(
        "--baseline", type=Path, metavar="DIR", help="also write the unoptimized model, to serve and compare"
    )
    parser.add_argument("--json", action="store_true", help="print the leaderboard as JSON")


def run(args: argparse.Namespace) -> int:
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
        import torch  # noqa: F401
    except ModuleNotFoundError as e:
        raise missing_extra("optimize", f"`redline optimize` (here: {e.name})") from e
    from redline.optimize import ending
    from redline.optimize.build import Cache, Source
    from redline.optimize.job import Job, load_job
    from redline.optimize.passes.tensorrt import require_library
    from redline.optimize.progress import Progress
    from redline.optimize.recipe import auto_recipes, choose
    from redline.optimize.road import Road

    found = load_job(args.job)
    _let_servers_find(args.job.parent)
    if not isinstance(found, Job):
        from redline.optimize.llm import run as run_language_job

        return run_language_job(found, args)
    job = _with_overrides(found, args)
    recipes = choose(args.recipes, job.recipes, auto_recipes(args.target, job.sla), finetune=job.finetune is not None)
    if args.target != "cpu":
        require_library()
        args.no_prove = True  # no such device here
    fused = any(recipe.kind == "fused" for recipe in recipes)
    steps = 1 + (args.target == "cpu") + (not args.no_prove) + fused  # source model, latency, proof, hand tuning
    out = args.out or _next_folder(Path("out"), job.name)
    with writing(out) as folder, Progress(len(recipes) + steps) as progress:
        cache = Cache(cache_folder() / "steps", fresh=args.fresh)
        road = Road(Source(job, args.job), cache, progress.step, shlex.join(["redline", *sys.argv[1:]]), args.target)
        outcome = road.walk(recipes, with_proof=not args.no_prove)
        if args.baseline:
            road.write_baseline(args.baseline, outcome.board)
        if outcome.winner is None:
            rejected = out.with_name(f"{out.name}.rejected")
            road.write_rejection(rejected, outcome)
            ending.print_rejection(outcome, rejected, as_json=args.json)
            missing = [entry.missing for entry in outcome.board.entries if entry.missing]
            if len(missing) == len(outcome.board.entries):
                raise missing[0]
            raise BrokenError("no candidate kept the gate; no artifact was written")
        road.write(folder, outcome)
    ending.print_outcome(outcome, out, as_json=args.json)
    return outcome.exit_code


def _let_servers_find(folder: Path) -> None:
    """The servers of the proof import the job's own modules (its model, its hooks)."""
    paths = [str(folder.resolve()), os.environ.get("PYTHONPATH")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))


def _with_overrides(job: "Job", args: argparse.Namespace) -> "Job":
    asked = {"p99": args.p99, "rate": args.rate, "rows": args.rows}
    sla = dataclasses.replace(job.sla, **{k: v for k, v in asked.items() if v is not None})
    gate = job.gate if args.max_drop is None else dataclasses.replace(job.gate, max_drop=args.max_drop)
    return dataclasses.replace(job, sla=sla, gate=gate)


def _next_folder(parent: Path, name: str) -> Path:
    number = 1
    while (parent / f"{name}-{number}").exists():
        number += 1
    return parent / f"{name}-{number}"
