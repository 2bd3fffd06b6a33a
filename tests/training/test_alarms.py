"""Alarms: each failure is told once, early, and a healthy run is left in peace."""

from __future__ import annotations

import math

import pytest

from d2net.errors import TrainingError
from d2net.training.alarms import WINDOW, Watch

HEALTHY = {
    "loss": 0.9,
    "gradient": 0.4,
    "usable": 1.0,
    "similarity": 0.6,
    "inactive": 0.02,
    "peak": 0.01,
}


def said(steps: int, **changes: float) -> list[str]:
    watch = Watch()
    return [text for _ in range(steps) for text in watch.step({**HEALTHY, **changes})]


def test_a_healthy_run_is_left_in_peace() -> None:
    watch = Watch()
    for step in range(3000):
        assert not watch.step({**HEALTHY, "loss": 1 - step / 10_000, "usable": 0.75})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"usable": 0.25}, "75% of the pairs"),
        ({"inactive": 0.8}, "in 80% of the cells no channel is active"),
        ({"peak": 0.9}, "one cell has 90% of an image's score"),
    ],
)
def test_symptoms_are_told_once(changes: dict[str, float], message: str) -> None:
    (text,) = said(300, **changes)
    assert message in text


def test_a_loss_that_does_not_fall_is_told_once() -> None:
    assert not said(999, loss=1.0)
    (text,) = said(2000, loss=1.0)
    assert "the loss has not fallen in 1000 steps (from 1.000 to 1.000)" in text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss": math.nan}, "diverged"),
        ({"gradient": math.inf}, "diverged"),
        ({"usable": 0.0}, "nothing is learnt"),
        ({"similarity": 0.995}, "collapsed"),
    ],
)
def test_hopeless_runs_end_within_the_window(changes: dict[str, float], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        said(WINDOW, **changes)
