"""What robust estimators share: the options of RANSAC and a test for degenerate inliers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from d2net.errors import InputError


@dataclass(frozen=True, kw_only=True)
class RansacOptions:
    """Options that every estimator understands.

    Attributes:
        threshold: largest error of an inlier in pixels.
        confidence: the search stops early once it has seen the best model with this probability
            (0.9999 is COLMAP's default for two views).
        max_iterations: largest number of random samples.
        seed: seed of the random samples; the same seed gives identical results.
    """

    threshold: float
    confidence: float = 0.9999
    max_iterations: int = 10_000
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.threshold < np.inf:
            raise InputError(f"threshold must be a positive number of pixels, not {self.threshold}")
        if not 0 < self.confidence < 1:
            raise InputError(f"confidence must be between 0 and 1, not {self.confidence}")
        if self.max_iterations < 1:
            raise InputError(f"max_iterations must be at least 1, not {self.max_iterations}")
        if not 0 <= self.seed < 2**31:
            raise InputError(f"seed must be in 0 .. 2^31 - 1, not {self.seed}")


def collinear(points: NDArray[np.float64], tolerance: float) -> bool:
    """Whether all N x 2 points lie within the tolerance of one line."""
    centred = points - points.mean(axis=0)
    _, _, directions = np.linalg.svd(centred, full_matrices=False)
    return bool(np.abs(centred @ directions[-1]).max() <= tolerance)
