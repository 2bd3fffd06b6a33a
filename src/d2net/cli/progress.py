"""Progress bars with rate and time left, on standard error where that is a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.text import Text

from d2net.cli import console
from d2net.cli.options import Printing

if TYPE_CHECKING:
    from d2net.training.loop import Progress as Standing


class _Rate(ProgressColumn):
    """Things per second since the start."""

    def render(self, task: Task) -> Text:
        if not task.completed or not task.elapsed:
            return Text("")
        rate = task.completed / task.elapsed
        return Text(f"{rate:.2f}/s" if rate < 10 else f"{rate:.0f}/s")


@contextmanager
def things(what: str, printing: Printing) -> Iterator[Callable[[str, int], None]]:
    """A bar for things that are done one by one.

    Yields:
        What to call after each with its name and how many are left.
    """
    name = TextColumn("{task.fields[name]}", markup=False)
    columns = (MofNCompleteColumn(), _Rate(), TimeRemainingColumn(), name)
    with _bar(SpinnerColumn(), TextColumn(what), BarColumn(), *columns, printing=printing) as bar:
        task = bar.add_task(what, total=None, name="")
        done = 0

        def advance(name: str, left: int) -> None:
            nonlocal done
            done += 1
            bar.update(task, completed=done, total=done + left, name=console.one_line(name))

        yield advance


@contextmanager
def stages(printing: Printing) -> Iterator[Callable[[str, str, int | None], None]]:
    """A bar for a work of several stages, one after the other.

    Yields:
        What to call with the stage, the thing just done, and how many are left if that is known.
    """
    name = TextColumn("{task.fields[name]}", markup=False)
    columns = (MofNCompleteColumn(), _Rate(), TimeRemainingColumn(), name)
    described = TextColumn("{task.description}", markup=False)
    with _bar(SpinnerColumn(), described, BarColumn(), *columns, printing=printing) as bar:
        tasks: dict[str, TaskID] = {}
        done: dict[str, int] = {}

        def report(stage: str, name: str, left: int | None) -> None:
            if stage not in tasks:
                for task in tasks.values():
                    bar.update(task, visible=False)
                tasks[stage] = bar.add_task(stage, total=None, name="")
            done[stage] = done.get(stage, 0) + bool(name)
            total = None if left is None else done[stage] + left
            shown = console.one_line(name)
            bar.update(tasks[stage], completed=done[stage], total=total, name=shown)

        yield report


@contextmanager
def training(printing: Printing) -> Iterator[Callable[[Standing], None]]:
    """A bar for a training run.

    Yields:
        What to call with where it stands.
    """
    loss = TextColumn("loss {task.fields[loss]:.3f}")
    rate = TextColumn("{task.fields[rate]:.2f} pairs/s, {task.fields[waiting]:.0%} waiting")
    columns = (MofNCompleteColumn(), loss, rate, TextColumn("{task.fields[left]} left"))
    with _bar(
        SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), *columns, printing=printing
    ) as bar:
        fields: dict[str, Any] = {"loss": 0.0, "rate": 0.0, "waiting": 0.0, "left": "?"}
        task = bar.add_task("training", total=None, **fields)

        def advance(at: Standing) -> None:
            left = str(timedelta(seconds=round(at.seconds_left)))
            bar.update(
                task,
                description=at.stage,
                completed=at.step,
                total=at.steps,
                loss=at.loss,
                rate=at.pairs_per_second,
                waiting=at.waiting,
                left=left,
            )

        yield advance


@contextmanager
def download(printing: Printing) -> Iterator[Callable[[int, int | None], None]]:
    """A bar for a download.

    Yields:
        What to call with the bytes so far and in all.
    """
    columns = (DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with _bar(TextColumn("downloading"), BarColumn(), *columns, printing=printing) as bar:
        task = bar.add_task("", total=None, visible=False)

        def advance(done: int, total: int | None) -> None:
            bar.update(task, completed=done, total=total, visible=True)

        yield advance


def _bar(*columns: ProgressColumn, printing: Printing) -> Progress:
    hidden = not printing.progress or not console.err.is_terminal
    return Progress(*columns, console=console.err, disable=hidden, transient=True)
