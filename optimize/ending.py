"""What a user reads last: the leaderboard, then the verdict."""

import json
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from redline.optimize import leaderboard
from redline.optimize.road import Outcome


def print_outcome(outcome: Outcome, out: Path, *, as_json: bool) -> None:
    console, board, winner = _console(), outcome.board, outcome.winner
    assert winner is not None
    if as_json:
        print(json.dumps(board.to_json(winner) | {"artifact": str(out), "test": outcome.metric["test"]}))
        return
    console.print(leaderboard.render(board, winner))
    at = str(board.rows[-1])
    speed, test = board.speedup(winner)[at], outcome.metric["test"]
    interval = f"95 % interval [{speed['low']:.2f}, {speed['high']:.2f}]"
    console.print()
    lines = [
        ("recipe", winner.recipe.name + ("" if winner.batchable else " (not batchable)")),
        ("speed-up", f"{speed['ratio']:.2f} x PyTorch eager at {at} rows, {interval}"),
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


def _proof_lines(outcome: Outcome) -> list[tuple[str, str]]:
    if outcome.proof is None:
        return [("proof", "unproven: not asked")]
    table = outcome.proof.table
    rates = ", ".join(f"{name} {found['highest_rate']:.0f}/s" for name, found in table["engines"].items())
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
