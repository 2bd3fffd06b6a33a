"""Learns the whitening of descriptors, in closed form, from keypoints that correspond.

Keypoints are corners of either crop and where they really lie in the other: of keypoints that are
found in each by itself, descriptors would learn to differ little over the pixels between the two.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from d2net.errors import TrainingError
from d2net.networks import weights
from d2net.networks.vgg import VGG, WHITENING_INPUTS, Whitening
from d2net.training.batches import draw, open_mixture
from d2net.training.settings import TrainingSettings
from d2net.training.sources import TrainingPair, generator
from d2net.training.transfer import at_corners
from d2net.training.views import Crop

DIMENSIONS = 384
"""Of whitened descriptors."""

SHRINKAGE = 0.2
"""Share of the mean variance within places that is added in every direction: those in which next to
nothing was seen to vary would count for all."""

FEWEST = 10 * WHITENING_INPUTS
"""Pairs of keypoints, fewer of which do not tell how descriptors vary."""


def add_whitening(path: Path, settings: TrainingSettings, data: Path, device: str = "cpu") -> None:
    """Give a weights file the whitening that its descriptors want.

    Args:
        path: a file that `save_weights` wrote; it is replaced.
        settings: of the run that made it: sources, and from how many pairs to learn.
        data: the folder that the sources' paths are relative to.
        device: where the network runs.

    Raises:
        TrainingError: too few keypoints correspond.
        D2NetError: the file or the data cannot be read, or the file not be written.
    """
    network, _ = weights.load_network(path)
    assert isinstance(network, VGG)  # noqa: S101 (`save_weights` writes no other)
    network.to(device)
    mixture = open_mixture(settings, data)
    # not the pairs of the first steps again
    numbers = range(settings.steps, settings.steps + settings.whitening)
    whitening = learn_whitening(
        network, (draw(mixture, generator(settings.seed, n, 0))[0] for n in numbers)
    )
    about = dict(weights.describe(path).metadata)
    weights.save_weights(
        path,
        network.backbone.state_dict(),
        name=about.pop("name"),
        normalisation=network.normalisation,
        licence=about.pop("licence"),
        training_data=about.pop("training_data"),
        whitening=whitening,
        notes=about,
    )


def learn_whitening(network: VGG, pairs: Iterable[TrainingPair]) -> Whitening:
    """The map to the `DIMENSIONS` directions in which places differ most, for how photos do.

    With W the covariance of descriptors of one place and T that of all: the leading generalised
    eigenvectors of T v = l W v, scaled so that W becomes the unit matrix.

    Args:
        network: on the device that is to be used.
        pairs: of crops.

    Raises:
        TrainingError: too few keypoints correspond.
    """
    count, total = 0, torch.zeros(WHITENING_INPUTS, dtype=torch.float64)
    within, everywhere = torch.zeros(2, WHITENING_INPUTS, WHITENING_INPUTS, dtype=torch.float64)
    for pair in pairs:
        crops = (pair.image_a, pair.image_b)
        at = at_corners(crops, (pair.points_a, pair.points_b))
        a, b = (_described(network, crop, points) for crop, points in zip(crops, at, strict=True))
        count += len(a)
        total += (a + b).sum(0)
        within += (a - b).T @ (a - b) / 2
        everywhere += a.T @ a + b.T @ b
    if count < FEWEST:
        raise TrainingError(
            f"the whitening of descriptors needs {FEWEST:,} keypoints that correspond, but the "
            f"training pairs gave {count:,}: draw more pairs (whitening), or none (whitening = 0)"
        )
    mean = total / (2 * count)
    within /= count
    within.diagonal().add_(SHRINKAGE * within.diagonal().mean())
    root = torch.linalg.inv(torch.linalg.cholesky(within))
    varied = everywhere / (2 * count) - mean[:, None] * mean
    _, directions = torch.linalg.eigh(root @ varied @ root.T)
    weight = directions[:, -DIMENSIONS:].T @ root
    weight /= weight.abs().max()  # half precision holds that; descriptors are normalised anyway
    return Whitening(weight.float(), -(weight @ mean).float())


@torch.no_grad()
def _described(network: VGG, crop: Crop, points: NDArray[np.float32]) -> Tensor:
    """N x `WHITENING_INPUTS` float64: what is to be whitened, at points (x, y) of a crop."""
    device = next(network.parameters()).device
    pixels = torch.from_numpy(crop).to(device)[None].float()
    maps = tuple(part[0] for part in network.compute_maps(pixels, torch.float32))
    return network.describe_unwhitened(maps, torch.from_numpy(points).to(device)).double().cpu()
