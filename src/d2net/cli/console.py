"""What commands print: tables and progress for people, JSON for machines, errors for both."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table
from rich.text import Text

PARTLY_FAILED = 1
BAD_INPUT = 2

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)


def error(message: str) -> None:
    """Print an error, whatever the verbosity."""
    err.print(Text.assemble(("error: ", "bold red"), message))


def warn(message: str) -> None:
    """Print what went wrong without ending the command."""
    err.print(Text.assemble(("warning: ", "yellow"), message))


def say(message: str, *, quiet: bool) -> None:
    """Print a line for people."""
    if not quiet:
        out.print(Text(message))


def print_json(values: Any) -> None:  # noqa: ANN401 (JSON)
    """Print one JSON document on standard output."""
    out.out(json.dumps(values, indent=2, ensure_ascii=False))


def table(*columns: str) -> Table:
    """An empty table in the house style."""
    result = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        result.add_column(column)
    return result


class _Rate(ProgressColumn):
    """Things per second since the start."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if not speed else f"{speed:.2f}/s" if speed < 10 else f"{speed:.0f}/s")


class Advance:
    """Moves a progress bar on by one, naming what was done."""

    def __init__(self, progress: Progress, task: Any) -> None:  # noqa: ANN401 (rich's own)
        self._progress = progress
        self._task = task

    def __call__(self, name: str) -> None:
        """One more is done: `name`."""
        self._progress.update(self._task, advance=1, name=name)


@contextmanager
def progress(what: str, total: int, *, quiet: bool) -> Iterator[Advance]:
    """A progress bar with rate and time left, on standard error."""
    bar = Progress(
        SpinnerColumn(),
        TextColumn(what),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[name]}", markup=False),
        console=err,
        disable=quiet or not err.is_terminal,
        transient=True,
    )
    with bar:
        yield Advance(bar, bar.add_task(what, total=total, name=""))


@contextmanager
def download_progress(what: str, *, quiet: bool) -> Iterator[Callable[[int, int | None], None]]:
    """A progress bar in bytes, on standard error."""
    bar = Progress(
        TextColumn(what),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=err,
        disable=quiet or not err.is_terminal,
    )
    with bar:
        task = bar.add_task(what, total=None)

        def advance(done: int, total: int | None) -> None:
            bar.update(task, completed=done, total=total)

        yield advance
