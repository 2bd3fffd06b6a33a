"""Mutual nearest neighbours between the descriptors of two photos, computed in blocks.

There is no ratio test by default, because D2-Net matches best without one. (hloc's distance
threshold of 0.7 removes most of its right matches.)
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from d2net.errors import InputError
from d2net.features import Matches

_BLOCK = 4096  # rows and columns of similarities at a time: 64 MB
_GROUP = 64  # similarities whose maximum is taken together, see _update; divides _BLOCK

_UNIT_LENGTH_TOLERANCE = 0.01  # far above the rounding errors of float16 and bfloat16


@torch.no_grad()
def mutual_nearest(
    descriptors_a: Tensor, descriptors_b: Tensor, *, ratio: float | None = None
) -> Matches:
    """Match descriptors that are each other's nearest neighbour by cosine.

    Similarities are computed in float32, one block at a time, so that memory stays small for any
    number of keypoints. Ties go to the lowest index.

    Args:
        descriptors_a: N x D, unit length, of any floating-point type.
        descriptors_b: M x D, likewise, on the same device.
        ratio: Lowe's ratio in (0, 1]: keep a pair if its Euclidean distance is less than `ratio`
            times the distance to the second nearest neighbour, in both directions (as in hloc
            and glue-factory), or if there is no second neighbour.

    Returns:
        Matches in the order of the rows of `descriptors_a`, on the descriptors' device.

    Raises:
        InputError: the descriptors differ in dimension or device, are not finite or not of unit
            length, or `ratio` is out of range.
    """
    a, b = descriptors_a, descriptors_b
    check_descriptors(a, b)
    if ratio is not None and not (isinstance(ratio, float | int) and 0 < ratio <= 1):
        raise InputError(f"ratio must be a number above 0 and at most 1, not {ratio!r}")

    similarity, b_of_a, a_of_b = _nearest(a, b)
    rows = torch.arange(len(b_of_a), device=b_of_a.device)
    if len(a_of_b) == 0:
        rows = rows[:0]
    rows = rows[a_of_b[b_of_a[rows]] == rows]
    pairs = torch.stack([rows, b_of_a[rows]], dim=1)
    similarity = similarity[rows]

    if ratio is not None:
        distance = _distance(similarity)
        second_b = _distance(_second_best(a, b, pairs))
        second_a = _distance(_second_best(b, a, pairs.flip(1)))
        keep = distance < ratio * torch.minimum(second_a, second_b)
        pairs, similarity = pairs[keep], similarity[keep]
    return Matches(pairs, similarity)


def check_descriptors(a: Tensor, b: Tensor) -> None:
    """Raise an InputError unless two photos' descriptors are comparable and have unit length."""
    if not (isinstance(a, Tensor) and isinstance(b, Tensor)):
        given = f"{type(a).__name__} and {type(b).__name__}"
        raise InputError(f"descriptors must be tensors, not {given}")
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or a.device != b.device:
        raise InputError(
            f"descriptors of shapes {tuple(a.shape)} on {a.device} and {tuple(b.shape)} on "
            f"{b.device} cannot be compared; extract both photos with one network on one device"
        )
    for name, d in (("descriptors_a", a), ("descriptors_b", b)):
        length = torch.linalg.vector_norm(d.float(), dim=1)
        wrong = ~((length - 1).abs() <= _UNIT_LENGTH_TOLERANCE)  # NaN is wrong too
        if wrong.any():
            row = int(wrong.nonzero()[0])
            raise InputError(
                f"{name} must have unit length, but row {row} has length {float(length[row]):.4g}"
            )


def _similarities(a: Tensor, b: Tensor) -> Iterator[tuple[int, int, Tensor]]:
    """Blocks of a @ b.T in float32, each with its first row and column.

    Rows and columns are padded with -inf to whole groups. Each block overwrites the one before.
    """
    edges = [min(_BLOCK, len(d)) + _GROUP for d in (a, b)]
    # Allocating memory for every block would take as long as searching it.
    memory = torch.empty(edges[0] * edges[1], dtype=torch.float32, device=a.device)
    for i in range(0, len(a), _BLOCK):
        rows = _padded(a[i : i + _BLOCK])
        for j in range(0, len(b), _BLOCK):
            columns = _padded(b[j : j + _BLOCK])
            block = memory[: len(rows) * len(columns)].view(len(rows), len(columns))
            torch.mm(rows, columns.T, out=block)
            block[len(a) - i :] = -torch.inf
            block[:, len(b) - j :] = -torch.inf
            yield i, j, block


def _padded(d: Tensor) -> Tensor:
    return torch.nn.functional.pad(d.float(), (0, 0, 0, -len(d) % _GROUP))


def _nearest(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Similarity and row of b nearest to each row of a, and row of a nearest to each row of b.

    Both directions use the same similarities, so that rounding cannot make them disagree.
    """
    (best_a, b_of_a), (best_b, a_of_b) = (
        (
            torch.full((len(d),), -torch.inf, dtype=torch.float32, device=d.device),
            torch.zeros(len(d), dtype=torch.int64, device=d.device),
        )
        for d in (a, b)
    )
    for i, j, block in _similarities(a, b):
        height, width = block.shape
        groups = block.view(height, -1, _GROUP).amax(2)
        _update(block, groups, best_a[i : i + _BLOCK], b_of_a[i : i + _BLOCK], j)
        groups = block.view(-1, _GROUP, width).amax(1)  # much faster than from block.T
        _update(block.T, groups.T, best_b[j : j + _BLOCK], a_of_b[j : j + _BLOCK], i)
    return best_a, b_of_a, a_of_b


def _update(block: Tensor, groups: Tensor, best: Tensor, nearest: Tensor, start: int) -> None:
    """Update the best values and indices so far, in place, with the maxima of a block's rows.

    Torch finds maxima many times faster without their indices than with them. So `groups` holds the
    maximum of every _GROUP values, and the index is searched in one group per row only.
    """
    value, group = groups.max(1)
    better = (value[: len(best)] > best).nonzero().squeeze(1)
    first = group[better, None] * _GROUP
    members = block[better[:, None], first + torch.arange(_GROUP, device=block.device)]
    best[better] = value[better]
    nearest[better] = start + first.squeeze(1) + members.argmax(1)


def _second_best(a: Tensor, b: Tensor, pairs: Tensor) -> Tensor:
    """For each pair (i, j), the largest similarity of row i of a to any row of b except j.

    It is -inf if b has only one row.
    """
    best = torch.full((len(pairs),), -torch.inf, dtype=torch.float32, device=a.device)
    # A separate pass over the paired rows keeps the search without a ratio test fast.
    for i, j, block in _similarities(a[pairs[:, 0]], b):
        so_far = best[i : i + _BLOCK]
        partner = pairs[i : i + _BLOCK, 1] - j
        inside = ((partner >= 0) & (partner < block.shape[1])).nonzero().squeeze(1)
        block[inside, partner[inside]] = -torch.inf
        torch.maximum(so_far, block.amax(1)[: len(so_far)], out=so_far)
    return best


def _distance(similarity: Tensor) -> Tensor:
    """Euclidean distance of unit vectors with this cosine, which rounding may push beyond 1."""
    return (2 - 2 * similarity).clamp(min=0).sqrt()
