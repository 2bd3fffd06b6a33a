"""Suppression across scales: a keypoint of a coarse level suppresses finer ones close to it.

D2-Net, section 4.2, last paragraph.
"""

from __future__ import annotations

import torch
from torch import Tensor

from d2net.extraction.pyramid import Level, Window
from d2net.networks.base import Detections, Grid

_COMPARED_AT_ONCE = 1024


class CellSuppression:
    """The release's rule, for `original`.

    A detection suppresses its whole cell at all finer levels, even if its own sub-pixel position is
    rejected later. The masks of coarser levels are enlarged by nearest neighbour.
    """

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        self._coarser: tuple[Tensor, Window, tuple[int, int]] | None = None

    def apply(self, found: Detections, level: Level, window: Window) -> Detections:
        """The well-located detections of a level that no coarser level suppresses.

        Each call is for the next finer level. `window` has the cells that were searched.
        """
        first = found.anchors.new_tensor([window.cols.start, window.rows.start])
        cols, rows = (found.anchors // self._grid.stride - first).unbind(1)
        if self._coarser is None:
            mask = first.new_zeros(len(window.rows), len(window.cols), dtype=torch.bool)
        else:
            mask, covered, cells = self._coarser
            ranges = ((window.rows, covered.rows), (window.cols, covered.cols))
            for axis, (here, there) in enumerate(ranges):
                # floor(cell * ratio) in float32, as the release
                ratio = torch.tensor(cells[axis] / level.cells[axis], dtype=torch.float32)
                nearest = (torch.arange(here.start, here.stop).float() * ratio).floor().long()
                nearest = (nearest - there.start).clamp(0, len(there) - 1)
                mask = mask.index_select(axis, nearest.to(mask.device))
        free = ~mask[rows, cols]
        mask[rows[free], cols[free]] = True
        self._coarser = mask, window, level.cells
        return found[free & found.located]


class RadiusSuppression:
    """The default: a keypoint suppresses finer ones within `radius`, in pixels of its own level."""

    def __init__(self, radius: float) -> None:
        self._radius = radius
        self._kept: list[tuple[Tensor, float]] = []

    def apply(self, found: Detections, level: Level, window: Window) -> Detections:
        """As `CellSuppression.apply`."""
        found = found[found.located]
        positions = level.photo_from_level(found.positions)
        free = torch.ones(len(positions), dtype=torch.bool, device=positions.device)
        for kept, radius in self._kept:
            free &= ~has_neighbour(positions, kept, radius)
        self._kept.append((positions[free], self._radius / level.factor))
        return found[free]


def has_neighbour(positions: Tensor, others: Tensor, radius: float) -> Tensor:
    """N bool: one of the M x 2 others lies within the radius, by Chebyshev distance."""
    found = torch.zeros(len(positions), dtype=torch.bool, device=positions.device)
    if len(positions) == 0 or len(others) == 0:
        return found
    # Both are sorted by y, so that a block of positions is compared to a strip of the others only.
    order, others = positions[:, 1].argsort(), others[others[:, 1].argsort()]
    ys = others[:, 1].contiguous()
    for start in range(0, len(order), _COMPARED_AT_ONCE):
        block = order[start : start + _COMPARED_AT_ONCE]
        y = positions[block, 1]
        first = int(torch.searchsorted(ys, y[0] - radius))
        end = int(torch.searchsorted(ys, y[-1] + radius, right=True))
        distance = torch.cdist(positions[block], others[first:end], p=torch.inf)
        found[block] = (distance <= radius).any(dim=1)
    return found
