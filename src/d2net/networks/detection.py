"""Keypoints from the deep maps: soft scores for training, hard detections for extraction.

Dusmanu et al., "D2-Net: A Trainable CNN for Joint Description and Detection of Local Features",
CVPR 2019, section 3. A dense map of C channels is read as C detection maps: a cell is a keypoint
where its strongest channel has a local maximum.

Hard detection is sparse: a cell is a candidate only in its strongest channel, and neighbours are
gathered for the candidates alone. The result equals that of the dense computation.
"""

from __future__ import annotations

from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor

from d2net.networks.base import Detections

EDGE_THRESHOLD = 5.0  # largest ratio of a keypoint's principal curvatures (section 4.1)

MIN_RISE = 0.01
"""Smallest height of a keypoint over the mean of its four neighbours, relative to its own value.

Real keypoints rise by 13 % (median; 2 % at the 0.1 % quantile). Smaller rises come from rounding,
such as the ripple of a saturated sky computed in bfloat16."""

MIN_RISE_ORIGINAL = 1e-4
"""The smallest height for `original` in float32. The release has no such limit, but it computes
flat areas exactly flat, while Winograd convolution leaves rounding errors."""

_LARGEST_STEP = 0.5  # a larger sub-pixel step, in cells, leads into another cell


def soft_scores(maps: Tensor) -> Tensor:
    """Soft detection scores of equations 4 to 7, differentiable, one distribution per image.

    The exponent of equation 4 is divided by the largest value of the image, as in the release;
    otherwise it overflows. Cells where every channel is zero score zero.

    The maps are B x C x h x w, before the ReLU. The scores are B x h x w; those of an image sum to
    one (to zero if nothing is active).
    """
    batch, channels, height, width = maps.shape
    if maps.numel() == 0:
        return maps.new_zeros(batch, height, width)
    cells = F.relu(maps.permute(0, 2, 3, 1).contiguous())
    values = cells.flatten(1)
    # The score of a cell comes from one of its channels. Find that channel without a graph, then
    # compute its neighbourhood again with a graph: a hundredth of the gradients.
    with torch.no_grad():
        strongest, strongest_channel = cells.max(dim=3)
        largest_cell = strongest.flatten(1).argmax(1)[:, None]
        largest_channel = strongest_channel.flatten(1).gather(1, largest_cell)
        e = torch.exp(cells / _safe(strongest.amax((1, 2)))[:, None, None, None])
        padded = F.pad(e.permute(0, 3, 1, 2), (1, 1, 1, 1), value=1.0)
        mean = F.avg_pool2d(padded, 3, 1).permute(0, 2, 3, 1)
        channel = e.mul_(cells).div_(mean).max(dim=3).indices
    places = torch.arange(height * width, device=maps.device).view(height, width) * channels
    padded = F.pad(places, (1, 1, 1, 1), value=-1)
    neighbours = torch.stack(
        [padded[i : i + height, j : j + width] for i in range(3) for j in range(3)]
    )
    around = (neighbours.clamp_min(0) + channel[:, None]).flatten(1)
    value = values.gather(1, around).view(batch, 9, height, width) * (neighbours >= 0)
    strongest = values.gather(1, (places + strongest_channel).flatten(1)).view(batch, height, width)
    largest = values.gather(1, largest_cell * channels + largest_channel)[:, :, None, None]
    # Beyond the border the value is zero and the exponential 1, as in the release.
    e = torch.exp(value / _safe(largest))
    alpha = e[:, 4] / e.sum(dim=1)
    gamma = alpha * value[:, 4] / _safe(strongest)
    return gamma / _safe(gamma.sum(dim=(1, 2), keepdim=True))


def _safe(divisor: Tensor) -> Tensor:
    return torch.where(divisor > 0, divisor, torch.ones_like(divisor))


def detect(maps: Tensor, *, original: bool = False, min_rise: float = MIN_RISE) -> Detections:
    """Hard detections: equation 3, the edge test and the sub-pixel step.

    Args:
        maps: h x w x C after the ReLU, any float type; compared in float32.
        original: as in the 2019 release, cells on the border count (derivatives are padded with
            zeros), and equal neighbours are all detections. Otherwise a detection needs its eight
            neighbours, and the first of equal neighbours in reading order wins.
        min_rise: smallest height over the neighbours, relative to the value.

    Returns:
        Detections in cells of the map, ordered by row, column, channel. `scores` are values of the
        map. `located` is False where the sub-pixel step is half a cell or more, or where one of the
        four cells that a descriptor is sampled from does not exist.
    """
    height, width, _ = maps.shape
    strongest, channel = maps.max(dim=2)
    if original:
        # No value equals infinity, so a cell where nothing is active yields no candidate.
        strongest = strongest.masked_fill(strongest <= 0, torch.inf)
        rows, cols, channels = (maps == strongest[:, :, None]).nonzero(as_tuple=True)
    else:
        rows, cols = (strongest[1:-1, 1:-1] > 0).nonzero(as_tuple=True)
        rows, cols = rows + 1, cols + 1
        channels = channel[rows, cols]
    # The 3 x 3 values around each candidate in its channel; outside the map the value is zero.
    offsets = torch.arange(-1, 2, device=maps.device)
    i, j = rows[:, None, None] + offsets[:, None], cols[:, None, None] + offsets
    inside = (i >= 0) & (i < height) & (j >= 0) & (j < width)
    patch = maps[i.clamp(0, height - 1), j.clamp(0, width - 1), channels[:, None, None]]
    patch = patch.float() * inside
    around, centre = patch.flatten(1), patch[:, 1, 1, None]
    if original:
        peak = (centre >= around).all(dim=1)
    else:
        peak = (centre > around[:, :4]).all(dim=1) & (centre >= around[:, 5:]).all(dim=1)
    if not torch.compiler.is_exporting():  # few are left, so the next steps are cheap
        channels, rows, cols, patch = channels[peak], rows[peak], cols[peak], patch[peak]
        peak = peak[peak]
    det, trace, steps = quadratic_step(patch)
    curved = trace * trace / _safe(det) <= (EDGE_THRESHOLD + 1) ** 2 / EDGE_THRESHOLD
    passed = peak & (det > 0) & curved
    values = patch[:, 1, 1]
    mean = (patch[:, 0, 1] + patch[:, 2, 1] + patch[:, 1, 0] + patch[:, 1, 2]) / 4
    passed &= (values > 0) & (1 - mean / values >= min_rise)
    cells = torch.stack([cols, rows], dim=1)
    positions = cells + steps
    limit = torch.tensor([width - 1, height - 1], device=maps.device)
    located = (steps.abs() < _LARGEST_STEP) & (positions >= 0) & (positions <= limit)
    return Detections(positions, values, cells, channels, located.all(dim=1))[passed]


def quadratic_step(patch: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """From N x 3 x 3 values around local maxima to the peaks of the quadratics through them.

    Brown and Lowe, BMVC 2002: step = -H^-1 g. Where the determinant is not positive there is no
    peak, and the step is zero. Returns the determinant (N) and the trace (N) of the Hessian, and
    the step (N x 2: columns, rows).
    """
    up, centre, down = patch[:, 0, 1], patch[:, 1, 1], patch[:, 2, 1]
    left, right = patch[:, 1, 0], patch[:, 1, 2]
    dii = up - 2 * centre + down
    djj = left - 2 * centre + right
    dij = 0.25 * (patch[:, 0, 0] - patch[:, 0, 2] - patch[:, 2, 0] + patch[:, 2, 2])
    di, dj = 0.5 * (down - up), 0.5 * (right - left)
    det = dii * djj - dij * dij
    steps = torch.stack([dij * di - dii * dj, dij * dj - djj * di], dim=1)
    return det, dii + djj, (det > 0)[:, None] * steps / _safe(det)[:, None]


def largest_around(values: Tensor, radius: int) -> Tensor:
    """The largest value within `radius` pixels along both axes, H x W to H x W.

    Shifted maxima take a twentieth of the time of `max_pool2d` on a CPU.
    """
    largest = F.pad(values, (radius,) * 4, value=-torch.inf)
    for axis in (1, 0):
        size = values.shape[axis]
        shifted = [largest.narrow(axis, shift, size) for shift in range(2 * radius + 1)]
        largest = reduce(torch.maximum, shifted)
    return largest
