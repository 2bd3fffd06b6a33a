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

_BLOCK = 4096  # rows and columns of similarities at a time: 64 MB
_GROUP = 64  # similarities searched together, see _improve; divides _BLOCK

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


def _similarities(a: Tensor, b: Tensor) -> Iterator[tuple[int, int, Tensor]]:
    """Blocks of a @ b.T in float32, each with its first row and column.

    Rows and columns are filled up with -inf to whole groups. The next block overwrites the last.
    """
    edges = [min(_BLOCK, len(d)) + _GROUP for d in (a, b)]
    # Fresh memory for every block would cost as much time as searching it.
    memory = torch.empty(edges[0] * edges[1], dtype=torch.float32, device=a.device)
    for i in range(0, len(a), _BLOCK):
        rows = _whole_groups(a[i : i + _BLOCK])
        for j in range(0, len(b), _BLOCK):
            columns = _whole_groups(b[j : j + _BLOCK])
            block = memory[: len(rows) * len(columns)].view(len(rows), len(columns))
            torch.mm(rows, columns.T, out=block)
            block[len(a) - i :] = -torch.inf
            block[:, len(b) - j :] = -torch.inf
            yield i, j, block


def _whole_groups(d: Tensor) -> Tensor:
    return torch.nn.functional.pad(d.float(), (0, 0, 0, -len(d) % _GROUP))


def _nearest(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Similarity and row of b nearest to each row of a, and row of a nearest to each of b.

    Both directions read the same similarities, so that rounding cannot make them disagree.
    """
    best_a, b_of_a = _nothing_yet(a)
    best_b, a_of_b = _nothing_yet(b)
    for i, j, block in _similarities(a, b):
        height, width = block.shape
        groups = block.view(height, -1, _GROUP).amax(2)
        _improve(block, groups, best_a[i : i + _BLOCK], b_of_a[i : i + _BLOCK], j)
        groups = block.view(-1, _GROUP, width).amax(1)  # much faster than from block.T
        _improve(block.T, groups.T, best_b[j : j + _BLOCK], a_of_b[j : j + _BLOCK], i)
    return best_a, b_of_a, a_of_b


def _nothing_yet(d: Tensor) -> tuple[Tensor, Tensor]:
    best = torch.full((len(d),), -torch.inf, dtype=torch.float32, device=d.device)
    return best, torch.zeros(len(d), dtype=torch.int64, device=d.device)


def _improve(block: Tensor, groups: Tensor, best: Tensor, nearest: Tensor, start: int) -> None:
    """Update the best value and index so far (in place) by the maxima of a block's rows.

    Torch finds maxima many times faster without their indices than with, so `groups` holds the
    maximum of every _GROUP values, and indices are looked up in one group per row.
    """
    value, group = groups.max(1)
    better = (value[: len(best)] > best).nonzero().squeeze(1)
    first = group[better, None] * _GROUP
    members = block[better[:, None], first + torch.arange(_GROUP, device=block.device)]
    best[better] = value[better]
    nearest[better] = start + first.squeeze(1) + members.argmax(1)


def _second_best(a: Tensor, b: Tensor, pairs: Tensor) -> Tensor:
    """For each pair (i, j) the largest similarity of a's row i to any row of b but j.

    -inf where b has one row only.
    """
    best = torch.full((len(pairs),), -torch.inf, dtype=torch.float32, device=a.device)
    # Only the rows in pairs are asked for: doing this apart keeps the plain search fast.
    for i, j, block in _similarities(a[pairs[:, 0]], b):
        so_far = best[i : i + _BLOCK]
        partner = pairs[i : i + _BLOCK, 1] - j
        inside = ((partner >= 0) & (partner < block.shape[1])).nonzero().squeeze(1)
        block[inside, partner[inside]] = -torch.inf
        torch.maximum(so_far, block.amax(1)[: len(so_far)], out=so_far)
    return best


def _distance(similarity: Tensor) -> Tensor:
    """Euclidean distance of unit vectors with this cosine; rounding may push that beyond 1."""
    return (2 - 2 * similarity).clamp(min=0).sqrt()
