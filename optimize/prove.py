"""The last verdict: winner, best automatic candidate and unoptimized model, served and put under open-loop load.

Server and generator run on cores of their own; requests are the golden ones, over the v2 binary wire.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redline import artifact, machine
from redline.artifact import Artifact
from redline.bench.questions import asking
from redline.bench.verdict import EXIT_CODES
from redline.errors import BrokenError, MissingError

_PROOF_S = 20.0
SERVERS = ("embedded", "triton")  # the ways `redline serve` can run an artifact
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Proof:
    """table: evidence/sla.json."""

    table: dict[str, Any]

    @property
    def status(self) -> str:
        """held | broken | invalid"""
        return str(self.table["verdict"]["status"])

    @property
    def why(self) -> str:
        return str(self.table["verdict"]["why"])

    @property
    def proof(self) -> str:
        """held | broken | unproven, as the manifest says it: an invalid measurement proves nothing."""
        return "unproven" if self.status == "invalid" else self.status

    @property
    def exit_code(self) -> int:
        return EXIT_CODES[self.status]


def prove(path: Path, baseline: Path | None, say: Say, automatic: Path | None = None) -> Proof:
    """Find what each server holds, then judge the better one at the SLA's own rate; the baseline the same way.

    automatic: the best automatic candidate, where the expert track won; what it holds stands beside.
    """
    found = artifact.load(path)
    sla = found.manifest.sla
    engines = {server: _highest(found, server, say) for server in SERVERS}
    best = max(SERVERS, key=lambda s: float(engines[s]["highest_rate"]))
    engines[best]["at_rate"] = report = _at_rate(found, best, say)
    table: dict[str, Any] = {
        "sla": sla,
        "served_by": best,
        "verdict": {"status": report["status"], "why": report["why"]},
        "engines": engines,
        "conditions": machine.conditions(),
    }
    if automatic is not None:
        rival = artifact.load(automatic)
        table["automatic"] = {"recipe": rival.manifest.recipe["name"], **_highest(rival, best, say)}
    if baseline is not None:
        before = artifact.load(baseline)
        table["baseline"] = _highest(before, "embedded", say) | {"at_rate": _at_rate(before, "embedded", say)}
    return Proof(table)


def _highest(found: Artifact, server: str, say: Say) -> dict[str, Any]:
    from redline.bench.measuring import highest_rate

    sla = found.manifest.sla
    say(f"highest rate of {found.manifest.recipe['name']} on {server} …")
    try:
        with asking(found, server) as (subject, load):
            search = highest_rate(subject, p99_ms=sla["p99_ms"], start_rps=sla["rate_rps"], load=load, say=say)
    except (BrokenError, MissingError) as e:  # this way of serving can't; the other may
        return {"highest_rate": 0.0, "limit_why": str(e), "trials": []}
    return {"highest_rate": search.rate_rps, "limit_why": search.limit_why, "trials": search.as_dict()["trials"]}


def _at_rate(found: Artifact, server: str, say: Say) -> dict[str, Any]:
    from redline.bench.measuring import measure

    sla = found.manifest.sla
    with asking(found, server) as (subject, load):
        say(f"{found.manifest.recipe['name']} on {server}: {sla['rate_rps']:g}/s for {_PROOF_S:g} s …")
        report = measure(subject, rate_rps=sla["rate_rps"], duration_s=_PROOF_S, p99_ms=sla["p99_ms"], load=load)
    return report.as_dict()
