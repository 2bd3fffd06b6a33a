"""Patch alignment: where the neighbourhood of a point of one photo fits best in another photo.

Patches are compared by correlation and then aligned by Lucas-Kanade steps (Baker and Matthews,
"Lucas-Kanade 20 Years On", IJCV 2004), ignoring gain and offset of the light. Photos from different
viewpoints are not related by a shift, so each patch is first warped by the affine map of the
matches around it.
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

_HALF_PATCH = 7
"""A patch has 15 x 15 pixels."""

_WEIGHT_DEVIATION = 4.0
"""Standard deviation in pixels of the Gaussian weights of a patch."""

_BLUR = 1.0
"""Standard deviation in pixels of the blur before patches are compared."""

_SEARCH_SIGMAS = 2.0
_MAX_SEARCH = 6
"""The search radius in standard deviations of the difference of both points, and its limit in
pixels."""

_STEPS = 8
_MIN_CORRELATION = 0.6
_MAX_CORRELATION = 0.99
"""Noise is derived from the correlation up to this one; above it, precision does not improve."""

_MAX_ZOOM = 2.5
"""If the affine map shrinks or enlarges a patch more than this, too little is left to compare."""

_NEIGHBOURS = 12
_AFFINE_DEVIATION = 0.25
"""Expected difference, per entry, between the affine map around a match and that of the photo."""

_POSITION_DEVIATION = 1.5
"""Expected error in pixels of a match in the fit of the affine maps."""

_CHUNK = 512
"""Number of patches that are aligned at a time, to limit memory."""


@dataclass(frozen=True)
class GreyPhoto:
    """A photo prepared for patch alignment: grey and reduced to the size limits of extraction.

    Attributes:
        maps: 1 x 3 x h x w: blurred grey values and their derivatives along x and y.
        photo_from_grey: maps pixels of the reduced photo to pixels of the photo.
    """

    maps: Tensor
    photo_from_grey: GridMap

    @classmethod
    def read(cls, photo: ImageLike, image_size: Size, *, upright: bool = True) -> GreyPhoto:
        """Read and prepare a photo.

        Args:
            photo: in any form that `D2Net.extract` takes.
            image_size: (width, height) of its features.
            upright: the extraction setting `upright` of its features.

        Raises:
            InputError: the photo has another size.
            ImageError: the photo cannot be read.
        """
        pixels = to_pixels(photo, upright=upright)
        size = (pixels.shape[1], pixels.shape[0])
        if size != image_size:
            raise InputError(
                f"the photo has {size[0]} x {size[1]} pixels, but its features are from one with "
                f"{image_size[0]} x {image_size[1]}"
            )
        small = _reduced_size(size)
        grey = to_grey(torch.from_numpy(np.array(resize(pixels, small)))).numpy()
        blurred = cv2.GaussianBlur(grey, (0, 0), _BLUR)
        slopes = (
            cv2.Sobel(blurred, cv2.CV_32F, dx, dy, ksize=3, scale=1 / 8)
            for dx, dy in ((1, 0), (0, 1))
        )
        maps = torch.from_numpy(np.stack([blurred, *slopes]))[None]
        return cls(maps, coordinates.resize(small, size))

    @property
    def scales(self) -> Tensor:
        """2 x 2, diagonal: size of a pixel of the reduced photo in pixels of the photo."""
        x, y = self.photo_from_grey.x.scale, self.photo_from_grey.y.scale
        return torch.diag(torch.tensor([x, y]))

    def sample(self, points: Tensor, channels: slice) -> Tensor:
        """C x K x M values at K x M x 2 points, bilinearly."""
        height, width = self.maps.shape[2:]
        grid = points / torch.tensor([width - 1, height - 1]) * 2 - 1
        return F.grid_sample(self.maps[:, channels], grid[None], align_corners=True)[0]

    def contains(self, points: Tensor) -> Tensor:
        """K bool: whether all M of K x M x 2 points are in the photo."""
        height, width = self.maps.shape[2:]
        inside = (points >= 0) & (points <= torch.tensor([width - 1, height - 1]))
        return inside.flatten(1).all(dim=1)


def reduction(size: Size) -> float:
    """How many times larger a photo of this size (width, height) is than its reduced version."""
    small = _reduced_size(size)
    return max(size[0] / small[0], size[1] / small[1])


def _reduced_size(size: Size) -> Size:
    limits = ExtractionSettings()
    return limited_size(size, limits.max_edge, limits.max_sum_edges)


@dataclass(frozen=True)
class PatchFits:
    """Where the patches around K points of a first photo fit best in a second one.

    Attributes:
        points: K x 2 float32, pixels of the second photo; unchanged where no better fit was found.
        moved: K bool, where a better fit was found.
        affine: K x 2 x 2, linear part of the affine map from the first photo's pixels to the
            second's around each point.
        information: K x 2 x 2, inverse covariance of `points`, per squared pixel of the second
            photo. It is large in all directions at corners, small along edges, and smaller where
            the light differs.
    """

    points: Tensor
    moved: Tensor
    affine: Tensor
    information: Tensor


def fit_patches(
    first: GreyPhoto, second: GreyPhoto, a: Tensor, b: Tensor, deviations: Tensor
) -> PatchFits:
    """Align the patches around points of the first photo with the second photo.

    Args:
        first: the first photo.
        second: the second photo.
        a: K x 2 points in pixels of the first photo; K >= 2.
        b: K x 2, their matches in the second photo. Most must be right, because the affine map of a
            patch is estimated from the matches around it.
        deviations: K, standard deviation of the difference of both points in pixels of the reduced
            second photo; it sets the search radius.
    """
    a, b = first.photo_from_grey.inverse()(a), second.photo_from_grey.inverse()(b)
    affine = torch.from_numpy(local_affine_maps(a.numpy(), b.numpy())).float()
    radius = (_SEARCH_SIGMAS * deviations).clamp(max=_MAX_SEARCH)
    parts = [
        _align(first, second, a[chunk], b[chunk], affine[chunk], radius[chunk])
        for chunk in torch.split(torch.arange(len(a)), _CHUNK)
    ]
    points, moved, information = (torch.cat(part) for part in zip(*parts, strict=True))
    grey_from_first, grey_from_second = first.scales.inverse(), second.scales.inverse()
    return PatchFits(
        second.photo_from_grey(points),
        moved,
        second.scales @ affine @ grey_from_first,
        grey_from_second @ information @ grey_from_second,
    )


def local_affine_maps(a: Array, b: Array) -> Array:
    """The affine map between two photos around each match.

    It is fitted robustly to the nearest matches, with the map of the whole photo as prior.

    Args:
        a: K x 2 points in the first photo, K >= 2.
        b: K x 2 points in the second photo.

    Returns:
        K x 2 x 2, the linear part of `b_from_a`.
    """
    from scipy.spatial import cKDTree

    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    (whole,) = _affine_maps(a[None], b[None], np.eye(2), 1e-3)
    count = min(_NEIGHBOURS, len(a))
    _, near = cKDTree(a).query(a, k=count)
    near = np.reshape(near, (len(a), count))
    return _affine_maps(a[near], b[near], whole, (_POSITION_DEVIATION / _AFFINE_DEVIATION) ** 2)


def _affine_maps(a: Array, b: Array, prior: Array, strength: float, rounds: int = 5) -> Array:
    """K x 2 x 2 maps of K x N x 2 points; outliers are down-weighted (Cauchy's weights)."""
    weights = np.ones(a.shape[:2])
    for _ in range(rounds):
        total = weights.sum(axis=1)[:, None, None]
        x = a - np.einsum("kn,kni->ki", weights, a)[:, None] / total
        y = b - np.einsum("kn,kni->ki", weights, b)[:, None] / total
        scatter = np.einsum("kn,kni,knj->kij", weights, x, x) + strength * np.eye(2)
        product = np.einsum("kn,kni,knj->kij", weights, y, x) + strength * prior
        maps: Array = product @ np.linalg.inv(scatter)
        errors = np.linalg.norm(y - np.einsum("kij,knj->kni", maps, x), axis=2)
        weights = 1 / (1 + (errors / (2 * _POSITION_DEVIATION)) ** 2)
    return maps


def _align(
    first: GreyPhoto, second: GreyPhoto, a: Tensor, start: Tensor, affine: Tensor, radius: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Align patches around points `a` of the first photo with the second one, from `start`.

    Returns:
        K x 2 points in the second photo, K bool of those that moved, and K x 2 x 2 inverse
        covariances.
    """
    offsets, weights = _patch_grid()
    pixels = a[:, None] + offsets
    pattern, contrast = _normalized(first.sample(pixels, slice(1))[0], weights)
    warped = torch.einsum("kij,mj->kmi", affine, offsets)

    def correlation(at: Tensor, rows: Tensor) -> Tensor:
        patches, _ = _normalized(second.sample(at[:, None] + warped[rows], slice(1))[0], weights)
        return (pattern[rows] * patches * weights).sum(dim=1)

    all_rows = torch.arange(len(a))
    points, best = start.clone(), correlation(start, all_rows)
    reach = math.ceil(float(radius.max()))
    for dx in range(-reach, reach + 1):
        for dy in range(-reach, reach + 1):
            rows = torch.nonzero(radius >= math.hypot(dx, dy))[:, 0]
            if (dx, dy) == (0, 0) or len(rows) == 0:
                continue
            at = start[rows] + torch.tensor([dx, dy])
            correlations = correlation(at, rows)
            better = correlations > best[rows]
            best[rows[better]], points[rows[better]] = correlations[better], at[better]
    for _ in range(_STEPS):
        step, normal = _gauss_newton_step(second, points, warped, pattern, weights)
        points = points + step
    last = correlation(points, all_rows)
    zoom = torch.linalg.det(affine).abs().sqrt()
    moved = (last >= best - 1e-3) & (last > _MIN_CORRELATION) & (contrast[:, 0] > 1)
    moved &= (points - start).norm(dim=1) <= radius + 1
    moved &= (zoom < _MAX_ZOOM) & (zoom > 1 / _MAX_ZOOM)
    moved &= first.contains(pixels) & second.contains(points[:, None] + warped)
    noise = 2 * (1 - last.clamp(max=_MAX_CORRELATION))  # mean squared difference of the patches
    num_pixels = 1 / (weights**2).sum()  # effective number
    information = normal * (num_pixels / noise)[:, None, None]
    return torch.where(moved[:, None], points, start), moved, information


def _gauss_newton_step(
    second: GreyPhoto, points: Tensor, warped: Tensor, pattern: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor]:
    """K x 2 steps towards the best fit, each at most a pixel, and K x 2 x 2 normal matrices."""
    grey, *slopes = second.sample(points[:, None] + warped, slice(3))
    patches, contrast = _normalized(grey, weights)
    slope = torch.stack(slopes, dim=-1) / contrast[..., None]
    # Remove the part of the change that is gain and offset: the normalization removes it, too.
    slope = slope - (slope * weights[:, None]).sum(dim=1, keepdim=True)
    slope = slope - patches[..., None] * (slope * (patches * weights)[..., None]).sum(
        1, keepdim=True
    )
    normal = torch.einsum("kmi,kmj,m->kij", slope, slope, weights) + 1e-4 * torch.eye(2)
    gradient = torch.einsum("kmi,km,m->ki", slope, pattern - patches, weights)
    steps = torch.linalg.solve(normal, gradient)
    return steps / steps.norm(dim=1, keepdim=True).clamp(min=1), normal


def _patch_grid() -> tuple[Tensor, Tensor]:
    """M x 2 offsets (x, y) of the pixels of a patch, and their M weights, which sum to one."""
    along = torch.arange(-_HALF_PATCH, _HALF_PATCH + 1, dtype=torch.float32)
    offsets = torch.stack(torch.meshgrid(along, along, indexing="xy"), dim=-1).reshape(-1, 2)
    weights = torch.exp(-(offsets**2).sum(dim=1) / (2 * _WEIGHT_DEVIATION**2))
    return offsets, weights / weights.sum()


def _normalized(patches: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """K x M patches with mean 0 and deviation 1, and their K x 1 deviations before."""
    centred = patches - (patches * weights).sum(dim=1, keepdim=True)
    contrast = (centred**2 * weights).sum(dim=1, keepdim=True).sqrt().clamp(min=1e-3)
    return centred / contrast, contrast
