"""Progress on standard error: a bar in a terminal, otherwise a line now and then."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from rich import progress as rich_progress
from rich.progress import Task, TextColumn
from rich.text import Text

from d2net.cli import console
from d2net.cli.options import Printing
from d2net.progress import Progress, no_progress

_SECONDS_BETWEEN_LINES = 10
"""Shorter runs print no line, so that their output in scripts stays as it is."""


@contextmanager
def shown(printing: Printing, *, download: bool = False) -> Iterator[Progress]:
    """Show the progress of a function, unless --quiet or --json is given.

    Args:
        printing: the options of the command.
        download: steps are bytes.

    Yields:
        The callback to pass to the function.
    """
    if not printing.progress:
        yield no_progress
    elif not console.err.is_terminal:
        yield _Lines(download)
    else:
        bar = _Bar(download)
        with bar.display:
            yield bar


class _Bar:
    """A bar with the rate and the time left; each stage begins a new one."""

    def __init__(self, download: bool) -> None:
        counts = (
            (rich_progress.DownloadColumn(), rich_progress.TransferSpeedColumn())
            if download
            else (rich_progress.MofNCompleteColumn(), _Rate())
        )
        self.display = rich_progress.Progress(
            rich_progress.SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            rich_progress.BarColumn(),
            *counts,
            rich_progress.TimeRemainingColumn(),
            TextColumn("{task.fields[detail]}", markup=False),
            console=console.err,
            transient=True,
        )
        self._stage: str | None = None
        self._task = rich_progress.TaskID(0)

    def __call__(self, stage: str, done: int, total: int | None) -> None:
        stage, _, detail = console.one_line(stage).partition(": ")
        if stage != self._stage:
            if self._stage is not None:
                self.display.remove_task(self._task)
            self._stage = stage
            self._task = self.display.add_task(stage, total=None, detail="")
        self.display.update(self._task, completed=done, total=total, detail=detail)


class _Rate(rich_progress.ProgressColumn):
    """Steps per second since the stage began."""

    def render(self, task: Task) -> Text:
        if not task.completed or not task.elapsed:
            return Text("")
        return Text(_rate(task.completed / task.elapsed))


class _Lines:
    """A line every ten seconds, and every minute in runs of more than ten minutes."""

    def __init__(self, download: bool) -> None:
        self._unit = 1e6 if download else 1
        self._began = self._printed = time.monotonic()
        self._stage: str | None = None
        self._stage_began = self._began
        self._done_before = 0

    def __call__(self, stage: str, done: int, total: int | None) -> None:
        now = time.monotonic()
        stage, _, detail = stage.partition(": ")
        if stage != self._stage:
            self._stage, self._stage_began, self._done_before = stage, now, done
        if now - self._printed < max(_SECONDS_BETWEEN_LINES, min(60, (now - self._began) / 10)):
            return
        self._printed = now
        rate = (done - self._done_before) / max(now - self._stage_began, 1e-9)
        console.err.print(Text(console.one_line(self._line(stage, detail, done, total, rate))))

    def _line(self, stage: str, detail: str, done: int, total: int | None, rate: float) -> str:
        if not done:
            return stage
        unit = " MB" if self._unit > 1 else ""
        parts = [f"{done / self._unit:,.0f}{unit}"]
        if total:
            parts[0] = f"{done / self._unit:,.0f} of {total / self._unit:,.0f}{unit}"
        if rate > 0:
            parts.append(_rate(rate / self._unit, unit))
            if total:
                parts.append(f"{timedelta(seconds=round((total - done) / rate))} left")
        return f"{stage}: {', '.join([*parts, *filter(None, [detail])])}"


def _rate(rate: float, unit: str = "") -> str:
    return f"{rate:.2f}{unit}/s" if rate < 10 else f"{rate:.0f}{unit}/s"
