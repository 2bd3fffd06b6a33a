"""Learns the whitening of descriptors, in closed form, from keypoints that correspond.

Keypoints are corners of either crop and their interpolated partners in the other. Partners that
were detected independently would be off by a pixel or so, and the whitening would learn to ignore
differences over such distances.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from d2net.errors import TrainingError
from d2net.networks.vgg import VGG, WHITENING_INPUTS, Whitening
from d2net.training.correspondences import corner_correspondences
from d2net.training.crops import RGB
from d2net.training.sources.base import TrainingPair

DIMENSIONS = 384  # of whitened descriptors

SHRINKAGE = 0.2
"""Share of the mean within-class variance that is added in every direction. Without it, directions
in which hardly any variation was seen would dominate."""

MIN_KEYPOINTS = 10 * WHITENING_INPUTS  # fewer pairs of keypoints do not determine the covariances


def learn_whitening(network: VGG, pairs: Iterable[TrainingPair]) -> Whitening:
    """Learn the linear map that best separates different points of the scene.

    With W the covariance of the descriptors of one point and T that of all descriptors, the rows
    are the leading generalised eigenvectors of T v = l W v, scaled so that W becomes the identity.
    Too few keypoints that correspond are a TrainingError.
    """
    count, total = 0, torch.zeros(WHITENING_INPUTS, dtype=torch.float64)
    within, overall = torch.zeros(2, WHITENING_INPUTS, WHITENING_INPUTS, dtype=torch.float64)
    for pair in pairs:
        known = pair.points_a, pair.points_b
        points_a, points_b = corner_correspondences(pair.image_a, pair.image_b, known)
        a = _describe(network, pair.image_a, points_a)
        b = _describe(network, pair.image_b, points_b)
        count += len(a)
        total += (a + b).sum(0)
        within += (a - b).T @ (a - b) / 2
        overall += a.T @ a + b.T @ b
    if count < MIN_KEYPOINTS:
        raise TrainingError(
            f"the whitening of descriptors needs {MIN_KEYPOINTS:,} corresponding keypoints, but "
            f"the pairs gave {count:,}: draw more pairs (whitening), or none (whitening = 0)"
        )
    mean = total / (2 * count)
    within /= count
    within.diagonal().add_(SHRINKAGE * within.diagonal().mean())
    root = torch.linalg.inv(torch.linalg.cholesky(within))
    covariance = overall / (2 * count) - mean[:, None] * mean
    _, directions = torch.linalg.eigh(root @ covariance @ root.T)
    weight = directions[:, -DIMENSIONS:].T @ root
    weight /= weight.abs().max()  # fits half precision; descriptors are normalised afterwards
    return Whitening(weight.float(), -(weight @ mean).float())


@torch.no_grad()
def _describe(network: VGG, crop: RGB, points: NDArray[np.float32]) -> Tensor:
    """N x `WHITENING_INPUTS` float64 inputs of the whitening at points (x, y) of a crop."""
    device = next(network.parameters()).device
    pixels = torch.from_numpy(crop).to(device)[None].float()
    maps = tuple(part[0] for part in network.compute_maps(pixels, torch.float32))
    return network.describe_unwhitened(maps, torch.from_numpy(points).to(device)).double().cpu()
