"""Photos whose features are prepared: a cloud seen by known cameras, without noise or with.

The photos are real files. A photo is one shade of grey, and the network, which is real but for
this, tells them apart by it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pycolmap
import torch
from PIL import Image

from d2net import D2Net
from d2net.extraction.d2net import PreparedPhoto
from d2net.features import Features
from d2net.networks.vgg import VGG

from ..tiny import make_tiny_network

SIZE = (640, 480)
LENS = pycolmap.Camera(
    model="SIMPLE_RADIAL", width=SIZE[0], height=SIZE[1], params=[768, 320, 240, 0.0]
)
N = 120
CLOUD = np.random.default_rng(0).uniform([-3, -2, 6], [3, 2, 12], (N, 3))
OTHER = np.random.default_rng(1).uniform([-3, -2, 6], [3, 2, 12], (N, 3))
_RANDOM = torch.randn(2 * N + 1, 64, generator=torch.Generator().manual_seed(0))
# The other cloud's look like each other, so that few of them are anybody's mutual neighbour.
_RANDOM[N : 2 * N] = _RANDOM[2 * N] + 0.1 * _RANDOM[N : 2 * N]
DESCRIPTORS = torch.nn.functional.normalize(_RANDOM[: 2 * N], dim=1)


def camera(x: float, turn: float = 0.0, z: float = 0.0) -> pycolmap.Rigid3d:
    """At (x, sin(2x) / 2, z), turned about the vertical by so many degrees; `cam_from_world`."""
    c, s = np.cos(np.radians(turn)), np.sin(np.radians(turn))
    rotation = np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])
    return pycolmap.Rigid3d(pycolmap.Rotation3d(rotation), -rotation @ [x, np.sin(2 * x) / 2, z])


def seen(
    cam_from_world: pycolmap.Rigid3d, noise: float = 0.0, *, other: bool = False, seed: int = 5
) -> Features:
    """Features of what a camera sees of the cloud, or of the other cloud."""
    cloud, first = (OTHER, N) if other else (CLOUD, 0)
    points = LENS.img_from_cam(np.array([cam_from_world * p for p in cloud])) - 0.5
    points += np.random.default_rng(seed).normal(0, noise, points.shape) if noise else 0
    inside = ((points >= 0) & (points <= np.array(SIZE) - 1)).all(axis=1)
    n = int(inside.sum())
    return Features(
        keypoints=torch.from_numpy(points[inside]).float(),
        scores=torch.linspace(1, 0.5, n),
        scales=torch.ones(n),
        descriptors=DESCRIPTORS[first : first + N][torch.from_numpy(inside)],
        image_size=SIZE,
        uncertainty=torch.full((n,), 1.0),
    )


def nothing() -> Features:
    return seen(camera(0))[:0]


class PreparedNetwork(D2Net):
    """Gives the features that were prepared for a shade of grey, where the mask allows them."""

    def __init__(self, features: Sequence[Features]) -> None:
        super().__init__(VGG(make_tiny_network()))
        self._prepared = list(features)

    def extract_prepared(self, batch: Sequence[PreparedPhoto]) -> list[Features]:
        found = []
        for photo in batch:
            features = self._prepared[int(photo.pixels[0, 0, 0])]
            if photo.mask is not None:
                columns, rows = features.keypoints.round().long().unbind(1)
                features = features[torch.from_numpy(photo.mask)[rows, columns]]
            found.append(features)
        return found


def write_photos(folder: Path, numbers: Sequence[int]) -> Path:
    """`photo00.png`, ... of the shades `numbers`."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        Image.new("RGB", SIZE, (number,) * 3).save(folder / f"photo{number:02}.png")
    return folder
