"""3x3 convolution by Winograd's minimal filtering F(4x4, 3x3), in plain torch operations.

Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016. An output tile of
4 x 4 takes 36 products per channel pair in place of 144. The products are 36 matrix products; the
transforms around them are sums of whole slices. This is faster on a CPU where a layer has many
channels: a direct convolution already runs at the cores' peak, so only fewer products save time.

The interpolation points are 0, +-sqrt(1/2), +-sqrt(2) and infinity. Compared with the usual 0, +-1,
+-2, they cost the same and round better (Barabasz et al., "Error Analysis and Improving the
Accuracy of Winograd Convolution for Deep Neural Networks", ACM TOMS 2020). So the products can be
computed in bfloat16, too; the transforms stay in float32.

Maps are height x width x channels here, so that a slice is a matrix of (tiles, channels).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

TILES_PER_BLOCK = 200
"""Tiles transformed and multiplied together: enough for efficient matrix products (512 x 512 by
512 x 200), few enough that the transformed block (15 MB at 512 channels) stays in cache."""

_P, _Q = 0.5**0.5, 2**0.5


def transform_weight(weight: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """G w G^T: O x I x 3 x 3 -> 36 x I x O in the precision of the products.

    Rows 2 and 3 of G are halved, and rows 4 and 5 doubled; the columns of A are scaled the other
    way round. This saves a multiplication in the output transform.
    """
    g = weight.new_tensor(
        [
            [1, 0, 0],
            [-1 / 3, -_P / 3, -1 / 6],
            [-1 / 3, _P / 3, -1 / 6],
            [1 / 3, _Q / 3, 2 / 3],
            [1 / 3, -_Q / 3, 2 / 3],
            [0, 0, 1],
        ]
    )
    outputs, inputs = weight.shape[:2]
    u = torch.einsum("ab,oibc,dc->adio", g, weight, g).reshape(36, inputs, outputs)
    return u.to(dtype).contiguous()


def _input_transform(x: Sequence[Tensor], out: Sequence[Tensor], s: Tensor, t: Tensor) -> None:
    """B^T x along one axis: six slices to six; s and t are scratch of a slice's shape."""
    a, b, c, d, e, f = x
    torch.sub(e, c, alpha=2, out=s)
    torch.sub(d, b, alpha=2, out=t)
    torch.add(s, t, alpha=_P, out=out[1])
    torch.sub(s, t, alpha=_P, out=out[2])
    torch.sub(e, c, alpha=0.5, out=s)
    torch.sub(d, b, alpha=0.5, out=t)
    torch.add(s, t, alpha=_Q, out=out[3])
    torch.sub(s, t, alpha=_Q, out=out[4])
    torch.add(a, e, out=out[0]).sub_(c, alpha=2.5)
    torch.add(b, f, out=out[5]).sub_(d, alpha=2.5)


def _output_transform(x: Sequence[Tensor], out: Sequence[Tensor], s: Tensor, t: Tensor) -> None:
    """A^T x along one axis: six slices to four; s and t are scratch of a slice's shape."""
    a, b, c, d, e, f = x
    torch.add(b, c, out=s)
    torch.add(d, e, out=t)
    torch.add(a, s, alpha=2, out=out[0]).add_(t, alpha=0.5)
    torch.add(s, t, out=out[2])
    torch.sub(b, c, out=s)
    torch.sub(d, e, out=t)
    torch.mul(s, _Q, out=out[1]).add_(t, alpha=_P)
    torch.add(f, s, alpha=_P, out=out[3]).add_(t, alpha=_Q)


def convolve(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """3x3 convolution, stride 1, padding 1, of H x W x I of any float type to H x W x O float32.

    The weight is 36 x I x O of `transform_weight`; its type is that of the products.
    """
    height, width, inputs = x.shape
    outputs = weight.shape[2]
    out = torch.empty(height, width, outputs, dtype=torch.float32)
    tile_rows, tile_cols = -(-height // 4), -(-width // 4)
    blocks = -(-tile_rows // max(1, round(TILES_PER_BLOCK / tile_cols)))
    n = -(-tile_rows // blocks)  # tile rows of a block; blocks are as equal as possible
    padded_width = 4 * tile_cols + 2

    padded = out.new_zeros(4 * n + 2, padded_width, inputs)
    rows = out.new_empty(6, n, padded_width, inputs)
    scratch = out.new_empty(2, 6 * n * max(padded_width * inputs, tile_cols * max(inputs, outputs)))
    transformed = out.new_empty(36 * n * tile_cols * inputs)
    products = out.new_empty(36 * n * tile_cols * outputs)
    columns = out.new_empty(4, 6, n, tile_cols, outputs)
    tiles = out.new_empty(n, 4, tile_cols, 4, outputs)

    def pair(*shape: int) -> tuple[Tensor, Tensor]:
        size = torch.Size(shape).numel()
        return scratch[0, :size].view(shape), scratch[1, :size].view(shape)

    for first in range(0, tile_rows, n):
        m = min(n, tile_rows - first)
        top = 4 * first - 1
        low, high = max(top, 0), min(top + 4 * m + 2, height)
        padded[: low - top].zero_()
        padded[high - top :].zero_()
        padded[low - top : high - top, 1 : width + 1] = x[low:high]

        r = rows[:, :m]
        _input_transform(
            [padded[i : i + 4 * m : 4][:m] for i in range(6)],
            list(r),
            *pair(m, padded_width, inputs),
        )
        v = transformed[: 36 * m * tile_cols * inputs].view(6, 6, m, tile_cols, inputs)
        _input_transform(
            [r[:, :, j : j + 4 * tile_cols - 3 : 4] for j in range(6)],
            [v[:, j] for j in range(6)],
            *pair(6, m, tile_cols, inputs),
        )
        p = products[: 36 * m * tile_cols * outputs].view(36, m * tile_cols, outputs)
        v = v.view(36, m * tile_cols, inputs)
        if weight.dtype == p.dtype:
            torch.bmm(v, weight, out=p)
        else:
            p.copy_(torch.bmm(v.to(weight.dtype), weight))
        c = columns[:, :, :m]
        _output_transform(
            list(p.view(6, 6, m, tile_cols, outputs)), list(c), *pair(6, m, tile_cols, outputs)
        )
        y = tiles[:m].permute(3, 1, 0, 2, 4)
        _output_transform([c[:, j] for j in range(6)], list(y), *pair(4, m, tile_cols, outputs))
        valid = min(4 * m, height - 4 * first)
        block = tiles[:m].view(4 * m, 4 * tile_cols, outputs)[:valid, :width]
        torch.add(block, bias, out=out[4 * first : 4 * first + valid])
    return out


class Convolution:
    """A 3x3 convolution that keeps its transformed weight until the weight or the dtype changes."""

    def __init__(self) -> None:
        self._kept: tuple[Tensor, Tensor] | None = None  # a weight, and its transform

    def __call__(
        self, x: Tensor, weight: Tensor, bias: Tensor, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """B x I x H x W to B x O x H x W float32, channels last; the products are in `dtype`."""
        # Values are compared, because a tensor's version number does not count changes of `.data`.
        kept = self._kept
        if kept is None or kept[1].dtype != dtype or not torch.equal(kept[0], weight):
            kept = weight.detach().clone(), transform_weight(weight.detach(), dtype)
            self._kept = kept  # assigned at once, because threads may share a model
        maps = [convolve(y.permute(1, 2, 0), kept[1], bias) for y in x]
        joined = maps[0][None] if len(maps) == 1 else torch.stack(maps)
        return joined.permute(0, 3, 1, 2)
