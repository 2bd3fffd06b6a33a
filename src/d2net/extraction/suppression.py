"""Suppression across scales: a keypoint of a coarse level suppresses finer ones close to it.

D2-Net, section 4.2, last paragraph.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from d2net.extraction.pyramid import Crop, Level, Window
from d2net.networks.base import Detections, Grid

_COMPARED_AT_ONCE = 1024


class Suppression(Protocol):
    """Keeps what the levels of one photo have found; called for one level after the other."""

    def apply(self, found: Detections, level: Level, crop: Crop) -> Detections:
        """The well-located detections of a level that no coarser level suppresses."""
        ...


class CellSuppression:
    """The release's rule, for `original`.

    A detection suppresses its whole cell at all finer levels, even if its own sub-pixel position is
    rejected later. The masks of coarser levels are enlarged by nearest neighbour.

    Args:
        grid: of the network.
    """

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        self._mask: Tensor | None = None
        self._window = Window(range(0), range(0))
        self._cells = (0, 0)

    def apply(self, found: Detections, level: Level, crop: Crop) -> Detections:
        """The well-located detections of a level that no coarser level suppresses."""
        window = crop.window
        cols, rows = (found.anchors // self._grid.stride).unbind(1)
        mask = torch.zeros(len(window.rows), len(window.cols), dtype=torch.bool, device=rows.device)
        if self._mask is not None:
            coarse_rows = self._nearest(window.rows, level.cells[0], 0, self._window.rows)
            coarse_cols = self._nearest(window.cols, level.cells[1], 1, self._window.cols)
            mask = self._mask[coarse_rows.to(mask.device)][:, coarse_cols.to(mask.device)].clone()
        free = ~mask[rows, cols]
        mask[rows[free], cols[free]] = True
        self._mask, self._window, self._cells = mask, window, level.cells
        return found[free & found.located]

    def _nearest(self, cells: range, size: int, axis: int, coarser: range) -> Tensor:
        """Row or column of the coarser mask for each cell: floor(c * ratio), in float32."""
        ratio = torch.tensor(self._cells[axis] / size, dtype=torch.float32)
        index = (torch.arange(cells.start, cells.stop).float() * ratio).floor().long()
        return (index - coarser.start).clamp(0, len(coarser) - 1)


class RadiusSuppression:
    """The default rule: a keypoint suppresses finer ones within half its cell of its position.

    Args:
        grid: of the network.
    """

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        self._kept: list[tuple[Tensor, float]] = []

    def apply(self, found: Detections, level: Level, crop: Crop) -> Detections:
        """The well-located detections of a level that no coarser level suppresses."""
        found = found[found.located]
        first = found.positions.new_tensor([crop.cols.start, crop.rows.start])
        positions = level.photo_from_level(found.positions + first)
        free = torch.ones(len(positions), dtype=torch.bool, device=positions.device)
        for kept, radius in self._kept:
            free &= ~has_neighbour(positions, kept, radius)
        self._kept.append((positions[free], self._grid.stride / 2 / level.factor))
        return found[free]


def has_neighbour(positions: Tensor, others: Tensor, radius: float | Tensor) -> Tensor:
    """Whether one of the other positions lies within a radius, by Chebyshev distance.

    Args:
        positions: N x 2.
        others: M x 2.
        radius: one for all, or N.

    Returns:
        N bool.
    """
    found = torch.zeros(len(positions), dtype=torch.bool, device=positions.device)
    if len(positions) == 0 or len(others) == 0:
        return found
    radii = torch.as_tensor(radius, device=positions.device).expand(len(positions))
    # Both are sorted by y, so that a block of positions is compared to a strip of the others only.
    order, others = positions[:, 1].argsort(), others[others[:, 1].argsort()]
    ys, widest = others[:, 1].contiguous(), float(radii.max())
    for start in range(0, len(order), _COMPARED_AT_ONCE):
        block = order[start : start + _COMPARED_AT_ONCE]
        y = positions[block, 1]
        first = int(torch.searchsorted(ys, y[0] - widest))
        end = int(torch.searchsorted(ys, y[-1] + widest, right=True))
        distance = torch.cdist(positions[block], others[first:end], p=torch.inf)
        found[block] = (distance <= radii[block, None]).any(dim=1)
    return found
