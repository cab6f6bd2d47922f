"""Progress while it works: a bar over all steps, a line for each that ended."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar


class Progress:
    """On stderr, so that stdout stays the result. Without a terminal only the lines are printed."""

    def __init__(self, steps: int) -> None:
        self._console = Console(stderr=True, highlight=False)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._bar = Bar(*columns, console=self._console, transient=True, disable=not self._console.is_terminal)
        self._task = self._bar.add_task("starting", total=steps)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    @contextmanager
    def step(self, label: str) -> Iterator[Callable[[str], None]]:
        """`with step("build") as say: say("7 tables in one")`: the last thing said stands in the step's line.

        What ends in an ellipsis is under way, and has a line of its own at once.
        """
        start, said = time.monotonic(), ""

        def say(text: str) -> None:
            nonlocal said
            said = text
            self._bar.update(self._task, description=f"{label}: {escape(text)}")
            if text.endswith("…"):
                self._console.print(f"[dim]         {escape(text)}[/]", soft_wrap=True)

        self._bar.update(self._task, description=label)
        yield say
        self._bar.advance(self._task)
        took = f"{time.monotonic() - start:5.1f} s"
        self._console.print(f"[dim]{took}[/]  [bold]{label:<26}[/] {escape(said)}", soft_wrap=True)
