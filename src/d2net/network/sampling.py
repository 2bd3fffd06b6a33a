"""Descriptors at any position of a dense map, and dense maps on another grid."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from d2net.geometry.coordinates import AxisMap, GridMap

_ROWS_AT_ONCE = 32


def describe(maps: Tensor, positions: Tensor) -> Tensor:
    """Descriptors: bilinear samples of a dense map, L2-normalised (D2-Net, section 3).

    Args:
        maps: h x w x C, any float type.
        positions: N x 2 (x, y) in cells; beyond the frame the map goes on with its last cell.

    Returns:
        N x C float32 of unit length (zero where the map is zero).
    """
    return F.normalize(sample(maps[None], positions[None])[0], dim=1)


def sample(maps: Tensor, positions: Tensor) -> Tensor:
    """Bilinear samples of a batch of dense maps, differentiable.

    Args:
        maps: B x h x w x C, any float type.
        positions: B x N x 2 (x, y) in cells; beyond the frame a map goes on with its last cell.

    Returns:
        B x N x C float32.
    """
    if positions.shape[1] == 0:
        return maps.new_empty(*positions.shape[:2], maps.shape[3], dtype=torch.float32)
    left, right, u = _neighbours(positions[..., 0], maps.shape[2])
    top, bottom, v = _neighbours(positions[..., 1], maps.shape[1])
    u, v = u[..., None], v[..., None]
    image = torch.arange(len(maps), device=maps.device)[:, None]
    upper = torch.lerp(maps[image, top, left].float(), maps[image, top, right].float(), u)
    lower = torch.lerp(maps[image, bottom, left].float(), maps[image, bottom, right].float(), u)
    return torch.lerp(upper, lower, v)


def resample(
    maps: Tensor, rows: range, cols: range, source_from_target: GridMap, out: Tensor | None = None
) -> Tensor:
    """A window of a dense map (or image) on another grid, bilinear.

    Args:
        maps: B x H x W x C, the source.
        rows: of the window of the target grid.
        cols: of the window of the target grid.
        source_from_target: where a target position (x, y) lies in the source; outside, the source
            goes on with its last row and column.
        out: B x rows x cols x C to add the result to, in place of a new tensor.

    Returns:
        B x rows x cols x C, `out` if it was given.
    """
    left, right, u = _neighbours(_along(cols, source_from_target.x, maps), maps.shape[2])
    top, bottom, v = _neighbours(_along(rows, source_from_target.y, maps), maps.shape[1])
    u, v = u.to(maps.dtype)[:, None], v.to(maps.dtype)[:, None, None]
    result = maps.new_zeros(len(maps), len(rows), len(cols), maps.shape[3]) if out is None else out
    for first in range(0, len(rows), _ROWS_AT_ONCE):  # bounds the memory of the intermediates
        part = slice(first, first + _ROWS_AT_ONCE)
        above, below = maps.index_select(1, top[part]), maps.index_select(1, bottom[part])
        band = torch.lerp(above, below, v[part])
        result[:, part] += torch.lerp(band.index_select(2, left), band.index_select(2, right), u)
    return result


def _along(window: range, axis: AxisMap, like: Tensor) -> Tensor:
    """Source coordinates of a window's rows or columns, in double precision."""
    target = torch.arange(window.start, window.stop, dtype=torch.float64, device=like.device)
    return target * axis.scale + axis.shift


def _neighbours(coordinate: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Indices of the two neighbours along an axis and the float32 weight of the second."""
    coordinate = coordinate.clamp(0, size - 1)
    first = coordinate.floor()
    weight = (coordinate - first).float()
    index = first.long()
    return index, (index + 1).clamp(max=size - 1), weight
