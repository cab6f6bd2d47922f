"""`redline inspect`: what an artifact is, where it came from, whether it is whole and still answers the same."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from redline import artifact
from redline.artifact import Artifact
from redline.errors import BrokenError


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("artifact", type=Path, metavar="ARTIFACT", help="folder written by `redline optimize`")
    parser.add_argument("--replay", action="store_true", help="run the golden requests and compare the answers")
    parser.add_argument("--json", action="store_true", help="print the manifest as JSON")


def run(args: argparse.Namespace) -> int:
    found = artifact.load(args.artifact)
    if args.json:
        print(json.dumps(asdict(found.manifest), indent=2))
    else:
        _print(found)
    if args.replay:
        print(replay(found))
    return 0


def replay(found: Artifact) -> str:
    """Run every golden request through the artifact's engine.

    Raises:
        BrokenError: which request and output moved, by how much.
    """
    import asyncio

    from redline.runtimes import engines
    from redline.runtimes.readiness import replay as replay_golden
    from redline.tensors import Arrays

    engine = engines.load(found.manifest.engine, found.model, found.manifest.engine_options)

    async def infer(inputs: Arrays) -> Arrays:
        return engine.infer(inputs)

    verdict = asyncio.run(replay_golden(found, infer))
    if not verdict:
        raise BrokenError(f"{found.path}: {verdict.why}")
    return f"{verdict.why}: same answers within {found.manifest.replay_tolerance:.0e}"


def _print(found: Artifact) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    for label, value in _facts(found).items():
        table.add_row(label, value)
    Console(highlight=False).print(table)


def _facts(found: Artifact) -> dict[str, str]:
    m = found.manifest
    size = sum(p.stat().st_size for p in found.path.rglob("*") if p.is_file())
    facts = {
        "artifact": f"{m.name} ({size / 2**20:.1f} MiB, {len(m.files)} files, every hash checked)",
        "recipe": f"{m.recipe['name']}: {' → '.join(p['pass'] for p in m.recipe['passes']) or 'as it is'} → {m.engine}",
        "inputs": ", ".join(f"{t.name} {t.dtype}{_brackets(t.shape)}" for t in m.inputs),
        "outputs": ", ".join(f"{t.name} {t.dtype}{_brackets(t.shape)}" for t in m.outputs),
        "batchable": f"{'yes' if m.batchable else 'no'}: {m.batchable_why}",
        "SLA": f"p99 <= {m.sla['p99_ms']:g} ms at {m.sla['rate_rps']:g}/s, {m.sla['rows']} rows a request",
        "proof": f"{m.proof}: {m.proof_why}",
        "judged on": f"{m.isa}, " + ", ".join(f"{k} {v}" for k, v in m.versions.items()),
        "source": f"weights and code sha256 {m.source_sha256[:16]}, git {m.git_revision[:12] or 'none'}",
        "made by": m.command,
    }
    for split, label in (("validation", "gate"), ("test", "test")):
        if scores := m.metric.get(split):
            facts[label] = _change(m.metric["name"], scores)
    return facts


def _change(name: str, scores: dict[str, float]) -> str:
    return f"{name} {scores['source']:.4f} → {scores['candidate']:.4f}"


def _brackets(shape: tuple[int | str, ...]) -> str:
    return "\\[" + ", ".join(map(str, shape)) + "]"  # escaped: rich reads brackets as markup
