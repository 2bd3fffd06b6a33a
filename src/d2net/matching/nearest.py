"""Mutual nearest neighbours between the descriptors of two photos, in blocks.

No ratio test by default: D2-Net is the one local feature that matches best without (a distance
threshold of 0.7, which hloc applies to it, ruins it).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from d2net.errors import InputError
from d2net.features import Matches

_BLOCK_CPU = 1024  # 1024 x 1024 similarities (4 MB) stay in cache while they are searched
_BLOCK_GPU = 4096  # more work per launch, and still only 64 MB

_UNIT_LENGTH_TOLERANCE = 0.01  # far above what rounding to float16 or bfloat16 does to a length


@torch.no_grad()
def mutual_nearest(
    descriptors_a: Tensor,
    descriptors_b: Tensor,
    *,
    ratio: float | None = None,
    min_similarity: float | None = None,
) -> Matches:
    """The pairs that are each other's nearest neighbour by the cosine of their descriptors.

    Similarities are computed in float32 whatever the descriptors' precision, one block at a time,
    so memory stays small for any number of keypoints. Of neighbours equally near (as rounded) the
    one with the lowest index is taken.

    Args:
        descriptors_a: N x D, unit length, of any floating-point type.
        descriptors_b: M x D likewise, on the same device.
        ratio: Lowe's ratio in (0, 1]: a pair stays if its Euclidean distance is less than `ratio`
            times the distance to the second nearest neighbour, in both directions (as in hloc
            and glue-factory). Where there is no second neighbour, it stays.
        min_similarity: only pairs whose cosine is at least this stay, in [-1, 1].

    Returns:
        Matches in the order of the rows of `descriptors_a`, on the descriptors' device.

    Raises:
        InputError: for descriptors that do not fit together, are not finite or not of unit
            length, and for a ratio or similarity out of range.
    """
    _check_descriptors(descriptors_a, descriptors_b)
    if ratio is not None and not 0 < ratio <= 1:
        raise InputError(f"ratio must be above 0 and at most 1, not {ratio}")
    if min_similarity is not None and not -1 <= min_similarity <= 1:
        raise InputError(f"min_similarity is a cosine between -1 and 1, not {min_similarity}")

    similarity, b_of_a, a_of_b = _nearest(descriptors_a, descriptors_b)
    rows = torch.arange(len(b_of_a), device=b_of_a.device)
    if len(a_of_b) == 0:
        rows = rows[:0]
    rows = rows[a_of_b[b_of_a[rows]] == rows]
    pairs = torch.stack([rows, b_of_a[rows]], dim=1)
    similarity = similarity[rows]

    keep = torch.ones_like(similarity, dtype=torch.bool)
    if min_similarity is not None:
        keep &= similarity >= min_similarity
    if ratio is not None:
        distance = _distance(similarity)
        second_b = _distance(_second_best(descriptors_a, descriptors_b, pairs))
        second_a = _distance(_second_best(descriptors_b, descriptors_a, pairs.flip(1)))
        keep &= distance < ratio * torch.minimum(second_a, second_b)
    return Matches(pairs[keep], similarity[keep])


def _check_descriptors(a: Tensor, b: Tensor) -> None:
    for name, d in (("descriptors_a", a), ("descriptors_b", b)):
        if d.ndim != 2 or not d.is_floating_point():
            raise InputError(
                f"{name} must be floating-point of shape (N, D), not {d.dtype} of shape "
                f"{tuple(d.shape)}"
            )
    if a.shape[1] != b.shape[1]:
        raise InputError(
            f"descriptors of {a.shape[1]} and of {b.shape[1]} dimensions cannot be compared; "
            "extract both photos with the same network"
        )
    if a.device != b.device:
        raise InputError(
            f"descriptors_a is on {a.device} and descriptors_b on {b.device}; move both to one "
            "device first"
        )
    for name, d in (("descriptors_a", a), ("descriptors_b", b)):
        length = torch.linalg.vector_norm(d, dim=1, dtype=torch.float32)
        wrong = ~((length - 1).abs() <= _UNIT_LENGTH_TOLERANCE)  # NaN is wrong too
        if wrong.any():
            row = int(wrong.nonzero()[0])
            raise InputError(
                f"{name} must have unit length, but row {row} has length {float(length[row]):.4g}"
            )


def _blocks(d: Tensor) -> Iterator[tuple[int, Tensor]]:
    """The rows of `d` in float32, some at a time, each with the index of its first row."""
    size = _BLOCK_CPU if d.device.type == "cpu" else _BLOCK_GPU
    for start in range(0, len(d), size):
        yield start, d[start : start + size].float()


def _nearest(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Similarity and row of b nearest to each row of a, and row of a nearest to each of b.

    Both directions read the same similarities, so that rounding cannot make them disagree.
    """
    best_a, b_of_a = _nothing_yet(a)
    best_b, a_of_b = _nothing_yet(b)
    for i, rows in _blocks(a):
        for j, columns in _blocks(b):
            similarity = rows @ columns.T
            in_a, in_b = slice(i, i + len(rows)), slice(j, j + len(columns))
            _improve(similarity, 1, best_a[in_a], b_of_a[in_a], j)
            _improve(similarity, 0, best_b[in_b], a_of_b[in_b], i)
    return best_a, b_of_a, a_of_b


def _nothing_yet(d: Tensor) -> tuple[Tensor, Tensor]:
    best = torch.full((len(d),), -torch.inf, device=d.device)
    return best, torch.zeros(len(d), dtype=torch.int64, device=d.device)


def _improve(similarity: Tensor, dim: int, best: Tensor, nearest: Tensor, start: int) -> None:
    """Update the best value and index so far (in place) by the maxima of a block along `dim`.

    Maxima without indices are many times faster than with, so indices are looked up only where
    the block beats all earlier ones; that gets rare as blocks go by.
    """
    value = similarity.amax(dim)
    better = (value > best).nonzero().squeeze(1)
    best[better] = value[better]
    nearest[better] = similarity.index_select(1 - dim, better).argmax(dim) + start


def _second_best(a: Tensor, b: Tensor, pairs: Tensor) -> Tensor:
    """For each pair (i, j) the largest similarity of a's row i to any row of b but j.

    -inf where b has one row only.
    """
    best = torch.full((len(pairs),), -torch.inf, device=a.device)
    # Only the rows in pairs are asked for: doing this apart keeps the plain search fast.
    for i, rows in _blocks(a[pairs[:, 0]]):
        block = slice(i, i + len(rows))
        for j, columns in _blocks(b):
            similarity = rows @ columns.T
            partner = pairs[block, 1] - j
            inside = ((partner >= 0) & (partner < len(columns))).nonzero().squeeze(1)
            similarity[inside, partner[inside]] = -torch.inf
            best[block] = torch.maximum(best[block], similarity.amax(1))
    return best


def _distance(similarity: Tensor) -> Tensor:
    """Euclidean distance of unit vectors with this cosine; rounding may push that beyond 1."""
    return (2 - 2 * similarity).clamp(min=0).sqrt()
