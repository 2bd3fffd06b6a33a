"""What goes wrong in training, noticed early and said in one sentence."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping

from d2net.errors import TrainingError

WINDOW = 50
"""Steps over which figures are averaged before they alarm."""

_COLLAPSED = 0.98  # mean cosine of different cells; off-the-shelf weights have 0.6
_TOO_MUCH = 0.5
_PATIENCE = 1000  # steps in which the loss has to have fallen


class Watch:
    """Watches the figures of the steps of a run."""

    def __init__(self) -> None:
        self._recent: deque[Mapping[str, float]] = deque(maxlen=WINDOW)
        self._first_losses: list[float] = []
        self._said: set[str] = set()
        self._steps = 0

    def step(self, figures: Mapping[str, float]) -> list[str]:
        """Take the figures of a step.

        Args:
            figures: `loss`, `gradient`, `usable` (share of pairs with correspondences),
                `similarity`, `inactive`, `peak`, as in `Loss`, averaged over the batch.

        Returns:
            Sentences about what looks wrong, each one once in a run.

        Raises:
            TrainingError: it makes no sense to go on.
        """
        self._steps += 1
        if not math.isfinite(figures["loss"]) or not math.isfinite(figures["gradient"]):
            raise TrainingError(
                f"the training diverged: the loss is {figures['loss']:.3g} and its gradient "
                f"{figures['gradient']:.3g}; start again with a lower learning_rate or with clip"
            )
        self._recent.append(figures)
        if figures["usable"] and len(self._first_losses) < WINDOW:
            self._first_losses.append(figures["loss"])
        if len(self._recent) < WINDOW:
            return []
        self._give_up_if_hopeless()
        symptoms = self._symptoms()
        new = [sentence for name, sentence in symptoms.items() if name not in self._said]
        self._said.update(symptoms)
        return new

    def _mean(self, name: str) -> float:
        return sum(figures[name] for figures in self._recent) / len(self._recent)

    def _give_up_if_hopeless(self) -> None:
        if self._mean("usable") == 0:
            raise TrainingError(
                f"none of the pairs of the last {WINDOW} steps has a correspondence on which any "
                "score lies, so that nothing is learnt: look at the pairs with `d2net data check`"
            )
        if self._mean("similarity") > _COLLAPSED:
            raise TrainingError(
                "the descriptors have collapsed: those of different cells have a mean cosine of "
                f"{self._mean('similarity'):.3f}; start again with a lower learning_rate, with "
                "retention, or from other weights"
            )

    def _symptoms(self) -> dict[str, str]:
        """What looks wrong in the last steps, by its name."""
        found = {}
        unusable = 1 - self._mean("usable")
        if unusable > _TOO_MUCH:
            found["unusable"] = (
                f"{unusable:.0%} of the pairs of the last {WINDOW} steps have no correspondence on "
                "which any score lies: look at them with `d2net data check`"
            )
        if self._mean("inactive") > _TOO_MUCH:
            found["inactive"] = (
                f"in {self._mean('inactive'):.0%} of the cells no channel is active, so that "
                "nothing can be detected there: lower learning_rate or start from other weights"
            )
        if self._mean("peak") > _TOO_MUCH:
            found["peak"] = (
                f"one cell has {self._mean('peak'):.0%} of an image's score: the detector looks at "
                "single spots; lower learning_rate or start from other weights"
            )
        first = sum(self._first_losses) / max(1, len(self._first_losses))
        if self._steps >= _PATIENCE and self._mean("loss") >= first:
            found["stuck"] = (
                f"the loss has not fallen in {self._steps} steps (from {first:.3f} to "
                f"{self._mean('loss'):.3f}): wrong poses or depth (see `d2net data check`), or a "
                "learning_rate that is too low or too high"
            )
        return found
