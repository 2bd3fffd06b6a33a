"""Patches of two photos laid over each other: where a point's neighbourhood fits best.

By correlation and then by Lucas-Kanade steps (Baker and Matthews, "Lucas-Kanade 20 Years On", IJCV
2004), with gain and offset of the light left out. Photos from different places are not related by a
shift: a patch is first warped by the affine map of the matches around it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from d2net.errors import InputError
from d2net.extraction.corners import to_grey
from d2net.geometry import coordinates
from d2net.geometry.coordinates import GridMap, Size
from d2net.io.images import ImageLike, limited_size, resize, to_pixels
from d2net.settings import ExtractionSettings

Array = NDArray[np.float64]

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
_BEST_CORRELATION = 0.99
"""More says nothing more of a fit's precision."""
_LARGEST_ZOOM = 2.5
"""A patch that the affine map shrinks or grows more holds too little of the other's."""

_NEIGHBOURS = 12
_FRAME_DEVIATION = 0.25
"""How much the affine map around a match differs from that of the whole photo, per entry."""
_POSITION_DEVIATION = 1.5
_CHUNK = 512


@dataclass(frozen=True)
class GreyPhoto:
    """A photo as patches of it are compared: grey, reduced as for extraction.

    Attributes:
        maps: 1 x 3 x h x w, grey values, blurred, and their derivatives along x and y.
        photo_from_grey: from its pixels to those of the photo.
    """

    maps: Tensor
    photo_from_grey: GridMap

    @classmethod
    def of(cls, photo: ImageLike, image_size: Size, *, upright: bool = True) -> GreyPhoto:
        """Read a photo.

        Args:
            photo: in any form that `D2Net.extract` takes.
            image_size: (width, height) that its features say.
            upright: as they were extracted.

        Raises:
            InputError: it has another size.
            ImageError: it cannot be read.
        """
        pixels = to_pixels(photo, upright=upright)
        size = (pixels.shape[1], pixels.shape[0])
        if size != image_size:
            raise InputError(
                f"the photo has {size[0]} x {size[1]} pixels, but its features are of one with "
                f"{image_size[0]} x {image_size[1]}"
            )
        grey = to_grey(torch.from_numpy(np.array(resize(pixels, _compared_at(size))))).numpy()
        blurred = cv2.GaussianBlur(grey, (0, 0), _BLUR)
        slopes = (
            cv2.Sobel(blurred, cv2.CV_32F, dx, dy, ksize=3, scale=1 / 8)
            for dx, dy in ((1, 0), (0, 1))
        )
        return cls(
            torch.from_numpy(np.stack([blurred, *slopes]))[None],
            coordinates.resize(_compared_at(size), size),
        )

    @property
    def scales(self) -> Tensor:
        """2 x 2, diagonal: pixels of the photo in one of its own, along x and y."""
        x, y = self.photo_from_grey.x.scale, self.photo_from_grey.y.scale
        return torch.diag(torch.tensor([x, y]))

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


def magnification(size: Size) -> float:
    """Pixels of a photo of this size (width, height) in one of those that patches are made of."""
    small = _compared_at(size)
    return max(size[0] / small[0], size[1] / small[1])


def _compared_at(size: Size) -> Size:
    most = ExtractionSettings()
    return limited_size(size, most.max_edge, most.max_sum_edges)


@dataclass(frozen=True)
class Fits:
    """Where the patches around points of a first photo fit best in a second one.

    Attributes:
        points: K x 2 float32, pixels of the second photo; those that fit nowhere better stay.
        moved: K bool, the others.
        frames: K x 2 x 2, the affine map from the first photo's pixels to the second's around each,
            without its shift.
        information: K x 2 x 2, inverse covariance of `points`, per squared pixel of the second
            photo: along an edge little is known, of a corner all, and less where light differs.
    """

    points: Tensor
    moved: Tensor
    frames: Tensor
    information: Tensor


def fit_patches(
    first: GreyPhoto, second: GreyPhoto, a: Tensor, b: Tensor, deviations: Tensor
) -> Fits:
    """Lay the patches around points of the first photo over the second one.

    Args:
        first: photo.
        second: photo.
        a: K x 2 points in the first photo, pixels of the photo as its features say; K >= 2.
        b: K x 2, their matches in the second one. Wrong ones among them must be few: the affine map
            of a patch comes from those around it.
        deviations: K, standard deviation of the difference of both points in pixels of the second
            photo as it is compared; so far from `b` is looked.
    """
    a, b = first.photo_from_grey.inverse()(a), second.photo_from_grey.inverse()(b)
    frames = torch.from_numpy(local_frames(a.numpy(), b.numpy())).float()
    radius = (_SIGMAS * deviations).clamp(max=_FARTHEST)
    parts = [
        _fit(first, second, a[chunk], b[chunk], frames[chunk], radius[chunk])
        for chunk in torch.split(torch.arange(len(a)), _CHUNK)
    ]
    points, moved, information = (torch.cat(part) for part in zip(*parts, strict=True))
    grey_from_first, grey_from_second = first.scales.inverse(), second.scales.inverse()
    return Fits(
        second.photo_from_grey(points),
        moved,
        second.scales @ frames @ grey_from_first,
        grey_from_second @ information @ grey_from_second,
    )


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
    first: GreyPhoto, second: GreyPhoto, a: Tensor, start: Tensor, frames: Tensor, radius: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Where the patches of some points of the first photo fit best in the second one.

    Returns:
        K x 2 points in the second photo, K marks of those that moved, and K x 2 x 2 inverse
        covariances.
    """
    offsets, weights = _window()
    places = a[:, None] + offsets
    pattern, contrast = _normalised(first.sample(places, slice(1))[0], weights)
    warped = torch.einsum("kij,mj->kmi", frames, offsets)

    def correlation(at: Tensor, some: Tensor) -> Tensor:
        seen, _ = _normalised(second.sample(at[:, None] + warped[some], slice(1))[0], weights)
        return (pattern[some] * seen * weights).sum(dim=1)

    everything = torch.arange(len(a))
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
        step, normal = _step(second, points, warped, pattern, weights)
        points = points + step
    last = correlation(points, everything)
    zoom = torch.linalg.det(frames).abs().sqrt()
    moved = (last >= best - 1e-3) & (last > _LEAST_CORRELATION) & (contrast[:, 0] > 1)
    moved &= (points - start).norm(dim=1) <= radius + 1
    moved &= (zoom < _LARGEST_ZOOM) & (zoom > 1 / _LARGEST_ZOOM)
    moved &= first.holds(places) & second.holds(points[:, None] + warped)
    noise = 2 * (1 - last.clamp(max=_BEST_CORRELATION))  # mean squared difference of the patches
    pixels = 1 / (weights**2).sum()  # that count
    information = normal * (pixels / noise)[:, None, None]
    return torch.where(moved[:, None], points, start), moved, information


def _step(
    second: GreyPhoto, points: Tensor, warped: Tensor, pattern: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor]:
    """K x 2: one Gauss-Newton step towards the best fit, at most a pixel; its normal matrices."""
    grey, *slopes = second.sample(points[:, None] + warped, slice(3))
    seen, contrast = _normalised(grey, weights)
    slope = torch.stack(slopes, dim=-1) / contrast[..., None]
    # What a shift changes beside gain and offset, which the normalisation takes out again.
    slope = slope - (slope * weights[:, None]).sum(dim=1, keepdim=True)
    slope = slope - seen[..., None] * (slope * (seen * weights)[..., None]).sum(1, keepdim=True)
    normal = torch.einsum("kmi,kmj,m->kij", slope, slope, weights) + 1e-4 * torch.eye(2)
    steps = torch.linalg.solve(normal, torch.einsum("kmi,km,m->ki", slope, pattern - seen, weights))
    return steps / steps.norm(dim=1, keepdim=True).clamp(min=1), normal


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
