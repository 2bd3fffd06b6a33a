"""Pairs of photos with known cameras, from any number of scenes.

As in the 2019 release (`lib/dataset.py`), a pair of photos shares enough of the first one's points,
and crops are cut around a random common point. With depth maps, correspondences follow from depth
and pose at every cell; without them, from the tracks of the points.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from d2net.geometry import coordinates
from d2net.geometry.coordinates import Array, Size
from d2net.geometry.epipolar import pose_distance
from d2net.io.images import limited_size
from d2net.training.correspondences import (
    DepthWarp,
    PosedDepth,
    dense_correspondences,
    sparse_correspondences,
)
from d2net.training.crops import crop_around, random_crop
from d2net.training.sources.base import PhotoCrop, SourceOptions, TrainingPair, make_pair
from d2net.training.sources.reading import read_depth_map

if TYPE_CHECKING:
    import pycolmap

_ATTEMPTS = 4  # common points around which crops are tried
_AUDIT_GRID = 40  # points per side of the grid at which depth is audited


@dataclass(frozen=True)
class SceneOptions(SourceOptions):
    """Options of scenes with known cameras."""

    min_overlap: float = 0.5
    """Minimum share of the first photo's points that the second sees."""

    depth_tolerance: float = 0.05
    """Largest difference of two depths of one point, as a share of the depth."""

    png_unit: float = 0.001
    """Length that the value 1 of a depth png stands for, in the unit of the poses."""


@dataclass(frozen=True, eq=False)
class ScenePhoto:
    """A photo with its camera and its observations, in pixels of the photo as it is read.

    Attributes:
        path: the photo.
        camera: COLMAP's camera, of the photo's size.
        cam_from_world: 3 x 4.
        ids: N ids of the observed points, ascending and unique.
        points: N x 2 (x, y) observations, pixel centres at integers.
        depths: N depths of the points along the optical axis.
        depth_map: the file of its depth map, or None.
        upright: whether the camera belongs to the photo rotated upright, or to it as stored.
    """

    path: Path
    camera: pycolmap.Camera
    cam_from_world: Array
    ids: NDArray[np.int64]
    points: Array
    depths: Array
    depth_map: Path | None
    upright: bool = False

    @property
    def size(self) -> Size:
        """(width, height)."""
        return self.camera.width, self.camera.height

    def reduced(self, max_edge: int | None) -> ScenePhoto:
        """This photo with its longer edge at most `max_edge` pixels, as `read_photo` reads it."""
        size = limited_size(self.size, max_edge, None)
        if size == self.size:
            return self
        camera = copy.deepcopy(self.camera)
        camera.rescale(*size)
        points = coordinates.resize(self.size, size)(self.points)
        return replace(self, camera=camera, points=points)


class Scene(NamedTuple):
    """The pairs of photos of one scene.

    Attributes:
        pairs: K x 2 numbers of photos; each order is a pair of its own.
        photo: gives a photo by its number. It must be picklable.
    """

    pairs: NDArray[np.int64]
    photo: Callable[[int], ScenePhoto]


class ScenePhotoPair(NamedTuple):
    """Two photos of a scene, and K x 2 common points in each."""

    a: ScenePhoto
    b: ScenePhoto
    points_a: Array
    points_b: Array

    @classmethod
    def of(cls, a: ScenePhoto, b: ScenePhoto) -> ScenePhotoPair:
        """Find the common points of two photos."""
        _, rows_a, rows_b = np.intersect1d(a.ids, b.ids, assume_unique=True, return_indices=True)
        return cls(a, b, a.points[rows_a], b.points[rows_b])

    def depth_warp(self, options: SceneOptions) -> DepthWarp | None:
        """The warp between the photos by their depth maps; None if one has none."""
        sides = []
        for photo in (self.a, self.b):
            if photo.depth_map is None:
                return None
            depth = read_depth_map(photo.depth_map, options.png_unit)
            sides.append(PosedDepth(photo.camera, photo.cam_from_world, depth, photo.size))
        return DepthWarp(sides[0], sides[1], options.depth_tolerance)


@dataclass(eq=False)
class ScenePairs:
    """A source of training pairs from scenes with known cameras, each with at least one pair.

    With `pairs_per_scene`, every scene counts the same, as in the release: index i stands for a
    random pair of scene i // pairs_per_scene. `remarks` name the photos that were left out.
    """

    name: str
    scenes: Sequence[Scene]
    options: SceneOptions
    crop: int
    remarks: tuple[str, ...] = ()
    pairs_per_scene: int = 0

    def __post_init__(self) -> None:
        self._ends = np.cumsum([self.pairs_per_scene or len(scene.pairs) for scene in self.scenes])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def photos(self, index: int, rng: np.random.Generator) -> ScenePhotoPair:
        """The two photos of a pair."""
        number = int(np.searchsorted(self._ends, index, side="right"))
        scene = self.scenes[number]
        row = index - int(self._ends[number])  # negative: counted from the scene's last pair
        if self.pairs_per_scene:
            row = int(rng.integers(len(scene.pairs)))
        return ScenePhotoPair.of(*(scene.photo(int(i)) for i in scene.pairs[row]))

    def pair(self, index: int, rng: np.random.Generator) -> TrainingPair | None:
        """Make crops around a random point that both photos see; see `Source.pair`."""
        photos, options = self.photos(index, rng), self.options
        a, b, points_a, points_b = photos
        depth_warp = photos.depth_warp(options)
        for row in rng.permutation(len(points_a))[:_ATTEMPTS]:
            crop_a = crop_around(points_a[row], a.size, self.crop)
            if (options.rotation, options.scale, options.perspective) == (0, 1, 0):
                crop_b = crop_around(points_b[row], b.size, self.crop)
            else:
                scale = options.random_ratio(rng)
                crop_b = random_crop(points_b[row], b.size, self.crop, scale, options, rng)
            if depth_warp is None:
                points = sparse_correspondences(crop_a, crop_b, points_a, points_b)
            else:
                points = dense_correspondences(crop_a, crop_b, depth_warp)
            sides = PhotoCrop(a.path, crop_a, a.upright), PhotoCrop(b.path, crop_b, b.upright)
            pair = make_pair(self.name, *sides, points, options, rng)
            if pair is not None:
                return pair
        return None

    def audit(self, index: int, rng: np.random.Generator) -> dict[str, float]:
        """Measure whether poses, tracks and depth of a pair agree.

        Returns:
            `track_error_pixels`: median Sampson distance of common tracks under the poses. With
            depth maps also `depth_error`: median difference between the first photo's depth map
            and its points, as a share; and `share_occluded` of a grid over the first photo, of the
            points that project onto known depth in the second one.
        """
        photos = self.photos(index, rng)
        a, b, in_a, in_b = photos
        rotation = b.cam_from_world[:, :3] @ a.cam_from_world[:, :3].T
        translation = b.cam_from_world[:, 3] - rotation @ a.cam_from_world[:, 3]
        distances = pose_distance(rotation, translation, (a.camera, b.camera), (in_a, in_b))
        figures = {"track_error_pixels": median_known(distances)}
        warp = photos.depth_warp(self.options)
        if warp is None:
            return figures
        with np.errstate(invalid="ignore", divide="ignore"):
            errors = np.abs(warp.a.depth_at(a.points) - a.depths) / a.depths
        figures["depth_error"] = median_known(errors)
        columns, rows = np.meshgrid(*(np.linspace(0, edge - 1, _AUDIT_GRID) for edge in a.size))
        _, expected, measured = warp.project(np.stack([columns.ravel(), rows.ravel()], axis=1))
        known = np.isfinite(measured)
        occluded = known & ~warp.agrees(expected, measured)
        figures["share_occluded"] = occluded.sum() / known.sum() if known.any() else float("nan")
        return figures


def median_known(values: NDArray[Any]) -> float:
    """Median of the finite values; NaN if there are none."""
    known = np.asarray(values)[np.isfinite(values)]
    return float(np.median(known)) if len(known) else float("nan")


def find_overlaps(
    photos: Sequence[ScenePhoto], min_share: float = 0.0
) -> tuple[NDArray[np.int64], Array]:
    """Find the photos of one scene that see the same points.

    Returns:
        K x 2 numbers of photos, each pair in both orders, and for each row the share of the first
        photo's points that the second photo sees.
    """
    from scipy import sparse

    if len(photos) < 2:
        return np.empty((0, 2), np.int64), np.empty(0)
    ids = np.concatenate([photo.ids for photo in photos])
    counts = np.array([len(photo.ids) for photo in photos])
    rows = np.repeat(np.arange(len(photos)), counts)
    points, columns = np.unique(ids, return_inverse=True)
    shape = len(photos), len(points)
    seen = sparse.csr_array((np.ones(len(ids), np.int32), (rows, columns)), shape)
    common = sparse.triu(seen @ seen.T, k=1).tocoo()
    pairs = np.stack([common.row, common.col], axis=1).astype(np.int64)
    shares = common.data[:, None] / counts[pairs]
    keep = shares.max(axis=1) >= min_share
    pairs, shares = pairs[keep], shares[keep]
    return np.concatenate([pairs, pairs[:, ::-1]]), shares.T.ravel()
