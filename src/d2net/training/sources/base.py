"""Training pairs, the interface of their sources, and the steps that all sources share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol, TypeAlias, TypeVar

import numpy as np

from d2net.errors import InputError
from d2net.training.augment import augment
from d2net.training.correspondences import PointPairs, Points
from d2net.training.crops import RGB, Crop, Warp
from d2net.training.sources.reading import read_photo

Pair_co = TypeVar("Pair_co", covariant=True)


@dataclass(frozen=True, eq=False)
class TrainingPair:
    """Two crops of the same size with correspondences.

    Attributes:
        image_a: H x W x 3.
        image_b: H x W x 3.
        points_a: K x 2 float32 (x, y) in pixels of `image_a`, pixel centres at integers. Sources
            with dense correspondences give cell centres, 8c + 3.5; sources with tracks give their
            points, wherever they lie.
        points_b: K x 2 float32, the partners in pixels of `image_b`.
        source: name of the source.
        photos: paths of the two photos; twice the same one where both crops are from one photo.
    """

    image_a: RGB
    image_b: RGB
    points_a: Points
    points_b: Points
    source: str
    photos: tuple[str, str]


class PairSource(Protocol[Pair_co]):
    """A source of pairs of any type; `len` is the number of distinct pairs."""

    name: str

    def __len__(self) -> int: ...

    def pair(self, index: int, rng: np.random.Generator) -> Pair_co | None:
        """Make a pair; None if it has too few correspondences.

        The pair depends only on `index` and `rng`, so a resumed run sees the same pairs as an
        uninterrupted one. Raises D2NetError if a file is missing or broken.
        """
        ...


Source: TypeAlias = PairSource[TrainingPair]  # a source of training pairs


@dataclass(frozen=True)
class SourceOptions(Warp):
    """Options of all sources, with the limits of their warps. Each kind has its own defaults."""

    photometric: float = 0.0
    """Strength of the photometric augmentation of both crops: 0 for none, 1 for strong."""

    max_edge: int = 1600
    """Photos with a longer edge are reduced first, pixels. (MegaDepth: 1600)"""

    min_correspondences: int = 128
    """Pairs with fewer correspondences are not used. (release: 128 of 1024 cells)"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.photometric <= 2:
            raise InputError(f"photometric must be a strength of 0 to 2, not {self.photometric}")
        self.check_least(8, "max_edge")
        self.check_least(0, "min_correspondences")


class PhotoCrop(NamedTuple):
    """A crop and the photo that it is cut from."""

    path: Path
    crop: Crop
    upright: bool = True


def make_pair(
    source: str,
    a: PhotoCrop,
    b: PhotoCrop,
    points: PointPairs,
    options: SourceOptions,
    rng: np.random.Generator,
) -> TrainingPair | None:
    """Cut and augment both crops; None if there are too few correspondences."""
    if len(points[0]) < options.min_correspondences:
        return None
    images = []
    for path, crop, upright in (a, b):
        image = crop.cut(read_photo(path, options.max_edge, upright=upright))
        images.append(augment(image, options.photometric, rng))
    return TrainingPair(images[0], images[1], *points, source, (str(a.path), str(b.path)))


def pair_generator(seed: int, step: int, row: int = 0) -> np.random.Generator:
    """The random generator of one pair of a run, by the run's seed, the step and the pair's row.

    It depends on nothing else, so any step can be drawn without those before it.
    """
    return np.random.default_rng((seed, step, row))
