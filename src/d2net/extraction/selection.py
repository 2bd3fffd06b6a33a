"""Selection of keypoints: the budget, and near duplicates of two detectors."""

from __future__ import annotations

from collections.abc import Sequence

from d2net.extraction.keypoints import Keypoints
from d2net.extraction.suppression import has_neighbour

NEAR_DUPLICATE = 1.0
"""If keypoints of two detectors are this close, in pixels of the second keypoint's level, the
second one is dropped. Up to 2 px this lost no right matches of webcams over day and season; 3 px
did."""


def select_best(found: Sequence[Keypoints], budget: int | None) -> Keypoints:
    """The best keypoints of one photo, best first, from the keypoints of each detector.

    Every detector has an equal share of the budget (None: no limit). A detector that finds fewer
    leaves the rest of its share to the detectors before it. A keypoint close to one of an earlier
    detector is dropped, and the next best one takes its place.
    """
    kept: list[Keypoints] = []
    for number, keypoints in enumerate(found):
        rows = keypoints.scores.argsort(descending=True, stable=True)
        for earlier in kept:
            radius = NEAR_DUPLICATE * keypoints.scales[rows]
            rows = rows[~has_neighbour(keypoints.positions[rows], earlier.positions, radius)]
        share = len(rows)
        if budget is not None:
            left, later = budget - sum(map(len, kept)), found[number + 1 :]
            equal = left // (len(later) + 1)
            share = left - sum(min(len(other), equal) for other in later)
        kept.append(keypoints[rows[:share]])
    together = Keypoints.concatenated(kept)
    return together.best(len(together))
