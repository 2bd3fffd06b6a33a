"""Keypoints from the deep maps: soft scores for training, hard detections for extraction.

Dusmanu et al., "D2-Net: A Trainable CNN for Joint Description and Detection of Local Features",
CVPR 2019, section 3. A dense map of C channels is read as C detection maps: a cell is a keypoint
where its strongest channel has a local maximum.

The hard detection is sparse. A cell is a candidate only in its strongest channel, so one maximum
over the channels leaves h * w values to look at in place of h * w * C; neighbours and derivatives
are gathered for those alone. The result is that of the dense computation.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

EDGE_THRESHOLD = 5.0
"""Largest ratio of principal curvatures of a keypoint (section 4.1; Lowe 2004 uses 10)."""

LEAST_RISE = 0.01
"""Least height of a keypoint over the mean of its four neighbours, relative to its own value.

Real keypoints rise by 13 % (median; 2 % at the 0.1 % quantile); what rises less is rounding, as the
ripple of a saturated sky computed in bfloat16."""

LEAST_RISE_ORIGINAL = 1e-4
"""The same for `original` in float32. The release has no such limit, but it computes flat areas
exactly flat, and Winograd within rounding."""

_LARGEST_STEP = 0.5
"""A refined position further from its cell than this belongs to another cell."""


def soft_scores(maps: Tensor) -> Tensor:
    """Soft detection scores of equations 4 to 7, differentiable, one distribution per image.

    As in the release, and other than in equation 4, the exponent is divided by the largest value
    of the image: without that it overflows. Cells where every channel is zero score zero.

    Args:
        maps: B x C x h x w, before the ReLU.

    Returns:
        B x h x w, not negative; each image sums to one (to zero where nothing is active).
    """
    batch, channels, height, width = maps.shape
    if maps.numel() == 0:
        return maps.new_zeros(batch, height, width)
    # A score comes from one channel of its cell. Which one is found without a graph; then only
    # that channel's neighbourhood is computed again with one: a hundredth of the gradients.
    cells = maps.permute(0, 2, 3, 1).contiguous()
    values = F.relu(cells).flatten(1)
    with torch.no_grad():
        channel, strongest_channel, largest_place = _places(cells)
    places = torch.arange(height * width, device=maps.device).view(height, width) * channels
    padded = F.pad(places, (1, 1, 1, 1), value=-1)
    neighbours = torch.stack(
        [padded[i : i + height, j : j + width] for i in range(3) for j in range(3)]
    )
    inside = neighbours >= 0
    around = (neighbours.clamp_min(0) + channel[:, None]).flatten(1)
    value = values.gather(1, around).view(batch, 9, height, width) * inside
    strongest = values.gather(1, (places + strongest_channel).flatten(1)).view(batch, height, width)
    largest = values.gather(1, largest_place)[:, :, None, None]
    # Beyond the border the exponential counts as 1, as in the release: the value is zero there.
    e = torch.exp(value / torch.where(largest > 0, largest, torch.ones_like(largest)))
    alpha = e[:, 4] / e.sum(dim=1)
    gamma = alpha * value[:, 4] / torch.where(strongest > 0, strongest, torch.ones_like(strongest))
    total = gamma.sum(dim=(1, 2), keepdim=True)
    return gamma / torch.where(total > 0, total, torch.ones_like(total))


def _places(cells: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Where the soft scores come from.

    Args:
        cells: B x h x w x C, before the ReLU.

    Returns:
        B x h x w, the channel that gives a cell its score; the same, its strongest channel; and
        B x 1, the place of the largest value in the flattened image.
    """
    cells = F.relu(cells)
    largest = cells.flatten(1).amax(1)[:, None, None, None]
    e = torch.exp(cells / torch.where(largest > 0, largest, torch.ones_like(largest)))
    padded = F.pad(e.permute(0, 3, 1, 2), (1, 1, 1, 1), value=1.0)
    mean = F.avg_pool2d(padded, 3, 1).permute(0, 2, 3, 1)
    strongest, strongest_channel = cells.max(dim=3)
    place = strongest.flatten(1).argmax(1)[:, None]
    channel = strongest_channel.flatten(1).gather(1, place)
    return (
        e.mul_(cells).div_(mean).max(dim=3)[1],
        strongest_channel,
        place * cells.shape[3] + channel,
    )


@dataclass(frozen=True)
class Detections:
    """Hard detections in one map, ordered by row, column, channel.

    Attributes:
        channels, rows, cols: N int64, the cell and its strongest channel.
        values: N float32, the map's value there.
        steps: N x 2 float32, sub-pixel step (columns, rows) from the cell, in cells. The step is
            trusted where both parts are under half a cell (`located`).
    """

    channels: Tensor
    rows: Tensor
    cols: Tensor
    values: Tensor
    steps: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, keep: Tensor) -> Detections:
        return Detections(
            self.channels[keep],
            self.rows[keep],
            self.cols[keep],
            self.values[keep],
            self.steps[keep],
        )

    @property
    def located(self) -> Tensor:
        """N bool: the sub-pixel position lies in the cell itself."""
        return (self.steps.abs() < _LARGEST_STEP).all(dim=1)

    @property
    def positions(self) -> Tensor:
        """N x 2 float32 (x, y) in cells."""
        return torch.stack([self.cols, self.rows], dim=1) + self.steps


def detect(maps: Tensor, *, original: bool = False, least_rise: float = LEAST_RISE) -> Detections:
    """Hard detections: equation 3, the edge test and the sub-pixel step.

    Args:
        maps: h x w x C after the ReLU, any float type; compared in float32.
        original: as the 2019 release: cells on the frame count (derivatives padded with zeros)
            and equal neighbours are all detections. Otherwise a detection needs its eight
            neighbours, and of equal ones the first in reading order wins.
        least_rise: over the neighbours, relative to the value.

    Returns:
        The detections, before `located` is asked for.
    """
    channels, rows, cols = _strongest_channels(maps, frame=original, ties=original)
    patch, inside = _neighbourhoods(maps, channels, rows, cols)
    keep = _is_local_maximum(patch, inside, ties=original)
    channels, rows, cols, patch = channels[keep], rows[keep], cols[keep], patch[keep]
    passed, steps = _edge_test_and_step(patch)
    passed &= _rise(patch) >= least_rise
    return Detections(channels, rows, cols, patch[:, 1, 1], steps)[passed]


def detect_everywhere(maps: Tensor) -> tuple[Tensor, Detections]:
    """`detect` in a fixed order of whole-map operations, for a graph that other programs run.

    Args:
        maps: h x w x C after the ReLU, any float type, with at least one cell.

    Returns:
        Which inner cells are detections (N bool), and what all of them would be.
    """
    rows, cols = (torch.arange(size, device=maps.device) for size in maps.shape[:2])
    channels = maps.argmax(dim=2)[1:-1, 1:-1].flatten()
    rows, cols = (x.flatten() for x in torch.meshgrid(rows[1:-1], cols[1:-1], indexing="ij"))
    patch, inside = _neighbourhoods(maps, channels, rows, cols)
    passed, steps = _edge_test_and_step(patch)
    values = patch[:, 1, 1]
    passed &= (values > 0) & _is_local_maximum(patch, inside, ties=False)
    passed &= _rise(patch) >= LEAST_RISE
    return passed, Detections(channels, rows, cols, values, steps)


def _strongest_channels(maps: Tensor, *, frame: bool, ties: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Channels, rows, columns where a positive value is the largest of its cell's channels.

    Args:
        maps: h x w x C.
        frame: whether the cells on the map's frame take part.
        ties: whether all channels that share the maximum count, or only the first.
    """
    if maps.numel() == 0:
        none = torch.empty(0, dtype=torch.int64, device=maps.device)
        return none, none, none
    strongest = maps.amax(dim=2)
    excluded = strongest <= 0
    if not frame:
        excluded[[0, -1], :] = True
        excluded[:, [0, -1]] = True
    # Nothing equals infinity: an excluded cell yields no candidate, an all-zero one least of all.
    strongest = strongest.masked_fill(excluded, torch.inf)
    rows, cols, channels = (maps == strongest[:, :, None]).nonzero(as_tuple=True)
    if not ties:
        cell = rows * maps.shape[1] + cols
        first = torch.ones_like(cell, dtype=torch.bool)
        first[1:] = cell[1:] != cell[:-1]
        rows, cols, channels = rows[first], cols[first], channels[first]
    return channels, rows, cols


def _neighbourhoods(
    maps: Tensor, channels: Tensor, rows: Tensor, cols: Tensor
) -> tuple[Tensor, Tensor]:
    """3 x 3 values around each cell in its channel (N x 3 x 3 float32), and which are inside.

    Outside the map the value is zero.
    """
    height, width, _ = maps.shape
    offsets = torch.arange(-1, 2, device=maps.device)
    i = rows[:, None, None] + offsets[None, :, None]
    j = cols[:, None, None] + offsets[None, None, :]
    inside = (i >= 0) & (i < height) & (j >= 0) & (j < width)
    values = maps[i.clamp(0, height - 1), j.clamp(0, width - 1), channels[:, None, None]]
    return values.float() * inside, inside


def _is_local_maximum(patch: Tensor, inside: Tensor, *, ties: bool) -> Tensor:
    """N bool: the centre is the largest of its 3 x 3 neighbourhood within the map.

    With `ties` equal neighbours are allowed; without, only ones later in reading order.
    """
    patch, inside = patch.reshape(-1, 9), inside.reshape(-1, 9)
    centre = patch[:, 4:5]
    if ties:
        return ((centre >= patch) | ~inside).all(dim=1)
    earlier, later = patch[:, :4], patch[:, 5:]
    return (centre > earlier).all(dim=1) & (centre >= later).all(dim=1)


def _rise(patch: Tensor) -> Tensor:
    """Height over the mean of the four neighbours, relative to the value, which is positive."""
    centre = patch[:, 1, 1]
    around = (patch[:, 0, 1] + patch[:, 2, 1] + patch[:, 1, 0] + patch[:, 1, 2]) / 4
    return 1 - around / centre


def _edge_test_and_step(patch: Tensor) -> tuple[Tensor, Tensor]:
    """Edge test (N bool) and sub-pixel step (N x 2: columns, rows) from 3 x 3 values."""
    det, trace, steps = quadratic_step(patch)
    peak = det > 0
    safe = torch.where(peak, det, torch.ones_like(det))
    return peak & (trace * trace / safe <= (EDGE_THRESHOLD + 1) ** 2 / EDGE_THRESHOLD), steps


def quadratic_step(patch: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """From 3 x 3 values to the peak of the quadratic through them.

    Brown and Lowe, BMVC 2002: step = -H^-1 g. Where the determinant is not positive there is no
    peak, and the step is zero.

    Args:
        patch: N x 3 x 3 values around a local maximum.

    Returns:
        Determinant (N) and trace (N) of the Hessian, and the step (N x 2: columns, rows).
    """
    up, centre, down = patch[:, 0, 1], patch[:, 1, 1], patch[:, 2, 1]
    left, right = patch[:, 1, 0], patch[:, 1, 2]
    dii = up - 2 * centre + down
    djj = left - 2 * centre + right
    dij = 0.25 * (patch[:, 0, 0] - patch[:, 0, 2] - patch[:, 2, 0] + patch[:, 2, 2])
    di, dj = 0.5 * (down - up), 0.5 * (right - left)
    det = dii * djj - dij * dij
    peak = det > 0
    safe = torch.where(peak, det, torch.ones_like(det))
    step_i = -(djj * di - dij * dj) / safe
    step_j = -(dii * dj - dij * di) / safe
    steps = torch.stack([step_j, step_i], dim=1)
    return det, dii + djj, torch.where(peak[:, None], steps, torch.zeros_like(steps))
