"""Progress on standard error: a bar in a terminal, otherwise a line now and then."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from rich import progress as rich_progress
from rich.text import Text

from d2net.cli import console
from d2net.cli.options import Printing
from d2net.progress import Progress, no_progress


@contextmanager
def shown(printing: Printing, *, prefix: str = "") -> Iterator[Progress]:
    """The callback that shows a function's progress, unless --quiet or --json is given.

    `prefix` stands before each stage.
    """
    if not printing.progress:
        yield no_progress
    elif not console.err.is_terminal:
        yield _Lines(prefix)
    else:
        bar = _Bar(prefix)
        with bar.display:
            yield bar


class _Bar:
    """A bar with the time left; each stage begins a new one."""

    def __init__(self, prefix: str) -> None:
        self.display = rich_progress.Progress(
            rich_progress.SpinnerColumn(),
            rich_progress.TextColumn("{task.description}", markup=False),
            rich_progress.BarColumn(),
            rich_progress.MofNCompleteColumn(),
            rich_progress.TimeRemainingColumn(),
            rich_progress.TextColumn("{task.fields[detail]}", markup=False),
            console=console.err,
            transient=True,
        )
        self._prefix = prefix
        self._stage: str | None = None
        self._task = rich_progress.TaskID(0)

    def __call__(self, stage: str, done: int, total: int | None) -> None:
        stage, _, detail = console.one_line(stage).partition(": ")
        if stage != self._stage:
            if self._stage is not None:
                self.display.remove_task(self._task)
            self._stage = stage
            self._task = self.display.add_task(self._prefix + stage, total=None, detail="")
        self.display.update(self._task, completed=done, total=total, detail=detail)


class _Lines:
    """A line every ten seconds, and every minute in runs of more than ten minutes.

    Shorter runs print no line, so that their output in scripts stays as it is.
    """

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._began = self._printed = time.monotonic()
        self._stage: tuple[str, float, int] | None = None  # with its beginning

    def __call__(self, stage: str, done: int, total: int | None) -> None:
        now = time.monotonic()
        stage, _, detail = stage.partition(": ")
        if self._stage is None or self._stage[0] != stage:
            self._stage = stage, now, done
        if now - self._printed < max(10, min(60, (now - self._began) / 10)):
            return
        self._printed = now
        _, began, done_before = self._stage
        parts = []
        if done:
            parts.append(f"{done:,} of {total:,}" if total else f"{done:,}")
        if total and done > done_before:
            seconds = (now - began) * (total - done) / (done - done_before)
            parts.append(f"{timedelta(seconds=round(seconds))} left")
        if detail:
            parts.append(detail)
        line = f"{self._prefix}{stage}: {', '.join(parts)}".removesuffix(": ")
        console.err.print(Text(console.one_line(line)))
