"""Alarms: failures of training, noticed within some steps and reported in one sentence."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from d2net.errors import TrainingError

WINDOW = 50  # steps over which figures are averaged before they raise an alarm

_PATIENCE = 1000  # steps in which the loss must have fallen


@dataclass(frozen=True)
class Alarm:
    """A condition on the mean of one figure over the last `WINDOW` steps.

    Attributes:
        figure: name of the figure.
        condition: whether a mean raises the alarm.
        message: the sentence, in which {value} stands for the mean.
        ends_run: whether the run ends.
    """

    figure: str
    condition: Callable[[float], bool]
    message: str
    ends_run: bool = False


COLLAPSE = Alarm(
    "similarity",
    lambda cosine: cosine > 0.98,  # off-the-shelf weights have 0.6
    "the descriptors have collapsed: those of different points have a mean cosine of {value:.3f}; "
    "start again with a lower learning_rate or from other weights",
    ends_run=True,
)


class Monitor:
    """Watches a run's figures for its alarms, for divergence, and for a loss that does not fall."""

    def __init__(self, alarms: Sequence[Alarm] = ()) -> None:
        self._alarms = alarms
        self._recent: deque[Mapping[str, float]] = deque(maxlen=WINDOW)
        self._first_losses: list[float] = []
        self._reported: set[str] = set()
        self._steps = 0

    def step(self, figures: Mapping[str, float], problems: Iterable[str] = ()) -> list[str]:
        """Check the figures of a step: `loss`, `gradient` (its norm), and those that alarms name.

        Returns the problems, sentences about the data of the step, then the alarms, each once.
        """
        self._steps += 1
        loss, gradient = figures["loss"], figures["gradient"]
        if not math.isfinite(loss) or not math.isfinite(gradient):
            raise TrainingError(
                f"the training diverged: the loss is {loss:.3g} and its gradient {gradient:.3g}; "
                "start again with a lower learning_rate or with clip"
            )
        self._recent.append(figures)
        if figures.get("usable", 1) and len(self._first_losses) < WINDOW:
            self._first_losses.append(loss)
        raised = {text: text for text in problems}
        if len(self._recent) == WINDOW:
            for alarm in self._alarms:
                value = self._mean(alarm.figure)
                if alarm.condition(value):
                    raised[alarm.message] = alarm.message.format(value=value)
                    if alarm.ends_run:
                        raise TrainingError(raised[alarm.message])
            last = self._mean("loss")
            first = sum(self._first_losses) / max(1, len(self._first_losses))
            if self._steps >= _PATIENCE and last >= first:
                raised["stuck"] = (
                    f"the loss has not fallen in {self._steps} steps (from {first:.3f} to "
                    f"{last:.3f}): wrong poses or depth (see `d2net data check`), or a "
                    "learning_rate that is too low or too high"
                )
        new = [text for key, text in raised.items() if key not in self._reported]
        self._reported |= raised.keys()
        return new

    def _mean(self, name: str) -> float:
        return sum(figures[name] for figures in self._recent) / len(self._recent)
