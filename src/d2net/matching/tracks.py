"""Keypoints of many photos moved together, by what their matches say of each other's places.

A point of the world has one keypoint in each photo that sees it, and every match of two of these
says where one lies if the other is right. All of it is one sparse least squares problem, as in
Pixel-Perfect Structure-from-Motion (Lindenberger et al., ICCV 2021), in which a keypoint stays near
to where it was detected: the less sure of two moves more. A track may hold two keypoints of one
photo, as detections near each other often are of one point; where they are not, matches contradict
each other, and those that most others contradict count less and less.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Numbers = NDArray[np.int64]
Marks = NDArray[np.bool_]

_ROUNDS = 5
_OUTLIER = 3.0
"""Standard deviations at which a match counts half (Cauchy's weights)."""


@dataclass(frozen=True)
class Displacements:
    """What matches say of the places of keypoints, which are numbered over all photos.

    Attributes:
        first: N, the keypoint of the first photo of each.
        second: N, that of the second photo.
        shifts: N x 2 pixels, from where the second one is to where it belongs if the first one is
            right.
        frames: N x 2 x 2, how the second one moves with the first.
        information: N x 2 x 2, inverse covariance of `shifts`.
    """

    first: Numbers
    second: Numbers
    shifts: Array
    frames: Array
    information: Array

    def __len__(self) -> int:
        return len(self.first)


def joined(parts: Sequence[Displacements]) -> Displacements:
    """All of the parts' displacements, in their order."""
    return Displacements(
        np.concatenate([np.empty(0, np.int64), *(part.first for part in parts)]),
        np.concatenate([np.empty(0, np.int64), *(part.second for part in parts)]),
        np.concatenate([np.empty((0, 2)), *(part.shifts for part in parts)]),
        np.concatenate([np.empty((0, 2, 2)), *(part.frames for part in parts)]),
        np.concatenate([np.empty((0, 2, 2)), *(part.information for part in parts)]),
    )


def settle(said: Displacements, deviations: Array) -> tuple[Array, Marks]:
    """Move keypoints to where displacements and detections agree best.

    Args:
        said: by matches.
        deviations: M, of the detected places in pixels.

    Returns:
        M x 2 moves in pixels, and M marks of the keypoints of which some displacement agrees with
        the moves; the others stay.
    """
    from scipy import sparse
    from scipy.sparse.linalg import spsolve

    count, size = len(said), len(deviations)
    if count == 0:
        return np.zeros((size, 2)), np.zeros(size, np.bool_)
    # Rows of the system are whitened: each has deviation 1 if the matches are right.
    white = np.linalg.cholesky(said.information).transpose(0, 2, 1)
    system = sparse.bsr_array(
        (
            np.stack([-white @ said.frames, white], axis=1).reshape(-1, 2, 2),
            np.stack([said.first, said.second], axis=1).ravel(),
            np.arange(0, 2 * count + 1, 2),
        ),
        shape=(2 * count, 2 * size),
    ).tocsr()
    wanted = np.einsum("nij,nj->ni", white, said.shifts).ravel()
    detected = sparse.diags_array(np.repeat(deviations**-2.0, 2))
    weights = np.ones(count)
    for _ in range(_ROUNDS):
        weighted = sparse.diags_array(np.repeat(weights, 2)) @ system
        moves = spsolve((weighted.T @ system + detected).tocsc(), weighted.T @ wanted)
        errors = np.sum((system @ moves - wanted).reshape(-1, 2) ** 2, axis=1) / _OUTLIER**2
        weights = 1 / (1 + errors)
    agree = np.zeros(size, np.bool_)
    for ends in (said.first, said.second):
        agree[ends[errors < 1]] = True
    return np.where(agree[:, None], moves.reshape(-1, 2), 0.0), agree
