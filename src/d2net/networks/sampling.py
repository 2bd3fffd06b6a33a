"""Descriptors at any position of a dense map, and dense maps on another grid."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from d2net.geometry.coordinates import EXTRACTION_CELLS, SHALLOW_CELLS, AxisMap, GridMap

if TYPE_CHECKING:
    from d2net.networks.whitening import Whitening

Form = Literal["plain", "root", "fused", "whitened"]

SHALLOW_WEIGHT = 0.8
"""Length of the shallow map's part of a fused descriptor, to the deep map's 1."""

_CONTEXT = (-7 / 3, 0.0, 7 / 3)
"""Cells: samples of the deep map, three by three, that stand for the 7 x 7 cells (28 px) around."""

_SHALLOW_FROM_DEEP = SHALLOW_CELLS.inverse().after(EXTRACTION_CELLS)
_ROWS_AT_ONCE = 32


def describe(
    deep: Tensor,
    shallow: Tensor,
    positions: Tensor,
    form: Form,
    whitening: Whitening | None = None,
) -> Tensor:
    """Descriptors at any positions of the dense maps.

    plain: the deep map, L2-normalised (D2-Net, section 3). root: the square root of that,
    normalised again, so that no strong channel outvotes the others (as RootSIFT: Arandjelovic and
    Zisserman, CVPR 2012). fused: beside it the root of the shallow map, which sees less of the
    photo, and that more sharply. whitened: both and the root of the deep map's mean around the
    position, which sees more of the photo, in the few directions that tell places apart.

    Args:
        deep: h x w x C after the ReLU, any float type.
        shallow: (h + 1) x (w + 1) x C', likewise; plain and root do not look at it.
        positions: N x 2 (x, y) in cells of the deep map; beyond the frame a map goes on with its
            last cell.
        form: what to make of the samples.
        whitening: for whitened, and then it must be given.

    Returns:
        N x C float32 (fused: C + C', whitened: as many as the whitening leaves) of unit length;
        zero where the maps are zero, but for whitened.
    """
    plain = F.normalize(sample(deep, positions), dim=1)
    if form == "plain":
        return plain
    if form == "root":
        return _root(plain)
    beside = _root(F.normalize(sample(shallow, _SHALLOW_FROM_DEEP(positions)), dim=1))
    if form == "fused":
        return F.normalize(torch.cat([_root(plain), SHALLOW_WEIGHT * beside], dim=1), dim=1)
    assert whitening is not None  # noqa: S101 (the caller's promise)
    around = _root(F.normalize(sample(deep, positions, _CONTEXT), dim=1))
    both = F.normalize(torch.cat([_root(plain), beside, around], dim=1), dim=1)
    return F.normalize(whitening(both), dim=1)


def _root(plain: Tensor) -> Tensor:
    return F.normalize(plain.sqrt(), dim=1)


def sample(maps: Tensor, positions: Tensor, around: Sequence[float] = (0.0,)) -> Tensor:
    """Bilinear samples of a dense map.

    Args:
        maps: h x w x C, any float type.
        positions: N x 2 (x, y) in cells; beyond the frame the map goes on with its last cell.
        around: cells along either axis from a position; the samples at all pairs of them are added.

    Returns:
        N x C float32.
    """
    if maps.dtype == torch.float32 and not torch.compiler.is_exporting():
        return sample_batch(maps[None], positions[None], around)[0]
    total = maps.new_zeros(len(positions), maps.shape[2], dtype=torch.float32)
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

    Each sample is one weighted sum of rows of a table, which is many times faster than to gather
    the rows first, and gradients of it, too.

    Args:
        maps: B x h x w x C float32, contiguous.
        positions: B x N x 2 (x, y) in cells; beyond the frame a map goes on with its last cell.
        around: as in `sample`.

    Returns:
        B x N x C float32.
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
