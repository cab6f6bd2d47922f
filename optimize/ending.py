"""What a user reads last: the leaderboard, then the verdict."""

import json
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from redline.optimize import leaderboard
from redline.optimize.road import Outcome
from redline.optimize.search import Board, Entry


def print_outcome(outcome: Outcome, out: Path, *, as_json: bool) -> None:
    console, board, winner = _console(), outcome.board, outcome.winner
    assert winner is not None
    if as_json:
        more = {"artifact": str(out), "test": outcome.metric["test"], "hand_tuning": outcome.hand_tuning}
        print(json.dumps(board.to_json(winner) | more))
        return
    console.print(leaderboard.render(board, winner))
    test = outcome.metric["test"]
    console.print()
    lines = [
        ("recipe", winner.recipe.name + ("" if winner.batchable else " (not batchable)")),
        *_engine_lines(board, winner),
        ("speed-up", _speedup(board, winner)),
        (f"test {board.source.job.metric}", f"{test['source']:.4f} before, {test['candidate']:.4f} after"),
        *_proof_lines(outcome),
        ("artifact", f"{out}  (report: {out / 'report.html'})"),
    ]
    for label, text in lines:
        console.print(f"[bold]{label:<14}[/]{escape(text)}", soft_wrap=True)


def _console() -> Console:
    """As wide as the terminal; wide enough for the table where there is none."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=110)


def _engine_lines(board: Board, winner: Entry) -> list[tuple[str, str]]:
    """What was proven of an engine that can't run here."""
    if not board.unmeasured or winner.candidate is None:
        return []
    return [("engine", winner.candidate.notes[-1].split("; ")[0])]


def _speedup(board: Board, winner: Entry) -> str:
    at = str(board.rows[-1])
    if not (found := board.speedup(winner)):
        return f"not measured; {winner.recipe.name} is the first recipe for {board.target} that keeps the gate"
    interval = f"95 % interval [{found[at]['low']:.2f}, {found[at]['high']:.2f}]"
    return f"{found[at]['ratio']:.2f} x PyTorch eager at {at} rows, {interval}"


def _proof_lines(outcome: Outcome) -> list[tuple[str, str]]:
    if outcome.proof is None:
        return [("proof", f"unproven: {outcome.board.unmeasured or 'not asked'}")]
    table = outcome.proof.table
    rates = ", ".join(f"{name} {found['highest_rate']:.0f}/s" for name, found in table["engines"].items())
    if automatic := table.get("automatic"):
        rates += f"; best automatic ({automatic['recipe']}) {automatic['highest_rate']:.0f}/s"
    lines = [("highest rate", f"{rates}; unoptimized {table['baseline']['highest_rate']:.0f}/s")]
    return [*lines, ("proof", f"{outcome.proof.status} on {table['served_by']}: {outcome.proof.why}")]


def print_rejection(outcome: Outcome, folder: Path, *, as_json: bool) -> None:
    board = outcome.board
    if as_json:
        print(json.dumps(board.to_json(None)))
        return
    console = _console()
    console.print(leaderboard.render(board, None))
    if miss := board.nearest_miss():
        console.print(f"[bold]nearest miss[/] {escape(miss.recipe.name)}: {escape(miss.reason)}", soft_wrap=True)
    console.print(f"[bold]leaderboard[/]  {folder / 'report.html'}", soft_wrap=True)
