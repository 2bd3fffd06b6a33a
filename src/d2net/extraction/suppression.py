"""What a level of the pyramid must not find again, because a coarser one already has.

D2-Net, section 4.2, last paragraph.
"""

from __future__ import annotations

import torch
from torch import Tensor

from d2net.extraction.pyramid import Level, Window
from d2net.networks.detection import Detections
from d2net.networks.vgg import EXTRACTION_STRIDE

_COMPARED_AT_ONCE = 1024


class BarredCells:
    """The release's rule, for `original`.

    Any cell with a detection, also one that the sub-pixel test drops later, bars its whole area
    from then on; masks of coarser levels are enlarged by nearest neighbour.
    """

    def __init__(self) -> None:
        self._mask: Tensor | None = None
        self._window: Window | None = None
        self._cells = (0, 0)

    def filter(self, found: Detections, level: Level, window: Window) -> Detections:
        """The detections of a level's window that no coarser level bars; they bar in turn."""
        mask = torch.zeros(
            len(window.rows), len(window.cols), dtype=torch.bool, device=found.rows.device
        )
        if self._mask is not None and self._window is not None:
            rows = self._nearest(window.rows, level.cells[0], 0, self._window.rows)
            cols = self._nearest(window.cols, level.cells[1], 1, self._window.cols)
            mask = self._mask[rows.to(mask.device)][:, cols.to(mask.device)]
        allowed = found[~mask[found.rows, found.cols]]
        mask = mask.clone()
        mask[allowed.rows, allowed.cols] = True
        self._mask, self._window, self._cells = mask, window, level.cells
        return allowed

    def _nearest(self, cells: range, size: int, axis: int, previous: range) -> Tensor:
        """Row or column of the previous mask for each cell: floor(c * ratio), in float32."""
        ratio = torch.tensor(self._cells[axis] / size, dtype=torch.float32)
        index = (torch.arange(cells.start, cells.stop).float() * ratio).floor().long()
        return (index - previous.start).clamp(0, len(previous) - 1)


class BarredNeighbourhoods:
    """The default's rule: a keypoint of a coarser level bars what lies within half its cell.

    Only keypoints that are kept bar, at their true positions.
    """

    def __init__(self) -> None:
        self._boxes: list[tuple[Tensor, float]] = []

    def filter(self, positions: Tensor, level: Level) -> Tensor:
        """N bool: which positions (N x 2, in the photo) are free; those bar in turn."""
        free = torch.ones(len(positions), dtype=torch.bool, device=positions.device)
        for kept, radius in self._boxes:
            free &= ~near(positions, kept, radius)
        self._boxes.append((positions[free], EXTRACTION_STRIDE / 2 / level.factor))
        return free


def near(positions: Tensor, others: Tensor, radius: float | Tensor) -> Tensor:
    """Whether another position lies within a radius: the larger of both coordinates' distances.

    Args:
        positions: N x 2.
        others: M x 2.
        radius: one, or N.

    Returns:
        N bool.
    """
    found = torch.zeros(len(positions), dtype=torch.bool, device=positions.device)
    if len(positions) == 0 or len(others) == 0:
        return found
    radii = torch.as_tensor(radius, device=positions.device).expand(len(positions))
    # Both sorted by y, so that a block of positions has to look at a strip of the others only.
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
