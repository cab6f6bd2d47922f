"""The last verdict: winner and unoptimized model, each served as `redline serve` would, under open-loop load.

Server and generator run on cores of their own; requests are the golden ones, over the v2 binary wire.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from redline import artifact, machine
from redline.errors import BrokenError, MissingError

if TYPE_CHECKING:
    from redline.bench.measuring import Load, Subject

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
        return {"held": 0, "broken": 1, "invalid": 4}[self.status]


def prove(path: Path, baseline: Path | None, say: Say) -> Proof:
    """Find what each server holds, then judge the better one at the SLA's own rate; the baseline the same way."""
    sla = artifact.load(path).manifest.sla
    engines = {server: _highest(path, server, say) for server in SERVERS}
    best = max(SERVERS, key=lambda s: float(engines[s]["highest_rate"]))
    engines[best]["at_rate"] = report = _at_rate(path, best, say)
    table: dict[str, Any] = {
        "sla": sla,
        "served_by": best,
        "verdict": {"status": report["status"], "why": report["why"]},
        "engines": engines,
        "conditions": machine.conditions(),
    }
    if baseline is not None:
        table["baseline"] = _highest(baseline, "embedded", say) | {"at_rate": _at_rate(baseline, "embedded", say)}
    return Proof(table)


@contextmanager
def _running(path: Path, server: str) -> "Iterator[tuple[Subject, Load, dict[str, Any]]]":
    """The artifact behind its server, its golden requests of the SLA's size, and where the generator runs."""
    from redline.bench.measuring import Load, Subject
    from redline.bench.serving import serve_artifact, split_cores

    found = artifact.load(path)
    manifest = found.manifest
    cases = [c for c in found.golden() if len(next(iter(c[0].values()))) == manifest.sla["rows"]]
    cores, generator, placement = split_cores()
    with serve_artifact(path, server, cores) as running:
        inputs, answers = [c[0] for c in cases], [c[1] for c in cases]
        subject = Subject(running.http_url, manifest.name, inputs, answers, manifest.replay_tolerance)
        yield subject, Load(cpus=generator, server_cpus=cores - generator, placement=placement), manifest.sla


def _highest(path: Path, server: str, say: Say) -> dict[str, Any]:
    from redline.bench.measuring import highest_rate

    say(f"highest rate of {artifact.load(path).manifest.recipe['name']} on {server} …")
    try:
        with _running(path, server) as (subject, load, sla):
            found = highest_rate(subject, p99_ms=sla["p99_ms"], start_rps=sla["rate_rps"], load=load, say=say)
    except (BrokenError, MissingError) as e:  # this way of serving can't; the other may
        return {"highest_rate": 0.0, "limit_why": str(e), "trials": []}
    return {"highest_rate": found.rate_rps, "limit_why": found.limit_why, "trials": found.as_dict()["trials"]}


def _at_rate(path: Path, server: str, say: Say) -> dict[str, Any]:
    from redline.bench.measuring import measure

    with _running(path, server) as (subject, load, sla):
        say(f"{artifact.load(path).manifest.recipe['name']} on {server}: {sla['rate_rps']:g}/s for {_PROOF_S:g} s …")
        report = measure(subject, rate_rps=sla["rate_rps"], duration_s=_PROOF_S, p99_ms=sla["p99_ms"], load=load)
    return report.as_dict()
