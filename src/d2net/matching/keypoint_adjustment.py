"""Keypoint adjustment: keypoints of many photos are moved so that their matches agree.

Each 3D point has a keypoint in every photo that sees it. Every match of two of them gives the
position of one keypoint relative to the other. All matches together are one sparse least-squares
problem, as in Pixel-Perfect Structure-from-Motion (Lindenberger et al., ICCV 2021). In addition,
each keypoint is held near its detected position: of two keypoints the less certain one moves more.
A track may contain two keypoints of one photo, because nearby detections often belong to one point.
If they do not, their matches contradict each other, and matches that contradict most others get
less and less weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

_ROUNDS = 5
_OUTLIER = 3.0  # standard deviations at which the weight of a match is one half (Cauchy's weights)


class MatchShifts(NamedTuple):
    """Shifts of keypoints that N matches ask for. Keypoints are numbered over all photos.

    Attributes:
        first: N int64, the keypoint of the first photo of each match.
        second: N int64, the keypoint of the second photo.
        shifts: N x 2 pixels from the second keypoint to its right position if the first keypoint
            is right.
        affine: N x 2 x 2, how the second keypoint moves when the first one moves.
        information: N x 2 x 2, inverse covariance of `shifts`.
    """

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    shifts: Array
    affine: Array
    information: Array


def adjust_keypoints(
    matches: Sequence[MatchShifts], deviations: Array
) -> tuple[Array, NDArray[np.bool_]]:
    """Move M keypoints to the positions that agree best with their matches and their detections.

    `deviations` are the standard deviations of the detected positions in pixels.

    Returns:
        M x 2 moves in pixels, and an M bool mask of the keypoints for which at least one match
        agrees with the moves. The other keypoints do not move.
    """
    from scipy import sparse
    from scipy.sparse.linalg import spsolve

    num_keypoints = len(deviations)
    if not sum(len(part.first) for part in matches):
        return np.zeros((num_keypoints, 2)), np.zeros(num_keypoints, np.bool_)
    first, second, shifts, affine, information = map(np.concatenate, zip(*matches, strict=True))
    num_matches = len(first)
    # Whitened: every row of the system has deviation 1 if its match is right.
    white = np.linalg.cholesky(information).transpose(0, 2, 1)
    system = sparse.bsr_array(
        (
            np.stack([-white @ affine, white], axis=1).reshape(-1, 2, 2),
            np.stack([first, second], axis=1).ravel(),
            np.arange(0, 2 * num_matches + 1, 2),
        ),
        shape=(2 * num_matches, 2 * num_keypoints),
    ).tocsr()
    target = np.einsum("nij,nj->ni", white, shifts).ravel()
    prior = sparse.diags_array(np.repeat(deviations**-2.0, 2))
    weights = np.ones(num_matches)
    for _ in range(_ROUNDS):
        weighted = sparse.diags_array(np.repeat(weights, 2)) @ system
        moves = spsolve((weighted.T @ system + prior).tocsc(), weighted.T @ target)
        errors = np.sum((system @ moves - target).reshape(-1, 2) ** 2, axis=1) / _OUTLIER**2
        weights = 1 / (1 + errors)
    adjusted = np.zeros(num_keypoints, np.bool_)
    for keypoints in (first, second):
        adjusted[keypoints[errors < 1]] = True
    return np.where(adjusted[:, None], moves.reshape(-1, 2), 0.0), adjusted
