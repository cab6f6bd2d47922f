"""The leaderboard in the terminal."""

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from redline.optimize.search import Board, Entry


def render(board: Board, winner: Entry | None) -> RenderableType:
    """One line a candidate, the fastest survivor first, the rejected last; reasons below."""
    job, at = board.source.job, board.rows[-1]
    table = Table(box=None, pad_edge=False, collapse_padding=True, header_style="bold", caption_justify="left")
    table.caption = board.unmeasured or (
        f"xN: times PyTorch eager at N rows a request; ms and thousand rows/s per core at {at} rows, one thread"
    )
    table.add_column("recipe", no_wrap=True)
    timing = () if board.unmeasured else (*(f"x{rows}" for rows in board.rows), "ms", "krows/s")
    for heading in (job.metric, "drop", *timing):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("verdict")
    ranked = board.ranking()
    rejected = [e for e in board.entries if e not in ranked]
    for entry in (*ranked, board.baseline, *rejected):
        table.add_row(*_line(entry, board, winner), style="bold green" if entry is winner else "")
    reasons = [f"{e.recipe.name}: {e.reason}" for e in board.entries if e.reason]
    return Group(table, *(Text(f"  {reason}", style="yellow") for reason in reasons))


def _line(entry: Entry, board: Board, winner: Entry | None) -> list[str]:
    at = board.rows[-1]
    accuracy = entry.findings.get("accuracy")
    figures = [f"{accuracy.figures['value']:.4f}", f"{accuracy.figures['drop']:+.4f}"] if accuracy else ["", ""]
    if entry.times:
        ratios = [f"{board.baseline.median_ms(rows) / entry.median_ms(rows):.2f}" for rows in board.rows]
        timing = [*ratios, f"{entry.median_ms(at):.2f}", f"{at / entry.median_ms(at):.0f}"]
    else:
        timing = [] if board.unmeasured else [""] * (len(board.rows) + 2)
    return [entry.recipe.name, *figures, *timing, board.standing(entry, winner)]
