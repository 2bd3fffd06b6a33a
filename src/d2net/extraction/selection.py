"""Which of the found keypoints are kept."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from d2net.extraction.keypoints import Keypoints
from d2net.extraction.suppression import near

NEAR_DUPLICATE = 1.0
"""Keypoints of two proposers this near, in pixels of the later one's level, are one. Up to 2 px the
right matches of webcams over day and season were as many as without the rule, at 3 px fewer."""


def best_first(found: Sequence[Keypoints], most: int | None) -> Keypoints:
    """The best of all proposers' keypoints, by score.

    Every proposer has an equal share of the budget, and what one does not use goes to the ones
    before it. A keypoint that nearly coincides with an earlier proposer's gives way and leaves its
    place to the next best.

    Args:
        found: of one photo, by each proposer.
        most: how many to keep, None for all.
    """
    kept: list[Keypoints] = []
    for number, keypoints in enumerate(found):
        rows = _by_score(keypoints)
        for earlier in kept:
            radius = NEAR_DUPLICATE * keypoints.scales[rows]
            rows = rows[~near(keypoints.positions[rows], earlier.positions, radius)]
        budget = len(rows)
        if most is not None:
            left, later = most - sum(map(len, kept)), found[number + 1 :]
            share = left // (len(later) + 1)
            budget = left - sum(min(len(other), share) for other in later)
        kept.append(keypoints[rows[:budget]])
    return in_order(kept)


def in_order(parts: Sequence[Keypoints]) -> Keypoints:
    """All keypoints of at least one part, best score first."""
    joined = Keypoints.joined(parts)
    return joined[_by_score(joined)]


def _by_score(keypoints: Keypoints) -> torch.Tensor:
    return keypoints.scores.argsort(descending=True, stable=True)
