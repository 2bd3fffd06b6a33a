"""Matches to a fraction of a pixel: the second photo's patch is laid over the first one's.

Detections of two photos are each off by their own error. Here the point of the second photo is
moved to where the grey values around it fit those around the first photo's point best, by
correlation and then by Lucas-Kanade steps (Baker and Matthews, "Lucas-Kanade 20 Years On", IJCV
2004), with gain and offset of the light left out. Photos from different places are not related by a
shift: the patch is first warped by the affine map of the verified matches around it. EXPERIMENTS.md
says what that is worth.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from d2net.config import ExtractionSettings
from d2net.errors import InputError
from d2net.features import Features, Matches
from d2net.geometry import coordinates
from d2net.geometry.coordinates import GridMap
from d2net.images import ImageLike, limited_size, resize, to_pixels
from d2net.matching.verify import check_belongs
from d2net.network.corners import to_grey

Array = NDArray[np.float64]

DEVIATION = 0.2
"""Of a moved point against its partner, in pixels at the size the patches are compared at."""

_HALF = 7
"""A patch has 15 x 15 pixels,"""
_WEIGHT_DEVIATION = 4.0
"""which count less with the distance from its middle."""

_BLUR = 1.0
_SIGMAS = 2.0
"""Where to look: so many deviations of the difference of both points,"""
_FARTHEST = 6
"""but not farther than this."""

_STEPS = 8
_LEAST_CORRELATION = 0.6
_LARGEST_ZOOM = 2.5
"""A patch that the affine map shrinks or grows more holds too little of the other's."""

_NEIGHBOURS = 12
_FRAME_DEVIATION = 0.25
"""How much the affine map around a match differs from that of the whole photo, per entry."""
_POSITION_DEVIATION = 1.5
_LEAST_MATCHES = 8
_CHUNK = 512


def refine(
    a: Features,
    b: Features,
    matches: Matches,
    photo_a: ImageLike,
    photo_b: ImageLike,
    *,
    upright: bool = True,
) -> tuple[Features, Features]:
    """Move the points of verified matches in the second photo to fit the first photo's.

    ```python
    matches = d2net.match(a, b, verify="fundamental")
    a, b = d2net.refine(a, b, matches, "a.jpg", "b.jpg")
    matches = d2net.verify(a, b, matches, "fundamental")  # a more precise model
    ```

    What does not fit better where it is moved to stays where it is. Fewer than 8 verified matches
    say too little of the warp; nothing is moved then.

    Args:
        a: features of the first photo.
        b: features of the second photo.
        matches: verified ones; the others stay as they are.
        photo_a: the first photo, as it was given to `extract`.
        photo_b: the second one.
        upright: as the features were extracted.

    Returns:
        Both features. Of moved points in `b` the keypoints are new, in both the uncertainty, which
        is now that of the pair: with other photos, use the old ones.

    Raises:
        InputError: the matches are not verified or of other features, or a photo has another size
            than its features say.
        ImageError: a photo cannot be read.
    """
    check_belongs(matches, a, b)
    if matches.inliers is None:
        raise InputError(
            'only verified matches can be refined: match with verify="fundamental" first'
        )
    rows_a, rows_b = matches.verified().indices.cpu().unbind(1)
    if len(rows_a) < _LEAST_MATCHES:
        return a, b
    first, second = (
        _Side.of(features, rows, photo, upright)
        for features, rows, photo in ((a, rows_a, photo_a), (b, rows_b, photo_b))
    )
    frames = torch.from_numpy(local_frames(first.points.numpy(), second.points.numpy())).float()
    radius = _SIGMAS * torch.hypot(first.deviations, second.deviations)
    points, moved = second.points.clone(), torch.zeros(len(rows_a), dtype=torch.bool)
    for chunk in torch.split(torch.arange(len(rows_a)), _CHUNK):
        points[chunk], moved[chunk] = _fit(
            first, second, chunk, frames[chunk], radius[chunk].clamp(max=_FARTHEST)
        )
    keypoints = b.keypoints.clone()
    keypoints[rows_b[moved]] = second.photo_from_grey(points[moved]).to(keypoints)
    b = replace(b, keypoints=keypoints)
    return _surer(a, rows_a[moved], first), _surer(b, rows_b[moved], second)


def _surer(features: Features, rows: Tensor, side: _Side) -> Features:
    uncertainty = features.uncertainty.clone()
    uncertainty[rows] = uncertainty[rows].clamp(max=DEVIATION * side.magnification)
    return replace(features, uncertainty=uncertainty)


@dataclass(frozen=True)
class _Side:
    """One photo of the pair, reduced as for extraction.

    Attributes:
        maps: 1 x 3 x h x w, grey values, blurred, and their derivatives along x and y.
        points: K x 2, the matched keypoints in it.
        deviations: K, of the points, in its pixels.
        photo_from_grey: from its pixels to those of the photo.
        magnification: of that map.
    """

    maps: Tensor
    points: Tensor
    deviations: Tensor
    photo_from_grey: GridMap
    magnification: float

    @classmethod
    def of(cls, features: Features, rows: Tensor, photo: ImageLike, upright: bool) -> _Side:
        pixels = to_pixels(photo, upright=upright)
        size = (pixels.shape[1], pixels.shape[0])
        if size != features.image_size:
            raise InputError(
                f"the photo has {size[0]} x {size[1]} pixels, but its features are of one with "
                f"{features.image_size[0]} x {features.image_size[1]}"
            )
        most = ExtractionSettings()
        small = limited_size(size, most.max_edge, most.max_sum_edges)
        grey = to_grey(torch.from_numpy(np.array(resize(pixels, small)))).numpy()
        blurred = cv2.GaussianBlur(grey, (0, 0), _BLUR)
        slopes = (
            cv2.Sobel(blurred, cv2.CV_32F, dx, dy, ksize=3, scale=1 / 8)
            for dx, dy in ((1, 0), (0, 1))
        )
        photo_from_grey = coordinates.resize(small, size)
        magnification = max(photo_from_grey.x.scale, photo_from_grey.y.scale)
        grey_from_photo = coordinates.resize(size, small)
        return cls(
            torch.from_numpy(np.stack([blurred, *slopes]))[None],
            grey_from_photo(features.keypoints[rows.to(features.keypoints.device)].cpu()),
            features.uncertainty[rows.to(features.uncertainty.device)].cpu() / magnification,
            photo_from_grey,
            magnification,
        )

    def sample(self, places: Tensor, channels: slice) -> Tensor:
        """C x K x M values at K x M x 2 places, bilinearly."""
        height, width = self.maps.shape[2:]
        grid = places / torch.tensor([width - 1, height - 1]) * 2 - 1
        return F.grid_sample(self.maps[:, channels], grid[None], align_corners=True)[0]

    def holds(self, places: Tensor) -> Tensor:
        """K bool: all of K x M x 2 places are in the photo."""
        height, width = self.maps.shape[2:]
        inside = (places >= 0) & (places <= torch.tensor([width - 1, height - 1]))
        return inside.flatten(1).all(dim=1)


def local_frames(a: Array, b: Array) -> Array:
    """The affine map from photo to photo around each match.

    Fitted to the nearest matches, robustly, and drawn towards the map of the whole photo where
    these do not say enough.

    Args:
        a: K x 2 points in the first photo, K >= 2.
        b: K x 2 points in the second photo.

    Returns:
        K x 2 x 2, `b_from_a` without its shift.
    """
    from scipy.spatial import cKDTree

    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    everything = np.arange(len(a))[None]
    (whole,) = _affine(a[everything], b[everything], np.eye(2), 1e-3)
    count = min(_NEIGHBOURS, len(a))
    _, near = cKDTree(a).query(a, k=count)
    near = np.reshape(near, (len(a), count))
    return _affine(a[near], b[near], whole, (_POSITION_DEVIATION / _FRAME_DEVIATION) ** 2)


def _affine(a: Array, b: Array, prior: Array, strength: float, rounds: int = 5) -> Array:
    """K x 2 x 2 maps of K x N x 2 points; outliers count less and less (Cauchy's weights)."""
    weights = np.ones(a.shape[:2])
    for _ in range(rounds):
        total = weights.sum(axis=1)[:, None, None]
        x = a - np.einsum("kn,kni->ki", weights, a)[:, None] / total
        y = b - np.einsum("kn,kni->ki", weights, b)[:, None] / total
        spread = np.einsum("kn,kni,knj->kij", weights, x, x) + strength * np.eye(2)
        shared = np.einsum("kn,kni,knj->kij", weights, y, x) + strength * prior
        frames: Array = shared @ np.linalg.inv(spread)
        errors = np.linalg.norm(y - np.einsum("kij,knj->kni", frames, x), axis=2)
        weights = 1 / (1 + (errors / (2 * _POSITION_DEVIATION)) ** 2)
    return frames


def _fit(
    first: _Side, second: _Side, rows: Tensor, frames: Tensor, radius: Tensor
) -> tuple[Tensor, Tensor]:
    """Where the patches of some points of the first photo fit best in the second one.

    Returns:
        K x 2 points in the second photo, and K marks of those that moved.
    """
    offsets, weights = _window()
    places = first.points[rows][:, None] + offsets
    pattern, contrast = _normalised(first.sample(places, slice(1))[0], weights)
    start = second.points[rows]
    warped = torch.einsum("kij,mj->kmi", frames, offsets)

    def correlation(at: Tensor, some: Tensor) -> Tensor:
        seen, _ = _normalised(second.sample(at[:, None] + warped[some], slice(1))[0], weights)
        return (pattern[some] * seen * weights).sum(dim=1)

    everything = torch.arange(len(rows))
    points, best = start.clone(), correlation(start, everything)
    reach = math.ceil(float(radius.max()))
    for dx in range(-reach, reach + 1):
        for dy in range(-reach, reach + 1):
            some = torch.nonzero(radius >= math.hypot(dx, dy))[:, 0]
            if (dx, dy) == (0, 0) or len(some) == 0:
                continue
            at = start[some] + torch.tensor([dx, dy])
            found = correlation(at, some)
            better = found > best[some]
            best[some[better]], points[some[better]] = found[better], at[better]
    for _ in range(_STEPS):
        points = points + _step(second, points, warped, pattern, weights)
    last = correlation(points, everything)
    zoom = torch.linalg.det(frames).abs().sqrt()
    moved = (last >= best - 1e-3) & (last > _LEAST_CORRELATION) & (contrast[:, 0] > 1)
    moved &= (points - start).norm(dim=1) <= radius + 1
    moved &= (zoom < _LARGEST_ZOOM) & (zoom > 1 / _LARGEST_ZOOM)
    moved &= first.holds(places) & second.holds(points[:, None] + warped)
    return torch.where(moved[:, None], points, start), moved


def _step(
    second: _Side, points: Tensor, warped: Tensor, pattern: Tensor, weights: Tensor
) -> Tensor:
    """K x 2: one Gauss-Newton step towards the best fit, at most a pixel."""
    grey, *slopes = second.sample(points[:, None] + warped, slice(3))
    seen, contrast = _normalised(grey, weights)
    slope = torch.stack(slopes, dim=-1) / contrast[..., None]
    # What a shift changes beside gain and offset, which the normalisation takes out again.
    slope = slope - (slope * weights[:, None]).sum(dim=1, keepdim=True)
    slope = slope - seen[..., None] * (slope * (seen * weights)[..., None]).sum(1, keepdim=True)
    normal = torch.einsum("kmi,kmj,m->kij", slope, slope, weights) + 1e-4 * torch.eye(2)
    steps = torch.linalg.solve(normal, torch.einsum("kmi,km,m->ki", slope, pattern - seen, weights))
    bounded: Tensor = steps / steps.norm(dim=1, keepdim=True).clamp(min=1)
    return bounded


def _window() -> tuple[Tensor, Tensor]:
    """M x 2 offsets (x, y) of a patch's pixels, and their M weights, which sum to one."""
    along = torch.arange(-_HALF, _HALF + 1, dtype=torch.float32)
    offsets = torch.stack(torch.meshgrid(along, along, indexing="xy"), dim=-1).reshape(-1, 2)
    weights = torch.exp(-(offsets**2).sum(dim=1) / (2 * _WEIGHT_DEVIATION**2))
    return offsets, weights / weights.sum()


def _normalised(patches: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """K x M patches of mean 0 and deviation 1, and their K x 1 deviations before."""
    centred = patches - (patches * weights).sum(dim=1, keepdim=True)
    contrast = (centred**2 * weights).sum(dim=1, keepdim=True).sqrt().clamp(min=1e-3)
    return centred / contrast, contrast
