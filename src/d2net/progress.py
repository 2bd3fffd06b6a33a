"""The callback to which long-running functions report their progress."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

Progress: TypeAlias = Callable[[str, int, int | None], None]
"""Called as `progress(stage, done, total)` when a stage begins and after each of its steps.

stage: the current work in a word or two, such as "matching". A detail that changes from step to
    step may follow a colon and a blank: "extracting: a.jpg", "training: loss 0.31".
done: number of finished steps of this stage; 0 when the stage begins.
total: number of steps of this stage; None while it is unknown.

Progress is only shown. Failures are returned in the function's result, and warnings go to logging.
"""


def no_progress(stage: str, done: int, total: int | None) -> None:
    """Ignore the progress: the default where a function takes a `Progress`."""
