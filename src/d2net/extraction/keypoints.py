"""From photos of one size to positions, scores and descriptors: the path every extraction takes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from d2net.extraction.barring import BarredCells, BarredNeighbourhoods
from d2net.extraction.pyramid import PYRAMID, Level, Window, add_previous, level_map, levels
from d2net.extraction.tiling import CELLS_PER_TILE, MARGIN, tiles
from d2net.network.catalogue import Normalisation
from d2net.network.detection import LEAST_RISE, LEAST_RISE_ORIGINAL, Detections, detect
from d2net.network.sampling import describe
from d2net.network.trunk import Trunk


@dataclass(frozen=True)
class Keypoints:
    """What is found in one photo, N rows.

    Attributes:
        positions: N x 2 float32 (x, y) in pixels of the photo that entered the pyramid.
        scores: N float32.
        scales: N float32, 1 / factor of the level.
        descriptors: N x C float32, unit length.
        order: N int64, rank in the release's order: level, channel, row, column.
    """

    positions: Tensor
    scores: Tensor
    scales: Tensor
    descriptors: Tensor
    order: Tensor


def find_keypoints(
    trunk: Trunk,
    normalisation: Normalisation,
    photos: Tensor,
    *,
    multiscale: bool,
    original: bool,
    dtype: torch.dtype,
    cells_per_tile: int = CELLS_PER_TILE,
) -> list[Keypoints]:
    """Detect and describe in a batch of photos.

    Args:
        trunk: the network, on the device of `photos`.
        normalisation: what its weights want.
        photos: B x H x W x 3, RGB, 0..255, uint8 or float32.
        multiscale: on the pyramid of 0.5, 1, 2, or at the photo's own size alone.
        original: as the 2019 release.
        dtype: precision of the network.
        cells_per_tile: larger maps are computed in tiles, with equal results.

    Returns:
        One `Keypoints` per photo.
    """
    batch, height, width, _ = photos.shape
    factors = PYRAMID if multiscale else (1.0,)
    pyramid = levels((width, height), factors, original=original)
    least_rise = LEAST_RISE_ORIGINAL if original and dtype == torch.float32 else LEAST_RISE
    parts: list[list[Keypoints]] = [[] for _ in range(batch)]
    for owned in tiles((width, height), pyramid, cells_per_tile):
        barring = [BarredCells() if original else BarredNeighbourhoods() for _ in range(batch)]
        previous, previous_window = None, None
        for level, own in zip(pyramid, owned, strict=True):
            window = own.grown(MARGIN, level.cells)
            maps = level_map(trunk, normalisation, photos, level, window, dtype)
            if previous is not None and previous_window is not None:
                maps = add_previous(
                    maps, window, previous, previous_window, level, original=original
                )
            for i in range(batch):
                found = _find_in_window(maps[i], level, window, own, barring[i], least_rise)
                parts[i].append(found)
            previous, previous_window = maps, window
    if not original:  # of a photo without contrast the network sees only the zeros around it
        parts = [
            [] if bool((photo == photo[0, 0]).all()) else found
            for photo, found in zip(photos, parts, strict=True)
        ]
    return [_joined(found, trunk.channels, photos.device) for found in parts]


def _find_in_window(
    maps: Tensor,
    level: Level,
    window: Window,
    own: Window,
    barring: BarredCells | BarredNeighbourhoods,
    least_rise: float,
) -> Keypoints:
    """Keypoints of the owned cells of one level, from the map of a window around them."""
    original = isinstance(barring, BarredCells)
    found = detect(maps, original=original, least_rise=least_rise)
    if isinstance(barring, BarredCells):
        found = barring.filter(found, level, window)
    found = found[found.located & _samples_inside(found, maps)]
    corner = found.positions.new_tensor([window.cols.start, window.rows.start])
    positions = level.photo_from_cells(found.positions + corner)
    if isinstance(barring, BarredNeighbourhoods):
        free = barring.filter(positions, level)
        found, positions = found[free], positions[free]
    rows, cols = found.rows + window.rows.start, found.cols + window.cols.start
    mine = (rows >= own.rows.start) & (rows < own.rows.stop)
    mine &= (cols >= own.cols.start) & (cols < own.cols.stop)
    found, positions, rows, cols = found[mine], positions[mine], rows[mine], cols[mine]
    rank = level.number * maps.shape[2] + found.channels
    for size, index in zip(level.cells, (rows, cols), strict=True):
        rank = rank * size + index
    values = found.values * _score_factor(level, original=original)
    return Keypoints(
        positions,
        values,
        torch.full_like(values, 1 / level.factor),
        describe(maps, found.positions),
        rank,
    )


def _score_factor(level: Level, *, original: bool) -> float:
    """Makes scores of levels comparable.

    The release sums maps and divides by the level's number. The default's maps are means, and a
    value counts in proportion to the square root of the resolution: of the exponents tried, the
    one whose best 500 keypoints matched most accurately (0.57 at 3 px; 0.52 for plain values).
    """
    return 1 / level.number if original else math.sqrt(level.factor)


def _samples_inside(found: Detections, maps: Tensor) -> Tensor:
    """N bool: all four cells that a descriptor is sampled from exist."""
    height, width = maps.shape[:2]
    limit = found.steps.new_tensor([width - 1, height - 1])
    return ((found.positions >= 0) & (found.positions <= limit)).all(dim=1)


def _joined(parts: list[Keypoints], channels: int, device: torch.device) -> Keypoints:
    """All parts in the release's order, whatever the tiles."""
    if not parts:
        none = torch.empty(0, device=device)
        return Keypoints(none.view(0, 2), none, none, none.view(0, channels), none.to(torch.int64))
    order = torch.cat([part.order for part in parts])
    # Levels only grow, so that every rank of a level is above all those of the level before.
    rank = order.argsort()
    return Keypoints(
        torch.cat([part.positions for part in parts])[rank],
        torch.cat([part.scores for part in parts])[rank],
        torch.cat([part.scales for part in parts])[rank],
        torch.cat([part.descriptors for part in parts])[rank],
        order[rank],
    )
