"""A tiny artifact with a proof, and the tree that `redline deploy` writes for it."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from schemas import CRDS
from tiny_artifact import make_artifact

from redline import artifact
from redline.cli import main

with_kustomize = pytest.mark.skipif(
    not (shutil.which("kubectl") or shutil.which("kustomize")), reason="no kubectl and no kustomize on PATH"
)
with_crds = pytest.mark.skipif(not CRDS.is_dir(), reason="KServe's CRDs are not beside the checkout (shared/crds)")
HELD = {"proof": "held", "proof_why": "p99 5 ms <= 50 ms at 900/s", "sla": {"p99_ms": 50.0, "rate_rps": 900, "rows": 5}}


def make(folder: Path, highest: float = 500.0, **fields: Any) -> Path:
    """A tiny artifact with a proof: 900/s asked, `highest` held by one replica on one core."""
    at_rate = {"conditions": {"placement": "server on core(s) 0, generator on core 1"}}
    sla = {"engines": {"embedded": {"highest_rate": highest, "at_rate": at_rate}, "triton": {"highest_rate": 9999.0}}}
    made = make_artifact(folder, **{**HELD, "recipe": {"name": "tiny", "passes": []}, **fields})
    (made / "evidence").mkdir()
    (made / "evidence" / "sla.json").write_text(json.dumps(sla))
    table = artifact.load(made, here="avx512_vnni_bf16").manifest
    artifact.seal(made, table)
    return made


def deploy(made: Path, out: Path, *options: str) -> Path:
    assert main(["deploy", str(made), "--out", str(out), *options]) == 0
    return out
