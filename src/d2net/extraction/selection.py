"""Which of the found keypoints are kept."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from d2net.extraction.barring import near
from d2net.extraction.keypoints import Keypoints
from d2net.network.trunk import EXTRACTION_STRIDE


def best_first(found: Sequence[Keypoints], most: int | None) -> Keypoints:
    """The best of all proposers' keypoints, by score.

    Every proposer has an equal share of the budget, and what one does not use goes to the ones
    before it. A keypoint within half a cell of an earlier proposer's has nearly the same
    descriptor; it gives way, and so leaves its place to the next best.

    Args:
        found: of one photo, by each proposer.
        most: how many to keep, None for all.
    """
    kept: list[Keypoints] = []
    for number, keypoints in enumerate(found):
        free = keypoints
        for earlier in kept:
            radius = EXTRACTION_STRIDE / 2 * free.scales
            free = free[~near(free.positions, earlier.positions, radius)]
        budget = len(free)
        if most is not None:
            left, later = most - sum(map(len, kept)), found[number + 1 :]
            share = left // (len(later) + 1)
            budget = left - sum(min(len(other), share) for other in later)
        kept.append(free[_by_score(free)[:budget]])
    joined = Keypoints.joined(kept)
    return joined[_by_score(joined)]


def _by_score(keypoints: Keypoints) -> torch.Tensor:
    return keypoints.scores.argsort(descending=True, stable=True)
