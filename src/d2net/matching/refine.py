"""Refinement of the matches of two photos to a fraction of a pixel.

The detections in two photos each have their own error. Refinement moves the point of the second
photo to where the grey values around it best fit the grey values around the point of the first
photo. Patches are compared by correlation and then aligned by Lucas-Kanade steps (Baker and
Matthews, "Lucas-Kanade 20 Years On", IJCV 2004), ignoring gain and offset of the light. Photos from
different viewpoints are not related by a shift, so each patch is first warped by the affine map of
the matches around it. docs/experiments.md has the gain in accuracy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from d2net.errors import InputError
from d2net.features import Features, Matches
from d2net.geometry import coordinates
from d2net.geometry.coordinates import Array, GridMap, Size
from d2net.io.images import ImageLike, limited_size, raise_low_contrast, resize, to_pixels
from d2net.matching.verification import check_rows
from d2net.settings import ExtractionSettings

FIT_DEVIATION = 0.2
"""Standard deviation of a fitted point relative to its match, in pixels of the reduced photo."""

MIN_MATCHES = 8  # fewer matches do not determine the warp between two photos well enough

# All lengths are in pixels of the reduced photos.
_HALF_PATCH = 7  # a patch has 15 x 15 pixels
_WEIGHT_DEVIATION = 4.0  # of the Gaussian weights of a patch
_BLUR = 1.0  # deviation of the blur before patches are compared
_SEARCH_SIGMAS, _MAX_SEARCH = 2.0, 6
"""The search radius in standard deviations of the difference of both points, and its limit."""
_STEPS = 8
_MIN_CORRELATION = 0.6
_MAX_ZOOM = 2.5  # if a patch is shrunk or enlarged more, too little is left to compare
_NEIGHBOURS = 12  # that determine an affine map
_AFFINE_DEVIATION = 0.25  # expected difference, per entry, from the affine map of the whole photo
_POSITION_DEVIATION = 1.5  # expected error of a match in the fit of the affine maps
_CHUNK = 512  # patches that are aligned at a time, to limit memory


def refine(
    a: Features,
    b: Features,
    matches: Matches,
    photo_a: ImageLike,
    photo_b: ImageLike,
    *,
    upright: bool = True,
) -> tuple[Features, Features]:
    """Move the points of verified matches in the second photo so that they fit the first photo.

    ```python
    matches = d2net.match(a, b, verify="fundamental")
    a, b = d2net.refine(a, b, matches, "a.jpg", "b.jpg")
    matches = d2net.verify(a, b, matches, "fundamental")  # a more precise model
    ```

    A point stays where it is if no position nearby fits better. 8 verified matches are needed.

    Args:
        a: features of the first photo.
        b: features of the second photo.
        matches: verified matches; only inliers are moved.
        photo_a: the first photo, as it was given to `extract`.
        photo_b: the second photo, likewise.
        upright: the extraction setting `upright` of the features.

    Returns:
        The features of both photos. Moved points have new keypoints in `b` and a new uncertainty,
        which holds for this pair only, in `a` and `b`.

    Raises:
        InputError: the matches are not verified or belong to other features, or a photo has
            another size than its features.
        ImageError: a photo cannot be read.
    """
    check_rows(matches, a, b)
    if matches.inliers is None:
        raise InputError(
            'only verified matches can be refined: match with verify="fundamental" first'
        )
    rows_a, rows_b = matches.verified().indices.cpu().unbind(1)
    if len(rows_a) < MIN_MATCHES:
        return a, b
    first, second = (
        GreyPhoto.read(photo, features.image_size, upright=upright)
        for features, photo in ((a, photo_a), (b, photo_b))
    )
    with torch.autocast("cpu", enabled=False), torch.device("cpu"):
        points, moved = fit_matches(first, second, a.to("cpu"), b.to("cpu"), rows_a, rows_b)
    keypoints = b.keypoints.clone()
    keypoints[rows_b[moved]] = points[moved].to(keypoints)
    b = replace(b, keypoints=keypoints)
    return _lower_uncertainty(a, rows_a[moved]), _lower_uncertainty(b, rows_b[moved])


def _lower_uncertainty(features: Features, rows: Tensor) -> Features:
    """The same features; the keypoints `rows` are at least as certain as a fit."""
    uncertainty = features.uncertainty.clone()
    limit = FIT_DEVIATION * _reduction(features.image_size)
    uncertainty[rows] = uncertainty[rows].clamp(max=limit)
    return replace(features, uncertainty=uncertainty)


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
        """Read and prepare a photo with features of this image size (width, height)."""
        pixels = to_pixels(photo, upright=upright)
        size = (pixels.shape[1], pixels.shape[0])
        if size != image_size:
            raise InputError(
                f"the photo has {size[0]} x {size[1]} pixels, but its features are from one with "
                f"{image_size[0]} x {image_size[1]}"
            )
        pixels = raise_low_contrast(pixels)
        small = _reduced_size(size)
        grey = cv2.cvtColor(np.asarray(resize(pixels, small), np.float32), cv2.COLOR_RGB2GRAY)
        blurred = cv2.GaussianBlur(grey, (0, 0), _BLUR)
        slopes = (
            cv2.Sobel(blurred, cv2.CV_32F, dx, dy, ksize=3, scale=1 / 8)
            for dx, dy in ((1, 0), (0, 1))
        )
        maps = torch.from_numpy(np.stack([blurred, *slopes]))[None]
        return cls(maps, coordinates.resize(small, size))

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


def _reduced_size(size: Size) -> Size:
    limits = ExtractionSettings()
    return limited_size(size, limits.max_edge, limits.max_sum_edges)


def _reduction(size: Size) -> float:
    """How many times larger a photo is than its reduced version."""
    small = _reduced_size(size)
    return max(size[0] / small[0], size[1] / small[1])


def fit_matches(
    first: GreyPhoto, second: GreyPhoto, a: Features, b: Features, rows_a: Tensor, rows_b: Tensor
) -> tuple[Tensor, Tensor]:
    """Align the patches around matched keypoints of the first photo with the second photo.

    The features are on the CPU. There are two matches at least. Most must be right, because the
    affine map of a patch is estimated from the matches around it.

    Returns:
        K x 2 float32 points in pixels of the second photo, and K bool, where a better fit was
        found; the other points are unchanged.
    """
    deviations = torch.hypot(
        a.uncertainty[rows_a] / _reduction(a.image_size),
        b.uncertainty[rows_b] / _reduction(b.image_size),
    )
    radius = (_SEARCH_SIGMAS * deviations).clamp(max=_MAX_SEARCH)
    points_a = first.photo_from_grey.inverse()(a.keypoints[rows_a])
    points_b = second.photo_from_grey.inverse()(b.keypoints[rows_b])
    affine = torch.from_numpy(local_affine_maps(points_a.numpy(), points_b.numpy())).float()
    parts = [
        _align(first, second, points_a[chunk], points_b[chunk], affine[chunk], radius[chunk])
        for chunk in torch.split(torch.arange(len(points_a)), _CHUNK)
    ]
    points, moved = (torch.cat(part) for part in zip(*parts, strict=True))
    return second.photo_from_grey(points), moved


def local_affine_maps(a: Array, b: Array) -> Array:
    """The affine map `b_from_a` around each of K matches: K x 2 x 2 linear parts.

    It is fitted robustly to the nearest matches, with the map of the whole photo as prior.
    """
    from scipy.spatial import cKDTree

    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    (whole,) = _affine_maps(a[None], b[None], np.eye(2), 1e-3)
    count = min(_NEIGHBOURS, len(a))
    near = np.reshape(cKDTree(a).query(a, k=count)[1], (len(a), count))
    return _affine_maps(a[near], b[near], whole, (_POSITION_DEVIATION / _AFFINE_DEVIATION) ** 2)


def _affine_maps(a: Array, b: Array, prior: Array, strength: float) -> Array:
    """K x 2 x 2 maps of K x N x 2 points; outliers are down-weighted (Cauchy's weights)."""
    weights = np.ones(a.shape[:2])
    for _ in range(5):
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
) -> tuple[Tensor, Tensor]:
    """The result of `fit_matches` in reduced pixels, from `start`."""
    along = torch.arange(-_HALF_PATCH, _HALF_PATCH + 1, dtype=torch.float32)
    offsets = torch.stack(torch.meshgrid(along, along, indexing="xy"), dim=-1).reshape(-1, 2)
    weights = torch.exp(-(offsets**2).sum(dim=1) / (2 * _WEIGHT_DEVIATION**2))
    weights = weights / weights.sum()
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
        points = points + _gauss_newton_step(second, points, warped, pattern, weights)
    last = correlation(points, all_rows)
    zoom = torch.linalg.det(affine).abs().sqrt()
    moved = (last >= best - 1e-3) & (last > _MIN_CORRELATION) & (contrast[:, 0] > 1)
    moved &= (points - start).norm(dim=1) <= radius + 1
    moved &= (zoom < _MAX_ZOOM) & (zoom > 1 / _MAX_ZOOM)
    moved &= first.contains(pixels) & second.contains(points[:, None] + warped)
    return torch.where(moved[:, None], points, start), moved


def _gauss_newton_step(
    second: GreyPhoto, points: Tensor, warped: Tensor, pattern: Tensor, weights: Tensor
) -> Tensor:
    """K x 2 steps towards the best fit, each at most a pixel."""
    grey, *slopes = second.sample(points[:, None] + warped, slice(3))
    patches, contrast = _normalized(grey, weights)
    slope = torch.stack(slopes, dim=-1) / contrast[..., None]
    # Remove gain and offset from the change, because the normalization removes them, too.
    slope = slope - (slope * weights[:, None]).sum(dim=1, keepdim=True)
    gain = (slope * (patches * weights)[..., None]).sum(dim=1, keepdim=True)
    slope = slope - patches[..., None] * gain
    normal = torch.einsum("kmi,kmj,m->kij", slope, slope, weights) + 1e-4 * torch.eye(2).to(slope)
    gradient = torch.einsum("kmi,km,m->ki", slope, pattern - patches, weights)
    steps = torch.linalg.solve(normal, gradient)
    bounded: Tensor = steps / steps.norm(dim=1, keepdim=True).clamp(min=1)
    return bounded


def _normalized(patches: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """K x M patches with mean 0 and deviation 1, and their K x 1 deviations before."""
    centred = patches - (patches * weights).sum(dim=1, keepdim=True)
    contrast = (centred**2 * weights).sum(dim=1, keepdim=True).sqrt().clamp(min=1e-3)
    return centred / contrast, contrast
