"""Keypoints from the deep maps: soft scores for training, hard detections for extraction.

Dusmanu et al., "D2-Net: A Trainable CNN for Joint Description and Detection of Local Features",
CVPR 2019, section 3. A dense map of C channels is read as C detection maps: a cell is a keypoint
where its strongest channel has a local maximum.

Hard detection is sparse. A cell is a candidate only in its strongest channel, so one maximum over
the channels leaves h * w candidates instead of h * w * C. Neighbours and derivatives are gathered
for the candidates alone. The result equals that of the dense computation.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from d2net.networks.base import Detections

EDGE_THRESHOLD = 5.0
"""Largest ratio of principal curvatures of a keypoint (section 4.1; Lowe 2004 uses 10)."""

MIN_RISE = 0.01
"""Smallest height of a keypoint over the mean of its four neighbours, relative to its own value.

Real keypoints rise by 13 % (median; 2 % at the 0.1 % quantile). Smaller rises come from rounding,
such as the ripple of a saturated sky computed in bfloat16."""

MIN_RISE_ORIGINAL = 1e-4
"""The same for `original` in float32. The release has no such limit, but it computes flat areas
exactly flat, while Winograd convolution leaves rounding errors."""

_LARGEST_STEP = 0.5
"""A sub-pixel step that is larger, in cells, leads into another cell."""


def soft_scores(maps: Tensor) -> Tensor:
    """Soft detection scores of equations 4 to 7, differentiable, one distribution per image.

    The exponent of equation 4 is divided by the largest value of the image, as in the release;
    otherwise it overflows. Cells where every channel is zero score zero.

    Args:
        maps: B x C x h x w, before the ReLU.

    Returns:
        B x h x w, not negative; each image sums to one (to zero if nothing is active).
    """
    batch, channels, height, width = maps.shape
    if maps.numel() == 0:
        return maps.new_zeros(batch, height, width)
    # The score of a cell comes from one of its channels. Find that channel without a graph, then
    # compute its neighbourhood again with a graph: a hundredth of the gradients.
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
    # Beyond the border the value is zero and the exponential 1, as in the release.
    e = torch.exp(value / torch.where(largest > 0, largest, torch.ones_like(largest)))
    alpha = e[:, 4] / e.sum(dim=1)
    gamma = alpha * value[:, 4] / torch.where(strongest > 0, strongest, torch.ones_like(strongest))
    total = gamma.sum(dim=(1, 2), keepdim=True)
    return gamma / torch.where(total > 0, total, torch.ones_like(total))


def _places(cells: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The entries of the maps that determine the soft scores.

    Args:
        cells: B x h x w x C, before the ReLU.

    Returns:
        The channel of each cell that gives its score, B x h x w; its strongest channel, B x h x w;
        and the index of the largest value in the flattened image, B x 1.
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


def detect(maps: Tensor, *, original: bool = False, min_rise: float = MIN_RISE) -> Detections:
    """Hard detections: equation 3, the edge test and the sub-pixel step.

    Args:
        maps: h x w x C after the ReLU, any float type; compared in float32.
        original: as the 2019 release: cells on the border count (derivatives are padded with zeros)
            and of equal neighbours all are detections. Otherwise a detection needs its eight
            neighbours, and of equal neighbours the first in reading order wins.
        min_rise: smallest height over the neighbours, relative to the value.

    Returns:
        Detections in cells of the map, ordered by row, column, channel. `scores` are values of the
        map. `located` is False where the sub-pixel step is half a cell or more, or where one of the
        four cells that a descriptor is sampled from does not exist.
    """
    if torch.compiler.is_exporting():
        channels, rows, cols = _inner_cells(maps)
    else:
        channels, rows, cols = _strongest_channels(maps, border=original, ties=original)
    patch, inside = _neighbourhoods(maps, channels, rows, cols)
    peak = _is_local_maximum(patch, inside, ties=original)
    if not torch.compiler.is_exporting():  # few are left: what follows is cheap
        channels, rows, cols, patch = channels[peak], rows[peak], cols[peak], patch[peak]
        peak = peak[peak]
    det, trace, steps = quadratic_step(patch)
    convex = det > 0
    ratio = trace * trace / torch.where(convex, det, torch.ones_like(det))
    passed = peak & convex & (ratio <= (EDGE_THRESHOLD + 1) ** 2 / EDGE_THRESHOLD)
    values = patch[:, 1, 1]
    around = (patch[:, 0, 1] + patch[:, 2, 1] + patch[:, 1, 0] + patch[:, 1, 2]) / 4
    passed &= (values > 0) & (1 - around / values >= min_rise)
    cells = torch.stack([cols, rows], dim=1)
    positions = cells + steps
    limit = torch.tensor([maps.shape[1] - 1, maps.shape[0] - 1], device=maps.device)
    located = (steps.abs() < _LARGEST_STEP) & (positions >= 0) & (positions <= limit)
    return Detections(positions, values, cells, channels, located.all(dim=1))[passed]


def _inner_cells(maps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Strongest channel, row and column of every cell that has eight neighbours.

    A graph that other programs run needs these whole-map operations in a fixed order.
    """
    rows, cols = (torch.arange(size, device=maps.device) for size in maps.shape[:2])
    rows, cols = torch.meshgrid(rows[1:-1], cols[1:-1], indexing="ij")
    return maps.argmax(dim=2)[1:-1, 1:-1].flatten(), rows.flatten(), cols.flatten()


def _strongest_channels(maps: Tensor, *, border: bool, ties: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Channels, rows, columns where a positive value is the largest of its cell's channels.

    Args:
        maps: h x w x C.
        border: whether cells on the border of the map take part.
        ties: whether all channels that share the maximum count, or only the first.
    """
    if maps.numel() == 0:
        none = torch.empty(0, dtype=torch.int64, device=maps.device)
        return none, none, none
    strongest = maps.amax(dim=2)
    excluded = strongest <= 0
    if not border:
        excluded[[0, -1], :] = True
        excluded[:, [0, -1]] = True
    # No value equals infinity, so an excluded cell yields no candidate.
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
