"""Who proposes keypoints: the deep map, or the corners of the grey photo.

A proposer looks at a window of one level and says where on the level's map keypoints lie. All that
follows (barring, describing, choosing) is the same for both.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from d2net.extraction.corners import FRAME, detect_corners, to_grey
from d2net.extraction.pyramid import Crop, Level, Window
from d2net.extraction.suppression import BarredCells, BarredNeighbourhoods
from d2net.geometry.coordinates import EXTRACTION_CELLS
from d2net.networks.detection import LEAST_RISE, LEAST_RISE_ORIGINAL, Detections, detect

Proposer = Literal["deep", "corner"]

PROPOSERS: Mapping[str, tuple[Proposer, ...]] = {
    "deep": ("deep",),
    "corner": ("corner",),
    "both": ("corner", "deep"),
}
"""By the setting `keypoints`; of two near each other the earlier proposer's stays."""


DEEP_DEVIATION = 1.5
"""Standard deviation per axis of a detection at level 1, in pixels; it goes with the square root of
the scale. Measured (median absolute deviation of right matches under random homographies with
photometric change, over sqrt 2): 1.2 px at scale 0.5, 1.4 to 1.6 at 1, 2.1 to 2.4 at 2."""

CORNER_DEVIATION = 0.4
"""The same of a corner, at any scale. Measured in the same way: 0.32 px without a pyramid, and
with it 0.46 px at scale 0.5, 0.33 at 1, 0.40 at 2."""


CORNER_SCORE = 80.0
"""What a corner of one grey value per pixel of its level scores among the deep map's. With the
off-the-shelf weights the scores of both kinds then agree rank by rank (80 to 84 at ranks 100, 250
and 500, medians over photos). Shares of a budget do not depend on it.

Levels need no factor: of those tried (their resolution to the power of -2 to 1), none gave the most
accurate matches of the best 500 corners."""


@dataclass(frozen=True)
class Proposals:
    """Keypoints in a window of one level, N rows.

    Attributes:
        positions: N x 2 float32 (x, y) on the level's map, in cells.
        owners: N x 2 int64 (x, y), the cells that they belong to.
        scores: N float32.
        order: N int64, their rank among all that the proposer finds in the photo.
    """

    positions: Tensor
    owners: Tensor
    scores: Tensor
    order: Tensor

    def __getitem__(self, keep: Tensor) -> Proposals:
        return Proposals(
            self.positions[keep], self.owners[keep], self.scores[keep], self.order[keep]
        )

    def inside(self, window: Window) -> Tensor:
        """N bool: their cells lie in a window."""
        x, y = self.owners.unbind(1)
        return (
            (x >= window.cols.start)
            & (x < window.cols.stop)
            & (y >= window.rows.start)
            & (y < window.rows.stop)
        )


@dataclass(frozen=True)
class View:
    """What proposers look at: a window of one level of one photo.

    Attributes:
        level: the level.
        window: its cells.
        crop: where the pixels lie in the level's image.
        pixels: rows x cols x 3, RGB, 0..255, float32.
        deep: rows x cols x C.
        shallow: (rows + 1) x (cols + 1) x C'.
        dtype: precision that the network made the maps in.
    """

    level: Level
    window: Window
    crop: Crop
    pixels: Tensor
    deep: Tensor
    shallow: Tensor
    dtype: torch.dtype

    @property
    def origin(self) -> Tensor:
        """The window's first cell (x, y)."""
        first = [self.window.cols.start, self.window.rows.start]
        return torch.tensor(first, device=self.deep.device)


def propose(
    proposer: Proposer, view: View, barring: BarredCells | BarredNeighbourhoods
) -> Proposals:
    """The keypoints of a proposer in a view.

    `BarredCells` stand for the release's rules, and the deep map's proposals then respect them;
    `BarredNeighbourhoods` are the caller's to apply.
    """
    if proposer == "corner":
        return _from_corners(view)
    return _from_deep_map(view, barring if isinstance(barring, BarredCells) else None)


def _from_deep_map(view: View, barred: BarredCells | None) -> Proposals:
    """D2-Net's keypoints; as the release finds them if it bars cells."""
    level, maps = view.level, view.deep
    original = barred is not None
    least_rise = LEAST_RISE_ORIGINAL if original and view.dtype == torch.float32 else LEAST_RISE
    found = detect(maps, original=original, least_rise=least_rise)
    if barred is not None:
        found = barred.filter(found, level, view.window)
    found = found[found.located & _samples_inside(found, maps)]
    owners = torch.stack([found.cols, found.rows], dim=1) + view.origin
    rank = level.number * maps.shape[2] + found.channels
    for size, index in zip(level.cells, (owners[:, 1], owners[:, 0]), strict=True):
        rank = rank * size + index
    # The release sums maps and divides by the level's number. The default's maps are means, and a
    # value counts in proportion to the square root of the resolution: of the exponents tried, the
    # one whose best 500 keypoints matched most accurately (0.57 at 3 px; 0.52 for plain values).
    factor = 1 / level.number if original else math.sqrt(level.factor)
    return Proposals(found.positions + view.origin, owners, found.values * factor, rank)


def _from_corners(view: View) -> Proposals:
    """Corners of the grey photo, away from its frame."""
    found = detect_corners(to_grey(view.pixels))
    first = torch.tensor([view.crop.cols.start, view.crop.rows.start], device=found.rows.device)
    pixels = torch.stack([found.cols, found.rows], dim=1) + first
    width, height = view.level.size
    free = (pixels >= FRAME) & (pixels < pixels.new_tensor([width, height]) - FRAME)
    cells_from_pixels = EXTRACTION_CELLS.inverse()
    proposals = Proposals(
        cells_from_pixels(found.positions + first),
        cells_from_pixels(pixels.double()).round().long(),
        found.scores * CORNER_SCORE,
        (view.level.number * height + pixels[:, 1]) * width + pixels[:, 0],
    )
    return proposals[free.all(dim=1) & proposals.inside(view.window)]


def _samples_inside(found: Detections, maps: Tensor) -> Tensor:
    """N bool: all four cells that a descriptor is sampled from exist."""
    height, width = maps.shape[:2]
    limit = found.steps.new_tensor([width - 1, height - 1])
    return ((found.positions >= 0) & (found.positions <= limit)).all(dim=1)


def deviation(proposer: Proposer, scales: Tensor) -> Tensor:
    """Standard deviation per axis of positions found at `scales`, in pixels of level 1."""
    if proposer == "deep":
        return scales.sqrt() * DEEP_DEVIATION
    return torch.full_like(scales, CORNER_DEVIATION)
