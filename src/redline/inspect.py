"""`redline inspect`: what an artifact is, where it came from, whether it is whole and still answers the same."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from redline import artifact
from redline.artifact import Artifact
from redline.errors import BrokenError
from redline.runtimes.engines.table import pick


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

    if found.manifest.kind == "llm":
        from redline.runtimes.llm_engine import replay as replay_prompts

        verdict = asyncio.run(replay_prompts(found))
    else:
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
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    for label, value in _facts(found).items():
        table.add_row(label, Text(value))
    console = Console(highlight=False)
    (console if console.is_terminal else Console(highlight=False, width=120)).print(table)


def _facts(found: Artifact) -> dict[str, str]:
    m = found.manifest
    size = sum(p.stat().st_size for p in found.path.rglob("*") if p.is_file())
    engine = pick(m.kind, m.target, m.engine)
    facts = {
        "artifact": f"{m.name} ({size / 2**20:.1f} MiB, {len(m.files)} files, every hash checked)",
        "recipe": f"{m.recipe['name']}: {' → '.join(p['pass'] for p in m.recipe['passes']) or 'as it is'} → {m.engine}",
        "engine": f"{engine} ({m.kind} on {m.target})",
        "inputs": ", ".join(f"{t.name} {t.dtype}{_brackets(t.shape)}" for t in m.inputs) or "text",
        "outputs": ", ".join(f"{t.name} {t.dtype}{_brackets(t.shape)}" for t in m.outputs) or "text",
        "batchable": f"{'yes' if m.batchable else 'no'}: {m.batchable_why}",
        "SLA": _sla(m.kind, m.sla),
        "judged on": f"{m.isa}, " + ", ".join(f"{k} {v}" for k, v in m.versions.items()),
        "source": f"weights and code sha256 {m.source_sha256[:16]}, git {m.git_revision[:12] or 'none'}",
        "made by": m.command,
    }
    return facts | _evidence(found)


def _evidence(found: Artifact) -> dict[str, str]:
    """The figures people ask for first, last on the screen."""
    m, facts = found.manifest, {}
    if (board := found.evidence("leaderboard")) and board["speedup"]:
        rows, speed = list(board["speedup"].items())[-1]
        interval = f"95 % interval [{speed['low']:.2f}, {speed['high']:.2f}]"
        against = f"bf16 at {rows} streams" if m.kind == "llm" else f"PyTorch eager at {rows} rows"
        facts["speed-up"] = f"{speed['ratio']:.2f} x {against}, {interval}"
    if layers := found.evidence("layers"):
        facts["layers"] = layers["summary"]
    if scores := m.metric.get("test"):
        facts[f"test {m.metric['name']}"] = f"{scores['source']:.4f} before, {scores['candidate']:.4f} after"
    if m.kind != "llm" and (sla := found.evidence("sla")):
        rates = dict(sla["engines"])
        if automatic := sla.get("automatic"):
            rates[f"best automatic ({automatic['recipe']})"] = automatic
        if "baseline" in sla:
            rates["unoptimized"] = sla["baseline"]
        facts["highest rate"] = ", ".join(f"{name} {found['highest_rate']:.0f}/s" for name, found in rates.items())
    return facts | {"proof": f"{m.proof}: {m.proof_why}"}


def _sla(kind: str, sla: dict[str, Any]) -> str:
    if kind == "llm":
        tokens = f"{sla['prompt_tokens']} + {sla['output_tokens']} tokens"
        return f"TTFT p99 <= {sla['ttft_ms']:g} ms, ITL p99 <= {sla['itl_ms']:g} ms at {sla['rate_rps']:g}/s, {tokens}"
    return f"p99 <= {sla['p99_ms']:g} ms at {sla['rate_rps']:g}/s, {sla['rows']} rows a request"


def _brackets(shape: tuple[int | str, ...]) -> str:
    return f"[{', '.join(map(str, shape))}]"
