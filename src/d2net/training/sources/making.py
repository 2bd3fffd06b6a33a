"""From two photos and what is known about them to a training pair: the path all sources share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from d2net.errors import InputError
from d2net.training.augment import change
from d2net.training.correspondences import Pairs
from d2net.training.sources.base import TrainingPair
from d2net.training.sources.reading import read_photo
from d2net.training.views import Geometry, View


@dataclass(frozen=True)
class Options:
    """Options of every kind of source; kinds have defaults of their own.

    Attributes:
        name: what logs call the source; by default its folder.
        photometric: strength of photometric change of both crops, 0 for none to 1 for strong.
        rotation: largest turn of one crop against the other, degrees.
        scale: largest ratio of scales that cropping adds.
        perspective: largest shift of a crop's corner, as a share of half its edge.
        max_edge: photos with a longer edge are reduced first, pixels. MegaDepth's have 1600.
        min_correspondences: a pair with fewer is not used. The release's 128 of 1024 cells.
    """

    name: str = ""
    photometric: float = 0.0
    rotation: float = 0.0
    scale: float = 1.0
    perspective: float = 0.0
    max_edge: int = 1600
    min_correspondences: int = 128

    def __post_init__(self) -> None:
        """Refuse values that mean nothing.

        Raises:
            InputError: a value out of its range.
        """
        if not 0 <= self.photometric <= 2:
            raise InputError(f"photometric is a strength of 0 to 2, not {self.photometric}")
        if self.max_edge < 8:
            raise InputError(f"max_edge is a number of pixels, at least 8, not {self.max_edge}")
        if self.min_correspondences < 0:
            raise InputError(f"min_correspondences is at least 0, not {self.min_correspondences}")
        _ = self.geometry

    @property
    def geometry(self) -> Geometry:
        """How crops may be turned, scaled and seen askew."""
        return Geometry(self.rotation, self.scale, self.perspective)


@dataclass(frozen=True, eq=False)
class Side:
    """One photo of a pair, and the part of it that the crop shows."""

    path: Path
    view: View
    upright: bool = True


def make_pair(
    source: str,
    a: Side,
    b: Side,
    points: Pairs,
    options: Options,
    rng: np.random.Generator,
) -> TrainingPair | None:
    """Cut both crops and change their light, if there are correspondences enough.

    Raises:
        ImageError: a photo is missing or broken.
    """
    if len(points[0]) < options.min_correspondences:
        return None
    crops = [
        change(
            side.view.cut(read_photo(side.path, options.max_edge, upright=side.upright)),
            options.photometric,
            rng,
        )
        for side in (a, b)
    ]
    return TrainingPair(crops[0], crops[1], *points, source, (str(a.path), str(b.path)))
