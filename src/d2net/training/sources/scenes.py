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
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from d2net.errors import InputError
from d2net.geometry import coordinates
from d2net.geometry.cameras import rays
from d2net.geometry.coordinates import Size
from d2net.geometry.epipolar import essential_from_pose, sampson_distance
from d2net.io.images import limited_size
from d2net.training.correspondences import (
    DepthWarp,
    PointPairs,
    PosedDepth,
    dense_correspondences,
    sparse_correspondences,
)
from d2net.training.crops import Array, Crop, crop_around, random_crop
from d2net.training.sources.base import PhotoCrop, SourceOptions, TrainingPair, make_pair
from d2net.training.sources.reading import read_depth_map

if TYPE_CHECKING:
    import pycolmap

_ATTEMPTS = 4  # common points that crops are tried at before a pair is given up for this time
_AUDIT_GRID = 40  # points per side of the grid at which depth is audited


@dataclass(frozen=True)
class SceneOptions(SourceOptions):
    """Options of scenes with known cameras."""

    min_overlap: float = 0.5
    """Minimum share of the first photo's points that the second sees."""

    max_overlap: float = 1.0
    """Maximum share. A value below 1 excludes photos from nearly the same viewpoint."""

    min_scale_ratio: float = 1.0
    """Minimum ratio of the photos' scales: the median over common points, at least 1."""

    max_scale_ratio: float = float("inf")
    """Maximum ratio of the photos' scales."""

    depth_tolerance: float = 0.05
    """By how much two depths of one point may differ, as a share of the depth."""

    png_unit: float = 0.001
    """Length that the value 1 of a depth png stands for, in the unit of the poses."""


@dataclass(frozen=True, eq=False)
class PosedPhoto:
    """A photo with its camera and its observations, in pixels of the photo as it is read.

    Attributes:
        path: the photo.
        upright: whether the camera is that of the photo turned upright.
        size: (width, height).
        camera: COLMAP's camera, of that size.
        cam_from_world: 3 x 4.
        ids: N ids of the observed points, ascending and unique.
        points: N x 2 (x, y) observations, pixel centres at integers.
        depths: N depths of the points along the optical axis.
        depth_map: the file of its depth map, or None.
    """

    path: Path
    upright: bool
    size: Size
    camera: pycolmap.Camera
    cam_from_world: Array
    ids: NDArray[np.int64]
    points: Array
    depths: Array
    depth_map: Path | None

    @property
    def pixel_sizes(self) -> Array:
        """N lengths that a pixel covers at the points, in the unit of the poses."""
        return np.asarray(self.depths / self.camera.mean_focal_length(), np.float64)

    def reduced(self, max_edge: int | None) -> PosedPhoto:
        """This photo with its longer edge at most `max_edge` pixels, as `read_photo` reads it."""
        size = limited_size(self.size, max_edge, None)
        if size == self.size:
            return self
        camera = copy.deepcopy(self.camera)
        camera.rescale(*size)
        points = coordinates.resize(self.size, size)(self.points)
        return replace(self, size=size, camera=camera, points=points)


@dataclass(frozen=True, eq=False)
class Scene:
    """The pairs of photos of one scene.

    Attributes:
        pairs: K x 2 numbers of photos; each order is a pair of its own.
        photo: gives a photo by its number. It must be picklable.
    """

    pairs: NDArray[np.int64]
    photo: Callable[[int], PosedPhoto]


@dataclass(frozen=True, eq=False)
class PhotoPair:
    """Two photos of a scene, and the rows of their common points in both."""

    a: PosedPhoto
    b: PosedPhoto
    rows_a: NDArray[np.int64]
    rows_b: NDArray[np.int64]

    @classmethod
    def of(cls, a: PosedPhoto, b: PosedPhoto) -> PhotoPair:
        """Find the common points of two photos."""
        _, rows_a, rows_b = np.intersect1d(a.ids, b.ids, assume_unique=True, return_indices=True)
        return cls(a, b, rows_a, rows_b)

    @property
    def scale_ratios(self) -> Array:
        """K scales of photo b relative to photo a, at the common points."""
        return np.asarray(
            self.a.pixel_sizes[self.rows_a] / self.b.pixel_sizes[self.rows_b], np.float64
        )

    @property
    def points(self) -> tuple[Array, Array]:
        """K x 2 common points in a and in b."""
        return self.a.points[self.rows_a], self.b.points[self.rows_b]

    def depth_warp(self, options: SceneOptions) -> DepthWarp | None:
        """The warp between the photos by their depth maps; None if one has none.

        Raises:
            FormatError: a depth map is missing or broken.
        """

        def posed_depth(photo: PosedPhoto, depth_map: Path) -> PosedDepth:
            depth = read_depth_map(depth_map, options.png_unit)
            return PosedDepth(photo.camera, photo.cam_from_world, depth, photo.size)

        map_a, map_b = self.a.depth_map, self.b.depth_map
        if map_a is None or map_b is None:
            return None
        a, b = posed_depth(self.a, map_a), posed_depth(self.b, map_b)
        return DepthWarp(a, b, options.depth_tolerance)


class ScenePairs:
    """A source of training pairs from scenes with known cameras.

    Args:
        name: name of the source.
        scenes: scenes with at least one pair each.
        options: options of cropping and of correspondences.
        crop: edge of the crops in pixels.
        remarks: sentences on what was left out.
        pairs_per_scene: let every scene count the same, as the release does: index i stands for a
            random pair of scene i // pairs_per_scene. None: each pair once.
    """

    def __init__(
        self,
        name: str,
        scenes: Sequence[Scene],
        options: SceneOptions,
        crop: int,
        remarks: Sequence[str] = (),
        pairs_per_scene: int | None = None,
    ) -> None:
        self.name = name
        self.remarks = tuple(remarks)
        self._scenes, self._options, self._crop = scenes, options, crop
        self._per_scene = pairs_per_scene
        self._ends = np.cumsum([pairs_per_scene or len(scene.pairs) for scene in scenes])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def photos(self, index: int, rng: np.random.Generator) -> PhotoPair:
        """The two photos of a pair."""
        number = int(np.searchsorted(self._ends, index, side="right"))
        scene = self._scenes[number]
        pairs = scene.pairs
        if self._per_scene is None:
            row = index - int(self._ends[number] - len(pairs))
        else:
            row = int(rng.integers(len(pairs)))
        a, b = (scene.photo(int(i)) for i in pairs[row])
        return PhotoPair.of(a, b)

    def pair(self, index: int, rng: np.random.Generator) -> TrainingPair | None:
        """Make crops around a random point that both photos see; see `Source.pair`."""
        photos = self.photos(index, rng)
        correspondences = self._correspondences(photos)
        ratios = photos.scale_ratios
        centres = np.flatnonzero(np.maximum(ratios, 1 / ratios) <= self._options.max_scale_ratio)
        for row in rng.permutation(centres)[:_ATTEMPTS]:
            crop_a, crop_b = self._crops(photos, int(row), rng)
            pair = make_pair(
                self.name,
                PhotoCrop(photos.a.path, crop_a, photos.a.upright),
                PhotoCrop(photos.b.path, crop_b, photos.b.upright),
                correspondences(crop_a, crop_b),
                self._options,
                rng,
            )
            if pair is not None:
                return pair
        return None

    def _crops(self, photos: PhotoPair, row: int, rng: np.random.Generator) -> tuple[Crop, Crop]:
        """Crops around a common point; the second is warped if the options say so."""
        (points_a, points_b), warp = photos.points, self._options
        crop_a = crop_around(points_a[row], photos.a.size, self._crop)
        if warp.is_identity:
            return crop_a, crop_around(points_b[row], photos.b.size, self._crop)
        scale = warp.random_ratio(rng)
        return crop_a, random_crop(points_b[row], photos.b.size, self._crop, scale, warp, rng)

    def _correspondences(self, photos: PhotoPair) -> Callable[[Crop, Crop], PointPairs]:
        warp = photos.depth_warp(self._options)
        if warp is None:
            points = photos.points
            return lambda crop_a, crop_b: sparse_correspondences(crop_a, crop_b, *points)
        return lambda crop_a, crop_b: dense_correspondences(crop_a, crop_b, warp)

    def audit(self, index: int, rng: np.random.Generator) -> dict[str, float]:
        """Measure whether poses, tracks and depth of a pair agree.

        Returns:
            `track_error_pixels`: median Sampson distance of common tracks under the poses. With
            depth maps also `depth_error`: median difference between the first photo's depth map
            and its points, as a share; and, for a grid over the first photo,
            `share_without_depth`, and `share_occluded` of its points that project onto known depth
            in the second photo.
        """
        photos = self.photos(index, rng)
        figures = {"track_error_pixels": _track_error(photos)}
        warp = photos.depth_warp(self._options)
        if warp is None:
            return figures
        a = photos.a
        with np.errstate(invalid="ignore", divide="ignore"):
            errors = np.abs(warp.a.depth_at(a.points) - a.depths) / a.depths
        figures["depth_error"] = _nanmedian(errors)
        columns, rows = np.meshgrid(*(np.linspace(0, edge - 1, _AUDIT_GRID) for edge in a.size))
        grid = np.stack([columns.ravel(), rows.ravel()], axis=1)
        figures["share_without_depth"] = float(np.isnan(warp.a.depth_at(grid)).mean())
        _, expected, measured = warp.project(grid)
        known = np.isfinite(measured)
        occluded = known & ~warp.agrees(expected, measured)
        share = occluded.sum() / known.sum() if known.any() else float("nan")
        figures["share_occluded"] = float(share)
        return figures


def _track_error(photos: PhotoPair) -> float:
    a, b = photos.a, photos.b
    rotation = b.cam_from_world[:, :3] @ a.cam_from_world[:, :3].T
    translation = b.cam_from_world[:, 3] - rotation @ a.cam_from_world[:, 3]
    essential = essential_from_pose(rotation, translation)
    focal = (a.camera.mean_focal_length() + b.camera.mean_focal_length()) / 2
    points_a, points_b = photos.points
    distances = sampson_distance(essential, rays(a.camera, points_a), rays(b.camera, points_b))
    return focal * _nanmedian(distances)


def _nanmedian(values: Array) -> float:
    known = values[np.isfinite(values)]
    return float(np.median(known)) if len(known) else float("nan")


@dataclass(frozen=True, eq=False)
class Overlaps:
    """All pairs of photos with common points.

    Attributes:
        pairs: K x 2 numbers of photos, in both orders.
        shares: K shares of the first photo's points that the second sees.
        scale_ratios: K ratios of the photos' scales, the median over common points, at least 1.
    """

    pairs: NDArray[np.int64]
    shares: Array
    scale_ratios: Array

    def within(self, options: SceneOptions) -> NDArray[np.int64]:
        """The pairs within the limits of the options."""
        keep = (self.shares >= options.min_overlap) & (self.shares <= options.max_overlap)
        keep &= self.scale_ratios >= options.min_scale_ratio
        keep &= self.scale_ratios <= options.max_scale_ratio
        return self.pairs[keep]


def find_overlaps(photos: Sequence[PosedPhoto], min_share: float = 0.0) -> Overlaps:
    """Find the photos that see the same points.

    Args:
        photos: photos of one scene.
        min_share: pairs with a smaller share in both orders are left out.
    """
    from scipy import sparse

    if len(photos) < 2:
        return Overlaps(np.empty((0, 2), np.int64), np.empty(0), np.empty(0))
    ids = np.concatenate([photo.ids for photo in photos])
    counts = np.array([len(photo.ids) for photo in photos])
    rows = np.repeat(np.arange(len(photos)), counts)
    _, columns = np.unique(ids, return_inverse=True)
    seen = sparse.csr_array((np.ones(len(ids), np.int32), (rows, columns)))
    common = sparse.triu(seen @ seen.T, k=1).tocoo()
    first, second, number = common.row, common.col, common.data
    shares = number / counts[first], number / counts[second]
    keep = np.maximum(*shares) >= min_share
    pairs = np.stack([first, second], axis=1)[keep].astype(np.int64)
    ratios = np.array([_scale_ratio(photos[a], photos[b]) for a, b in pairs])
    return Overlaps(
        np.concatenate([pairs, pairs[:, ::-1]]),
        np.concatenate([share[keep] for share in shares]),
        np.concatenate([ratios, ratios]),
    )


def _scale_ratio(a: PosedPhoto, b: PosedPhoto) -> float:
    ratio = float(np.median(PhotoPair.of(a, b).scale_ratios))
    return max(ratio, 1 / ratio)


def no_pairs_error(folder: Path, overlaps: Overlaps, options: SceneOptions) -> InputError:
    """The error that a scene without pairs raises."""
    if not len(overlaps.pairs):
        return InputError(f"no two photos of {folder} see the same point, so there are no pairs")
    return InputError(
        f"no two photos of {folder} are within the limits of overlap ({options.min_overlap} to "
        f"{options.max_overlap}) and scale ratio ({options.min_scale_ratio} to "
        f"{options.max_scale_ratio}); the largest overlap is {overlaps.shares.max():.2f}: lower "
        "min_overlap"
    )
