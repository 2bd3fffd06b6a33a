"""Scenes whose cameras are known: pairs of photos that see the same points, and crops of them.

As the 2019 release does (`lib/dataset.py`): a pair of photos shares enough of the first one's
points; crops are cut around a random common point. With depth, correspondences come from depth and
pose at every cell; without, from the tracks of the points themselves.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from d2net.errors import InputError
from d2net.geometry import coordinates
from d2net.geometry.cameras import rays
from d2net.geometry.coordinates import Size
from d2net.geometry.epipolar import essential_from_pose, sampson_distance
from d2net.io.images import limited_size
from d2net.training.correspondences import (
    DepthView,
    DepthWarp,
    Pairs,
    Tolerance,
    dense,
    sparse,
)
from d2net.training.sources.base import TrainingPair
from d2net.training.sources.making import Options, Side, make_pair
from d2net.training.sources.reading import read_depth_map
from d2net.training.views import Array, View, random_view, view_around

if TYPE_CHECKING:
    import pycolmap

DENSE_MINIMUM = 128
"""Of 1024 cells, as in the release."""
SPARSE_MINIMUM = 16
_CENTRES = 4
"""How many common points are tried before a pair is given up for this time."""


@dataclass(frozen=True)
class SceneOptions(Options):
    """Options of scenes with known cameras.

    Attributes:
        min_overlap: least share of the first photo's points that the second sees.
        max_overlap: largest such share; below 1 it leaves out photos taken from nearly one place.
        min_scale_ratio: least ratio of the two photos' scales (median over common points), 1 or
            more, whichever is the nearer.
        max_scale_ratio: largest such ratio.
        depth_tolerance: how far depths of a point may differ, as a share of the depth.
        png_unit: what 1 in a depth png means in the unit of the poses.
    """

    min_overlap: float = 0.5
    max_overlap: float = 1.0
    min_scale_ratio: float = 1.0
    max_scale_ratio: float = float("inf")
    depth_tolerance: float = 0.05
    png_unit: float = 0.001


@dataclass(frozen=True, eq=False)
class PosedPhoto:
    """A photo with its camera and what it sees, in pixels of the photo as it is read.

    Attributes:
        path: the photo.
        upright: whether its camera is that of the photo turned upright.
        size: (width, height).
        camera: COLMAP's camera, of that size.
        cam_from_world: 3 x 4.
        ids: N ids of points, ascending, each once.
        points: N x 2 (x, y) where they are seen, pixel centres at integers.
        depths: N, along the optical axis.
        depth_map: the file, or None.
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
        """N sizes of a pixel at the points, in the unit of the poses."""
        return np.asarray(self.depths / self.camera.mean_focal_length(), np.float64)

    def reduced(self, max_edge: int | None) -> PosedPhoto:
        """The same photo with its longer edge at most `max_edge` pixels, as `read_photo` does."""
        size = limited_size(self.size, max_edge, None)
        if size == self.size:
            return self
        camera = copy.deepcopy(self.camera)
        camera.rescale(*size)
        grid = coordinates.resize(self.size, size)
        points = np.asarray(grid(torch.from_numpy(self.points)).numpy(), np.float64)
        return replace(self, size=size, camera=camera, points=points)


class Scene(Protocol):
    """Photos of one place, and which of them form pairs."""

    @property
    def pairs(self) -> NDArray[np.int64]:
        """K x 2 numbers of photos; either order is a pair of its own."""
        ...

    def photo(self, number: int) -> PosedPhoto:
        """A photo by its number."""
        ...


@dataclass(frozen=True, eq=False)
class Common:
    """The points that two photos both see."""

    a: PosedPhoto
    b: PosedPhoto
    rows_a: NDArray[np.int64]
    rows_b: NDArray[np.int64]

    @classmethod
    def of(cls, a: PosedPhoto, b: PosedPhoto) -> Common:
        """Find them by their ids."""
        _, rows_a, rows_b = np.intersect1d(a.ids, b.ids, assume_unique=True, return_indices=True)
        return cls(a, b, rows_a, rows_b)

    @property
    def scale_ratios(self) -> Array:
        """How many pixels of b one pixel of a is, at every common point."""
        return np.asarray(
            self.a.pixel_sizes[self.rows_a] / self.b.pixel_sizes[self.rows_b], np.float64
        )

    @property
    def points(self) -> tuple[Array, Array]:
        """K x 2 points in a and in b."""
        return self.a.points[self.rows_a], self.b.points[self.rows_b]


class PosedPairs:
    """Training pairs from scenes with known cameras."""

    def __init__(
        self,
        name: str,
        scenes: Sequence[Scene],
        options: SceneOptions,
        crop: int,
        remarks: Sequence[str] = (),
        pairs_per_scene: int | None = None,
    ) -> None:
        """Take all pairs of the scenes, or from each scene as many.

        Args:
            name: of the source.
            scenes: each with at least one pair.
            options: of cropping and of correspondences.
            crop: edge of the crops.
            remarks: sentences on what was left out, for people.
            pairs_per_scene: as the release does, let every scene count the same: index i stands
                for a random pair of scene i // pairs_per_scene.
        """
        self.name = name
        self.remarks = tuple(remarks)
        self._scenes, self._options, self._crop = scenes, options, crop
        self._per_scene = pairs_per_scene
        counts = [pairs_per_scene or len(scene.pairs) for scene in scenes]
        self._ends = np.cumsum(counts)

    def __len__(self) -> int:
        """Pairs of photos over all scenes, each order by itself."""
        return int(self._ends[-1])

    def photos(self, index: int, rng: np.random.Generator) -> Common:
        """The two photos of a pair and their common points."""
        number = int(np.searchsorted(self._ends, index, side="right"))
        scene = self._scenes[number]
        pairs = scene.pairs
        if self._per_scene is None:
            row = index - int(self._ends[number] - len(pairs))
        else:
            row = int(rng.integers(len(pairs)))
        a, b = (scene.photo(int(i)) for i in pairs[row])
        return Common.of(a, b)

    def pair(self, index: int, rng: np.random.Generator) -> TrainingPair | None:
        """Crops around a random point that both photos see."""
        common = self.photos(index, rng)
        correspond = self._correspondences(common)
        ratios = common.scale_ratios
        within = np.maximum(ratios, 1 / ratios) <= self._options.max_scale_ratio
        centres = np.flatnonzero(within)
        if not len(centres):
            return None
        for row in rng.permutation(centres)[:_CENTRES]:
            views = self._views(common, int(row), rng)
            points = correspond(*views)
            made = make_pair(
                self.name,
                Side(common.a.path, views[0], common.a.upright),
                Side(common.b.path, views[1], common.b.upright),
                points,
                self._options,
                rng,
            )
            if made is not None:
                return made
        return None

    def _views(self, common: Common, row: int, rng: np.random.Generator) -> tuple[View, View]:
        (points_a, points_b), geometry = common.points, self._options.geometry
        first = view_around(points_a[row], common.a.size, self._crop)
        if geometry.is_plain:
            return first, view_around(points_b[row], common.b.size, self._crop)
        scale = geometry.ratio(rng)
        return first, random_view(points_b[row], common.b.size, self._crop, scale, geometry, rng)

    def _correspondences(self, common: Common) -> Callable[[View, View], Pairs]:
        warp = self.warp(common)
        if warp is None:
            points = common.points
            return lambda view_a, view_b: sparse(view_a, view_b, *points)
        return lambda view_a, view_b: dense(view_a, view_b, warp)

    def audit(self, index: int, rng: np.random.Generator) -> dict[str, float]:
        """Whether poses, tracks and depth of a pair go together.

        Returns:
            `track_error_pixels`: median Sampson distance of common tracks under the poses. With
            depth also `depth_error`: median difference between the first photo's depth map and its
            points, as a share; and, of a grid over the first photo, `share_without_depth`, and of
            its points that fall onto depth in the second photo, `share_occluded`.
        """
        common = self.photos(index, rng)
        figures = {"track_error_pixels": _track_error(common)}
        warp = self.warp(common)
        if warp is None:
            return figures
        a = common.a
        measured = warp.a.depth_at(a.points)
        with np.errstate(invalid="ignore", divide="ignore"):
            errors = np.abs(measured - a.depths) / a.depths
        figures["depth_error"] = _nanmedian(errors)
        columns, rows = np.meshgrid(*(np.linspace(0, edge - 1, _GRID) for edge in a.size))
        grid = np.stack([columns.ravel(), rows.ravel()], axis=1)
        figures["share_without_depth"] = float(np.isnan(warp.a.depth_at(grid)).mean())
        _, expected, measured = warp.compare(grid)
        known = np.isfinite(measured)
        hidden = known & ~warp.tolerance.allows(expected, measured)
        figures["share_occluded"] = hidden.sum() / known.sum() if known.any() else float("nan")
        return figures

    def warp(self, common: Common) -> DepthWarp | None:
        """Between two photos by their depth maps, None if they have none."""
        views = [self._depth_view(photo) for photo in (common.a, common.b)]
        if views[0] is None or views[1] is None:
            return None
        return DepthWarp(views[0], views[1], Tolerance(self._options.depth_tolerance))

    def _depth_view(self, photo: PosedPhoto) -> DepthView | None:
        if photo.depth_map is None:
            return None
        depth = read_depth_map(photo.depth_map, self._options.png_unit)
        return DepthView(photo.camera, photo.cam_from_world, depth, photo.size)


_GRID = 40
"""Points per side of the grid on which a pair's depth is audited."""


def _track_error(common: Common) -> float:
    a, b = common.a, common.b
    rotation_a, rotation_b = a.cam_from_world[:, :3], b.cam_from_world[:, :3]
    rotation = rotation_b @ rotation_a.T
    translation = b.cam_from_world[:, 3] - rotation @ a.cam_from_world[:, 3]
    essential = essential_from_pose(rotation, translation)
    focal = (a.camera.mean_focal_length() + b.camera.mean_focal_length()) / 2
    seen = [rays(p.camera, xy) for p, xy in zip((a, b), common.points, strict=True)]
    return focal * _nanmedian(sampson_distance(essential, *seen))


def _nanmedian(values: Array) -> float:
    known = values[np.isfinite(values)]
    return float(np.median(known)) if len(known) else float("nan")


@dataclass(frozen=True, eq=False)
class Overlaps:
    """Every two photos with common points: K x 2 numbers, and what share of the first's they are.

    Attributes:
        pairs: K x 2, both orders.
        shares: K, common points / points of the first photo.
        scale_ratios: K, medians over the common points of how many times larger the one photo
            shows them than the other, at least 1; the same in both orders.
    """

    pairs: NDArray[np.int64]
    shares: Array
    scale_ratios: Array

    def chosen(self, options: SceneOptions) -> NDArray[np.int64]:
        """Pairs within the options' limits."""
        within = (self.shares >= options.min_overlap) & (self.shares <= options.max_overlap)
        within &= self.scale_ratios >= options.min_scale_ratio
        within &= self.scale_ratios <= options.max_scale_ratio
        return self.pairs[within]


def overlaps(photos: Sequence[PosedPhoto], at_least: float = 0.0) -> Overlaps:
    """Which photos see the same points.

    Args:
        photos: of one scene.
        at_least: pairs with a smaller share in both orders are left out.
    """
    from scipy import sparse as matrices

    if len(photos) < 2:
        return Overlaps(np.empty((0, 2), np.int64), np.empty(0), np.empty(0))
    ids = np.concatenate([photo.ids for photo in photos])
    counts = np.array([len(photo.ids) for photo in photos])
    rows = np.repeat(np.arange(len(photos)), counts)
    _, columns = np.unique(ids, return_inverse=True)
    seen = matrices.csr_array((np.ones(len(ids), np.int32), (rows, columns)))
    common = matrices.triu(seen @ seen.T, k=1).tocoo()
    first, second, number = common.row, common.col, common.data
    shares = number / counts[first], number / counts[second]
    kept = np.maximum(*shares) >= at_least
    pairs = np.stack([first, second], axis=1)[kept].astype(np.int64)
    ratios = np.array([_scale_ratio(photos[a], photos[b]) for a, b in pairs])
    return Overlaps(
        np.concatenate([pairs, pairs[:, ::-1]]),
        np.concatenate([share[kept] for share in shares]),
        np.concatenate([ratios, ratios]),
    )


def _scale_ratio(a: PosedPhoto, b: PosedPhoto) -> float:
    ratio = float(np.median(Common.of(a, b).scale_ratios))
    return max(ratio, 1 / ratio)


def no_pairs(folder: Path, found: Overlaps, options: SceneOptions) -> InputError:
    """Says why a scene gives no pairs."""
    if not len(found.pairs):
        return InputError(f"no two photos of {folder} see the same point, so there are no pairs")
    return InputError(
        f"no two photos of {folder} are within the limits of overlap ({options.min_overlap} to "
        f"{options.max_overlap}) and scale ratio ({options.min_scale_ratio} to "
        f"{options.max_scale_ratio}): the largest overlap is {found.shares.max():.2f}; lower "
        "min_overlap"
    )
