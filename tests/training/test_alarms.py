"""Alarms: each failure is reported once, early, and a healthy run raises none."""

from __future__ import annotations

import math

import pytest

from d2net.errors import TrainingError
from d2net.training.alarms import WINDOW, Monitor
from d2net.training.supervised import SupervisedObjective

HEALTHY = {
    "loss": 0.9,
    "gradient": 0.4,
    "usable": 1.0,
    "similarity": 0.6,
    "inactive": 0.02,
    "peak": 0.01,
}


def sentences(steps: int, **changes: float) -> list[str]:
    monitor = Monitor(SupervisedObjective.alarms)
    return [text for _ in range(steps) for text in monitor.step({**HEALTHY, **changes})]


def test_a_healthy_run_raises_no_alarm() -> None:
    monitor = Monitor(SupervisedObjective.alarms)
    for step in range(3000):
        assert not monitor.step({**HEALTHY, "loss": 1 - step / 10_000, "usable": 0.75})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"usable": 0.25}, "only 25% of the pairs"),
        ({"inactive": 0.8}, "in 80% of the cells no channel is active"),
        ({"peak": 0.9}, "one cell has 90% of an image's score"),
    ],
)
def test_symptoms_are_reported_once(changes: dict[str, float], message: str) -> None:
    (text,) = sentences(300, **changes)
    assert message in text


def test_a_loss_that_does_not_fall_is_reported_once() -> None:
    assert not sentences(999, loss=1.0)
    (text,) = sentences(2000, loss=1.0)
    assert "the loss has not fallen in 1000 steps (from 1.000 to 1.000)" in text


def test_problems_are_reported_once_each() -> None:
    monitor = Monitor()
    found = [text for problem in "aba" for text in monitor.step(HEALTHY, [problem])]
    assert found == ["a", "b"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss": math.nan}, "diverged"),
        ({"gradient": math.inf}, "diverged"),
        ({"usable": 0.0}, "nothing is learned"),
        ({"similarity": 0.995}, "collapsed"),
    ],
)
def test_hopeless_runs_end_within_the_window(changes: dict[str, float], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        sentences(WINDOW, **changes)
