"""Descriptors at any position of a dense map, and dense maps on another grid."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from d2net.geometry.coordinates import EXTRACTION_CELLS, SHALLOW_CELLS, AxisMap, GridMap

Form = Literal["plain", "root", "fused"]

SHALLOW_WEIGHT = 0.8
"""Length of the shallow map's part of a fused descriptor, to the deep map's 1."""

_SHALLOW_FROM_DEEP = SHALLOW_CELLS.inverse().after(EXTRACTION_CELLS)
_ROWS_AT_ONCE = 32


def describe(deep: Tensor, shallow: Tensor, positions: Tensor, form: Form) -> Tensor:
    """Descriptors at any positions of the dense maps.

    plain: the deep map, L2-normalised (D2-Net, section 3). root: the square root of that,
    normalised again, so that no strong channel outvotes the others (as RootSIFT: Arandjelovic and
    Zisserman, CVPR 2012). fused: beside it the root of the shallow map, which sees less of the
    photo, and that more sharply.

    Args:
        deep: h x w x C after the ReLU, any float type.
        shallow: (h + 1) x (w + 1) x C', likewise; only fused looks at it.
        positions: N x 2 (x, y) in cells of the deep map; beyond the frame a map goes on with its
            last cell.
        form: what to make of the samples.

    Returns:
        N x C (fused: C + C') float32 of unit length (zero where the maps are zero).
    """
    plain = F.normalize(sample(deep, positions), dim=1)
    if form == "plain":
        return plain
    if form == "root":
        return _root(plain)
    beside = _root(F.normalize(sample(shallow, _SHALLOW_FROM_DEEP(positions)), dim=1))
    return F.normalize(torch.cat([_root(plain), SHALLOW_WEIGHT * beside], dim=1), dim=1)


def _root(plain: Tensor) -> Tensor:
    return F.normalize(plain.sqrt(), dim=1)


def sample(maps: Tensor, positions: Tensor) -> Tensor:
    """Bilinear samples of a dense map.

    Args:
        maps: h x w x C, any float type.
        positions: N x 2 (x, y) in cells; beyond the frame the map goes on with its last cell.

    Returns:
        N x C float32.
    """
    left, right, u = _neighbours(positions[:, 0], maps.shape[1])
    top, bottom, v = _neighbours(positions[:, 1], maps.shape[0])
    u, v = u[:, None], v[:, None]
    upper = torch.lerp(maps[top, left].float(), maps[top, right].float(), u)
    lower = torch.lerp(maps[bottom, left].float(), maps[bottom, right].float(), u)
    return torch.lerp(upper, lower, v)


def sample_batch(maps: Tensor, positions: Tensor) -> Tensor:
    """Bilinear samples of a batch of dense maps, differentiable with respect to the maps.

    For training, where samples are as many as cells and gradients cost more than samples: each is
    one weighted sum of four rows of a table.

    Args:
        maps: B x h x w x C float32, contiguous.
        positions: B x N x 2 (x, y) in cells; beyond the frame a map goes on with its last cell.

    Returns:
        B x N x C float32.
    """
    batch, height, width, channels = maps.shape
    left, right, u = _neighbours(positions[..., 0], width)
    top, bottom, v = _neighbours(positions[..., 1], height)
    first = torch.arange(batch, device=maps.device)[:, None] * height
    rows = torch.stack([first + top, first + top, first + bottom, first + bottom], dim=2) * width
    cells = rows + torch.stack([left, right, left, right], dim=2)
    shares = torch.stack([(1 - u) * (1 - v), u * (1 - v), (1 - u) * v, u * v], dim=2)
    table = maps.reshape(-1, channels)
    sums = F.embedding_bag(
        cells.reshape(-1, 4), table, per_sample_weights=shares.reshape(-1, 4), mode="sum"
    )
    return sums.view(batch, -1, channels)


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
