"""Bilinear sampling of dense maps: at points, and on another grid."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from d2net.geometry.coordinates import AxisMap, GridMap

_ROWS_AT_ONCE = 32


def sample(maps: Tensor, positions: Tensor, around: Sequence[float] = (0.0,)) -> Tensor:
    """Bilinear samples, N x C float32, of a dense map, h x w x C of any float type.

    Positions are N x 2 (x, y) in cells; those outside the map are moved to its border. The samples
    at all pairs (dx, dy) of the offsets `around`, in cells, are added.
    """
    if maps.dtype == torch.float32 and not torch.compiler.is_exporting():
        return sample_batch(maps[None], positions[None], around)[0]
    total = maps.new_zeros(positions.shape[0], maps.shape[2], dtype=torch.float32)
    for dy in around:
        for dx in around:
            left, right, u = _neighbours(positions[:, 0] + dx, maps.shape[1])
            top, bottom, v = _neighbours(positions[:, 1] + dy, maps.shape[0])
            u, v = u[:, None], v[:, None]
            upper = torch.lerp(maps[top, left].float(), maps[top, right].float(), u)
            lower = torch.lerp(maps[bottom, left].float(), maps[bottom, right].float(), u)
            total += torch.lerp(upper, lower, v)
    return total


def sample_batch(maps: Tensor, positions: Tensor, around: Sequence[float] = (0.0,)) -> Tensor:
    """`sample` of a batch of dense maps, differentiable with respect to the maps.

    A sample is one weighted sum of rows of a table. Forward and backward, that is many times faster
    than gathering the rows first. From contiguous B x h x w x C float32 and B x N x 2: B x N x C.
    """
    batch, height, width, channels = maps.shape
    offsets = positions.new_tensor(around)
    left, right, u = _neighbours(positions[..., :1] + offsets, width)
    top, bottom, v = _neighbours(positions[..., 1:] + offsets, height)
    cols, across = torch.cat([left, right], dim=2), torch.cat([1 - u, u], dim=2)
    rows, down = torch.cat([top, bottom], dim=2), torch.cat([1 - v, v], dim=2)
    rows = rows + torch.arange(batch, device=maps.device)[:, None, None] * height
    cells = rows[..., :, None] * width + cols[..., None, :]
    shares = down[..., :, None] * across[..., None, :]
    sums = F.embedding_bag(
        cells.flatten(2).flatten(0, 1),
        maps.reshape(-1, channels),
        per_sample_weights=shares.flatten(2).flatten(0, 1),
        mode="sum",
    )
    return sums.view(batch, -1, channels)


def resample(
    maps: Tensor, rows: range, cols: range, source_from_target: GridMap, out: Tensor | None = None
) -> Tensor:
    """A window of dense maps or images, B x H x W x C, on another grid, bilinear.

    `rows` and `cols` are those of the window on the target grid. Positions outside the source are
    moved to its border. The result, B x rows x cols x C, is added to `out` if that is given.
    """
    x, y = _along(cols, source_from_target.x), _along(rows, source_from_target.y)
    left, right, u = (part.to(maps.device) for part in _neighbours(x, maps.shape[2]))
    top, bottom, v = (part.to(maps.device) for part in _neighbours(y, maps.shape[1]))
    u, v = u.to(maps.dtype)[:, None], v.to(maps.dtype)[:, None, None]
    result = maps.new_zeros(len(maps), len(rows), len(cols), maps.shape[3]) if out is None else out
    for first in range(0, len(rows), _ROWS_AT_ONCE):  # bounds the memory of the intermediates
        part = slice(first, first + _ROWS_AT_ONCE)
        above, below = maps.index_select(1, top[part]), maps.index_select(1, bottom[part])
        band = torch.lerp(above, below, v[part])
        result[:, part] += torch.lerp(band.index_select(2, left), band.index_select(2, right), u)
    return result


def _along(window: range, axis: AxisMap) -> Tensor:
    """Source coordinates of a window's rows or columns, in double precision, which MPS lacks."""
    target = torch.arange(window.start, window.stop, dtype=torch.float64)
    return target * axis.scale + axis.shift


def _neighbours(coordinate: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Indices of the two neighbours along an axis and the float32 weight of the second."""
    coordinate = coordinate.clamp(0, size - 1)
    first = coordinate.floor()
    weight = (coordinate - first).float()
    index = first.long()
    return index, (index + 1).clamp(max=size - 1), weight
