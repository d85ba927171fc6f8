"""Progress bars on stderr, shared by every floor."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

console = Console(stderr=True)
_live: Progress | None = None


class Rate(ProgressColumn):
    """Steps a second, of late."""

    def render(self, task: Task) -> Text:
        rate = task.finished_speed or task.speed
        return Text("" if rate is None else f"{rate:,.1f}/s" if rate < 100 else f"{rate:,.0f}/s")


def silence() -> None:
    """Show nothing from here on: for worker processes, which share their parent's terminal."""
    console.quiet = True


@contextmanager
def progress(description: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
    """Show a bar while the block runs; yields ``advance(steps)``.

    Bars may nest: the outermost block owns the display, inner ones add a line to it. Where stderr is no terminal
    there are none: a bar that is drawn once, when it is full, tells nobody anything.
    """
    global _live
    if _live is None:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            Rate(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=console, disable=not console.is_terminal) as _live:
            try:
                yield _bar(_live, description, total)
            finally:
                _live = None
    else:
        yield _bar(_live, description, total)


def _bar(live: Progress, description: str, total: int | None) -> Callable[[int], None]:
    bar = live.add_task(description, total=total)
    return lambda steps: live.advance(bar, steps)
