"""Write a candidate with its evidence as an artifact: a new folder, whole or not at all."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

from redline import machine
from redline.artifact import Manifest, save_golden, seal
from redline.errors import JobError
from redline.optimize.build import Source
from redline.optimize.judge import INVARIANCE, PARITY, difference, scale
from redline.optimize.prove import Proof
from redline.optimize.search import Entry
from redline.runtimes.engines import Engine
from redline.tensors import Arrays, Tensor, check_request

_GOLDEN_REQUESTS = 16  # of the SLA's size; and one each of 1, 3 and 7 rows


def golden_cases(source: Source, candidate: Engine, baseline: Engine) -> list[tuple[Arrays, Arrays, Arrays]]:
    """Real requests with the candidate's and the source model's answers."""
    job = source.job
    requests = job.real_requests(_GOLDEN_REQUESTS, job.sla.rows)
    requests += [next(iter(job.real_requests(1, rows))) for rows in (1, 3, 7)]
    for request in requests:
        check_request(job.inputs, request, job.sla.max_rows)
    return [(request, candidate.infer(request), baseline.infer(request)) for request in requests]


def write(
    folder: Path,
    source: Source,
    entry: Entry,
    baseline: Entry,
    *,
    proof: Proof | None = None,
    proof_why: str = "not asked",
    metric: dict[str, Any] | None = None,
    command: str = "",
) -> Manifest:
    """Fill folder (evidence and report, if any, already lie in it) and seal it with its manifest."""
    assert entry.candidate is not None and entry.engine is not None and baseline.engine is not None
    job = source.job
    cases = golden_cases(source, entry.engine, baseline.engine)
    reference = {f"{i}/{name}": a for i, case in enumerate(cases) for name, a in case[2].items()}
    model = folder / "model" / entry.candidate.model.name
    shutil.copytree(entry.candidate.model.parent, model.parent, copy_function=shutil.copyfile)
    if (layers := model.parent / "layers.json").exists():  # what a pass proved of its engine
        (folder / "evidence").mkdir(exist_ok=True)
        layers.rename(folder / "evidence" / layers.name)
    save_golden(folder / "golden.npz", cases)
    size = scale(reference)
    invariance, cpu = entry.findings.get("invariance"), entry.recipe.target == "cpu"
    manifest = Manifest(
        name=job.name,
        engine=entry.recipe.engine,
        engine_options=dict(entry.recipe.options),
        kind=entry.recipe.kind,
        target=entry.recipe.target,
        model=model.relative_to(folder).as_posix(),
        inputs=job.inputs,
        outputs=_outputs(job.outputs, cases[0][1]),
        recipe=entry.recipe.to_json(),
        batchable=entry.batchable,
        batchable_why=(invariance.verdict.why if invariance else "") + ("" if cpu else ", on ONNX Runtime's CPU"),
        replay_tolerance=_replay_tolerance(entry) * size,
        source_tolerance=source_tolerance(entry, cases, size),
        max_rows=job.sla.max_rows,
        sla={"p99_ms": job.sla.p99_ms, "rate_rps": job.sla.rate, "rows": job.sla.rows},
        serving=_serving(source, entry),
        proof=proof.proof if proof else "unproven",
        proof_why=proof.why if proof else proof_why,
        metric={"name": job.metric, "max_drop": job.gate.max_drop, **(metric or {})},
        source_sha256=source.sha256,
        git_revision=_git_revision(source.job_file.parent),
        command=command,
        preprocess=job.preprocess,
        postprocess=job.postprocess,
        isa=machine.isa() if cpu else "portable",
        versions=machine.versions(),
    )
    seal(folder, manifest)
    return manifest


def _outputs(names: tuple[str, ...], answer: Arrays) -> tuple[Tensor, ...]:
    if missing := [n for n in names if n not in answer]:
        raise JobError(f"the model gives {sorted(answer)}, the job wants outputs {missing}")
    return tuple(Tensor(name=n, dtype=str(answer[n].dtype), shape=("rows", *answer[n].shape[1:])) for n in names)


def source_tolerance(entry: Entry, cases: list[tuple[Arrays, Arrays, Arrays]], size: float) -> float:
    """How far answers may lie from the source model's: as parity allows; for a retrained model, twice what was seen."""
    if not entry.recipe.retrained:
        return PARITY[entry.recipe.precision] * size
    seen = [difference(answers, source) for _, answers, source in cases]  # may lie beyond the calibration rows
    return 2.0 * max(float(entry.findings["parity"].figures["worst"]), *seen)


def _replay_tolerance(entry: Entry) -> float:
    """Tight: what company may move an answer by where batches form, and no more than rounding where they don't.

    The golden answers of a GPU's artifact are ONNX Runtime's to the same graph. Another engine's INT8 rounds otherwise
    (OpenVINO's lies up to 0.045 off on the example), so there only parity can be asked.
    """
    if entry.recipe.target != "cpu":
        return PARITY[entry.recipe.precision]
    moved = entry.findings["invariance"].figures["worst"] if entry.batchable else 0.0
    return max(INVARIANCE["fp32"], 2.0 * float(moved))


def _serving(source: Source, entry: Entry) -> dict[str, Any]:
    """No more requests in flight than can be answered within the SLA; batches no larger than pays."""
    sla = source.job.sla
    ms = entry.median_ms(sla.rows) if entry.times else sla.p99_ms / 32
    return {"max_inflight": max(8, int(sla.p99_ms / ms) + 1), "max_batch_rows": sla.rows}


def _git_revision(folder: Path) -> str:
    run = subprocess.run(["git", "-C", str(folder), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return run.stdout.strip() if run.returncode == 0 else ""


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(value, indent=2) + "\n")
