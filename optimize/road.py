"""From recipes to a sealed artifact: search, then prove the contenders in order until one holds."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from redline import machine
from redline.artifact import writing
from redline.errors import RedlineError
from redline.optimize import artifact
from redline.optimize.build import Cache, Source, arrays_sha256, build
from redline.optimize.gains import gains
from redline.optimize.passes import FuseKernels
from redline.optimize.prove import Proof, Say, prove
from redline.optimize.recipe import Recipe
from redline.optimize.report import render
from redline.optimize.search import Board, Entry, Step, search, test_scores

_MEASURES_GAINS = ("optimize/gains.py", "optimize/latency.py", "runtimes/engines", "bench/stats.py", "tensors.py")


@dataclass
class Outcome:
    board: Board
    winner: Entry | None = None
    proof: Proof | None = None
    metric: dict[str, dict[str, float]] = field(default_factory=dict)  # split → source, candidate
    hand_tuning: list[dict[str, Any]] = field(default_factory=list)  # of the best fused candidate, per operator

    @property
    def exit_code(self) -> int:
        """0 held, or not asked to prove; 1 a gate or the SLA broke; 4 the load test was invalid."""
        if self.winner is None:
            return 1
        return self.proof.exit_code if self.proof else 0


@dataclass(frozen=True)
class Road:
    source: Source
    cache: Cache
    step: Step
    command: str  # what reproduces this
    target: str = "cpu"

    def walk(self, recipes: tuple[Recipe, ...], *, with_proof: bool) -> Outcome:
        outcome = Outcome(search(self.source, recipes, self.cache, self.step, self.target))
        for contender in _contenders(outcome.board):
            proof = self._prove(outcome.board, contender) if with_proof else None
            if outcome.winner is None or (proof and proof.status == "held"):
                outcome.winner, outcome.proof = contender, proof
            if proof is None or proof.status != "broken":  # an invalid run is no reason to prefer a lesser one
                break
        if outcome.winner:
            outcome.metric = test_scores(outcome.board, outcome.winner, self.cache)
            outcome.hand_tuning = self._hand_tuning(outcome.board)
        return outcome

    def _hand_tuning(self, board: Board) -> list[dict[str, Any]]:
        """What each fused node of the best candidate that has any gained over the nodes it replaced."""
        fused = next((e for e in board.ranking() if e.recipe.kind == "fused"), None)
        if fused is None or fused.candidate is None or board.unmeasured:
            return []
        config, model = fused.recipe.passes[-1], fused.candidate.model
        assert isinstance(config, FuseKernels)
        before = build(replace(fused.recipe, passes=fused.recipe.passes[:-1]), self.source, self.cache)
        requests = {rows: self.source.job.real_requests(4, rows) for rows in board.rows}
        key = {
            "gains": fused.candidate.fingerprint,
            "requests": [arrays_sha256(request) for pool in requests.values() for request in pool],
            "conditions": machine.conditions(),
            "code": machine.code_sha256(*_MEASURES_GAINS),
        }
        with self.step(f"what hand tuning gained in {fused.recipe.name}") as say:
            try:
                found: list[dict[str, Any]] = self.cache.value(
                    key, lambda: gains(before.model, config, model, requests)
                )
            except RedlineError as e:  # what is told beside the verdict must not undo it
                say(f"not measured: {e}")
                return []
            at = str(board.rows[-1])
            parts = [f"{part['operator']} {part['rows'][at]['ratio']:.2f} x" for part in found]
            say(", ".join(parts) or "nothing was fused")
        return found

    def _prove(self, board: Board, contender: Entry) -> Proof:
        assert contender.candidate is not None
        rival = _best_automatic(board, contender)
        key = {
            "proof": contender.candidate.fingerprint,
            "automatic": rival.candidate.fingerprint if rival and rival.candidate else "",
            "source": [self.source.sha256, self.source.inputs_sha256, self.source.evaluation_sha256],
            "sla": [self.source.job.sla.p99_ms, self.source.job.sla.rate, self.source.job.sla.rows],
            "conditions": machine.conditions(),
            "code": machine.code_sha256("bench", "optimize/prove.py", "runtimes", "model_repo_templates"),
        }
        with self.step(f"proof of {contender.recipe.name}") as say:
            hits = self.cache.hits
            table = self.cache.value(
                key,
                lambda: self._load_test(board, contender, rival, say).table,
                keep=lambda table: Proof(table).status != "invalid",
            )
            proof = Proof(table)
            say(f"{proof.status}: {proof.why}" + (" (cached)" if self.cache.hits > hits else ""))
        return proof

    def _load_test(self, board: Board, contender: Entry, rival: Entry | None, say: Say) -> Proof:
        with TemporaryDirectory(prefix="redline-") as folder:

            def written(entry: Entry) -> Path:
                out = Path(folder) / entry.recipe.name
                out.mkdir()
                artifact.write(out, self.source, entry, board.baseline, proof_why="not yet", command=self.command)
                return out

            return prove(written(contender), written(board.baseline), say, written(rival) if rival else None)

    def write(self, folder: Path, outcome: Outcome) -> None:
        """Fill folder with the artifact and its evidence."""
        assert outcome.winner is not None
        self._write_evidence(folder, outcome)
        artifact.write(
            folder, self.source, outcome.winner, outcome.board.baseline, command=self.command, metric=outcome.metric,
            proof=outcome.proof, proof_why=outcome.board.unmeasured or "not asked",
        )  # fmt: skip

    def write_baseline(self, out: Path, board: Board) -> None:
        with writing(out) as folder:
            artifact.write(folder, self.source, board.baseline, board.baseline, command=self.command)

    def write_rejection(self, out: Path, outcome: Outcome) -> None:
        """No artifact, but the leaderboard that says why; a later rejection replaces it."""
        out.mkdir(parents=True, exist_ok=True)
        self._write_evidence(out, outcome)

    def _write_evidence(self, folder: Path, outcome: Outcome) -> None:
        board = outcome.board.to_json(outcome.winner)
        board |= {"test": outcome.metric.get("test"), "hand_tuning": outcome.hand_tuning}
        sla = outcome.proof.table if outcome.proof else None
        artifact.write_json(folder / "evidence" / "leaderboard.json", board)
        if sla:
            artifact.write_json(folder / "evidence" / "sla.json", sla)
        (folder / "report.html").write_text(render(board, sla))


def _best_automatic(board: Board, contender: Entry) -> Entry | None:
    """What the expert track is measured by; none where the contender is automatic itself."""
    if contender.recipe.track == "auto":
        return None
    rivals = [e for e in board.ranking() if e.recipe.track == "auto" and e.batchable >= contender.batchable]
    return rivals[0] if rivals else None


def _contenders(board: Board) -> list[Entry]:
    """The best batchable survivor; then the best of the others, which wins only where no batchable one holds."""
    ranking = board.ranking()
    kinds = ([e for e in ranking if e.batchable is batchable] for batchable in (True, False))
    return [kind[0] for kind in kinds if kind]
