"""`redline prove`: an artifact with another proof is another artifact."""

from pathlib import Path
from typing import Any

import pytest

from redline import artifact
from redline.cli import main
from redline.optimize.build import Cache, Source
from redline.optimize.prove import Proof
from redline.optimize.recipe import choose
from redline.optimize.road import Road


@pytest.fixture
def made(source: Source, steps: Path, tmp_path: Path) -> Path:
    def step(name: str) -> Any:
        from contextlib import nullcontext

        return nullcontext(lambda said: None)

    road = Road(source, Cache(steps / "steps"), step, "redline optimize")
    outcome = road.walk(choose("onnxruntime-fp32", ()), with_proof=False)
    with artifact.writing(tmp_path / "made") as folder:
        road.write(folder, outcome)
    return tmp_path / "made"


@pytest.mark.parametrize(
    ("status", "proof", "code"), [("held", "held", 0), ("broken", "broken", 1), ("invalid", "unproven", 4)]
)
def test_the_verdict_goes_into_a_new_artifact(
    status: str, proof: str, code: int, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = {
        "sla": {"p99_ms": 50.0, "rate_rps": 50.0, "rows": 20}, "served_by": "embedded", "conditions": {},
        "verdict": {"status": status, "why": "as measured"},
        "engines": {
            "embedded": {
                "highest_rate": 60.0, "limit_why": "", "trials": [{"rate_rps": 60.0, "p99_ms": 20.0}],
                "at_rate": {"curve": [[0.5, 9.0], [0.99, 20.0]]},
            }
        },
    }  # fmt: skip
    monkeypatch.setattr("redline.optimize.prove.prove", lambda path, baseline, say: Proof(table))
    before = (made / "manifest.json").read_bytes()
    assert main(["prove", str(made), "--out", str(tmp_path / "proven")]) == code
    found = artifact.load(tmp_path / "proven")  # every hash checked
    assert (found.manifest.proof, found.manifest.proof_why) == (proof, "as measured")
    assert found.evidence("sla") == table
    assert "as measured" in (found.path / "report.html").read_text()
    assert (made / "manifest.json").read_bytes() == before
    assert main(["prove", str(made), "--out", str(tmp_path / "proven")]) == 2  # nothing edits an artifact
