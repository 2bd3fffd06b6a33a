"""The losses: the paper's, which trains detection and description together, and a contrastive one.

Dusmanu et al., CVPR 2019, section 4.1 (equations 8 to 12), as the 2019 release computes it: every
correspondence forms a triplet with its hardest negative, weighted by the soft detection scores of
both ends, so that the network learns not to detect points that are hard to match.

All pairs of a batch are computed together, padded to the longest list of correspondences. The
hardest negatives are searched without a graph, in blocks of bounded size. Only the distances to
these negatives are differentiated, which gives the gradient of the minimum.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from d2net.errors import InputError
from d2net.geometry.coordinates import TRAINING_CELLS
from d2net.networks.detection import soft_scores
from d2net.networks.sampling import sample_batch

MARGIN = 1.0
"""Squared distance by which a negative must be further away than the positive (section 4.1)."""

SAFE_RADIUS = 32
"""Cells within this Chebyshev distance in pixels of the true position are no negatives: 4 cells at
stride 8 (section 4.1)."""

TEMPERATURE = 0.05  # divisor of the similarities, which are cosines of descriptors

SAFE_DISTANCE = 8.0
"""Keypoints within this Chebyshev distance in pixels of the partner are no negatives, because the
maps hardly distinguish them."""

MIN_KEYPOINTS = 8
"""Pairs with fewer keypoints do not count: among few keypoints the partner is easy to find."""

Sampling = Literal["cells", "bilinear"]

_BLOCK = 1 << 23  # similarities that are searched at a time: 32 MB


class PaddedCorrespondences(NamedTuple):
    """Correspondences of the pairs of a batch, padded to one length.

    Attributes:
        points_a: B x K x 2 (x, y) in pixels of the first crops, pixel centres at integers.
        points_b: B x K x 2, their partners in the second crops.
        valid: B x K bool, False where the row is padding.
    """

    points_a: Tensor
    points_b: Tensor
    valid: Tensor


@dataclass(frozen=True, eq=False)
class Loss:
    """The loss of a batch and its statistics; only `per_pair` has a graph.

    Attributes:
        per_pair: B, the loss of each pair; 0 if it is not usable.
        usable: B bool, whether any correspondence of the pair has a detection score above 0.
        inactive: 2B, share of the cells of each crop whose channels are all zero.
        peak: 2B, largest share of a crop's score in one cell.
        similarity: 2B, mean cosine between descriptors of different cells; near 1 if collapsed.
    """

    per_pair: Tensor
    usable: Tensor
    inactive: Tensor
    peak: Tensor
    similarity: Tensor

    def mean(self) -> Tensor:
        """Mean over the usable pairs; 0, with a zero gradient, if none is usable."""
        return self.per_pair.sum() / self.usable.sum().clamp_min(1)


def matching_loss(
    maps: Tensor, correspondences: PaddedCorrespondences, *, sampling: Sampling = "cells"
) -> Loss:
    """The loss of a batch of B pairs.

    The maps are 2B x C x h x w at stride 8 before the ReLU, those of all first crops, then those of
    all second crops. Hardest negatives are searched in their precision; everything else is computed
    in float32. The sampling "cells" takes descriptors and scores of the nearest cell, as the
    release does; "bilinear" interpolates both at the point itself.
    """
    pairs = len(correspondences.valid)
    if len(maps) != 2 * pairs:
        raise InputError(f"{pairs} pairs need {2 * pairs} maps, not {len(maps)}")
    valid = correspondences.valid
    # channels last, as convolutions return them, so that each cell is a row
    cells = maps.permute(0, 2, 3, 1).float().contiguous()
    scores = soft_scores(cells.permute(0, 3, 1, 2))

    from_pixels = TRAINING_CELLS.inverse()
    positions = from_pixels(torch.cat([correspondences.points_a, correspondences.points_b]).float())
    if sampling == "cells":
        positions = positions.round()
    descriptors = unit(sample_batch(cells, positions))
    weights = sample_batch(scores[..., None], positions)[..., 0]
    weight = weights[:pairs] * weights[pairs:] * valid

    positive = 2 - 2 * (descriptors[:pairs] * descriptors[pairs:]).sum(2)
    # The negatives of a descriptor are in the other image, away from its partner.
    other, partners = _swapped(cells), _swapped(positions)
    with torch.no_grad():
        dense = unit(cells.flatten(1, 2)).to(maps.dtype)
        index, found = _hardest_negatives(
            descriptors.to(maps.dtype), _swapped(dense), partners, maps.shape[3]
        )
    first = torch.arange(2 * pairs, device=maps.device)[:, None] * dense.shape[1]
    nearest = unit(F.embedding(first + index, other.view(-1, maps.shape[1])))
    distance = 2 - 2 * (descriptors * nearest).sum(2)
    # In a crop so small that all cells are near there is no negative.
    distance = distance.masked_fill(~found, torch.inf)
    negative = torch.minimum(distance[:pairs], distance[pairs:])
    rank = (MARGIN + positive - negative).clamp_min(0)

    total = weight.sum(1)
    usable = total > 0
    per_pair = (weight * rank).sum(1) / torch.where(usable, total, 1)
    with torch.no_grad():
        # mean cosine between different cells of each image, from the length of the sum of all
        count = dense.shape[1]
        square = dense.sum(1, dtype=torch.float32).square().sum(1)
        lengths = torch.linalg.vector_norm(dense, dim=2, dtype=torch.float32).square().sum(1)
        return Loss(
            per_pair=per_pair,
            usable=usable,
            inactive=(cells.amax(3) <= 0).float().mean((1, 2)),
            peak=scores.amax((1, 2)),
            similarity=(square - lengths) / max(1, count * (count - 1)),
        )


def unit(vectors: Tensor) -> Tensor:
    """Normalise along the last dimension; a zero vector stays zero, with a finite gradient."""
    length = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    return vectors / torch.where(length > 0, length, 1)


def _swapped(images: Tensor) -> Tensor:
    return torch.cat(images.chunk(2)[::-1])


def _hardest_negatives(
    descriptors: Tensor, dense: Tensor, partners: Tensor, width: int
) -> tuple[Tensor, Tensor]:
    """Find for each descriptor the most similar one of the other image beyond the safe radius.

    Returns:
        B x K int64, the cell; and B x K bool, whether there is one.
    """
    batch, count, _ = descriptors.shape
    cells = dense.shape[1]
    index = torch.empty(batch, count, dtype=torch.int64, device=dense.device)
    found = torch.empty(batch, count, dtype=torch.bool, device=dense.device)
    columns = torch.arange(width, device=dense.device)
    rows = torch.arange(cells // width, device=dense.device)
    step = max(1, _BLOCK // (batch * cells))
    for first in range(0, count, step):
        part = slice(first, first + step)
        similarity = descriptors[:, part] @ dense.mT
        near_x = (partners[:, part, 0, None] - columns).abs() <= SAFE_RADIUS / 8
        near_y = (partners[:, part, 1, None] - rows).abs() <= SAFE_RADIUS / 8
        near = near_y[..., :, None] & near_x[..., None, :]
        best = similarity.masked_fill_(near.flatten(2), -torch.inf).max(2)
        index[:, part], found[:, part] = best.indices, best.values > -torch.inf
    return index, found


def contrastive_loss(maps: Tensor, keypoints: PaddedCorrespondences) -> tuple[Tensor, Tensor]:
    """The contrastive loss: the negative log-likelihood of the right matches of a batch.

    The paper's loss asks a descriptor to be nearer to its partner than to the hardest negative, and
    weights it by the soft scores of the deep map, so corners of the photo count for little. This
    loss asks for the same as matching: among all keypoints of the other photo, the partner must be
    the most similar one, in both directions. Its likelihood is a softmax over similarities
    (InfoNCE: van den Oord et al., 2018; in both directions as in LoFTR, section 3.3).

    `maps` are those of `matching_loss`, and `keypoints` corresponding corners of the B pairs.

    Returns:
        B float32, the mean over keypoints and directions of minus the log-probability of the
        partner (0 for a pair with fewer than `MIN_KEYPOINTS`); and B bool, which pairs have enough.
    """
    pairs = len(keypoints.valid)
    cells = F.relu(maps).permute(0, 2, 3, 1).float().contiguous()
    points = torch.cat([keypoints.points_a, keypoints.points_b])
    descriptors = unit(sample_batch(cells, TRAINING_CELLS.inverse()(points)))
    similarity = descriptors[:pairs] @ descriptors[pairs:].mT / TEMPERATURE
    right = similarity.diagonal(dim1=1, dim2=2)
    loss = (
        _log_sum(similarity, keypoints.points_b, keypoints.valid)
        + _log_sum(similarity.mT, keypoints.points_a, keypoints.valid)
    ) / 2 - right
    count = keypoints.valid.sum(1)
    usable = count >= MIN_KEYPOINTS
    return (loss * keypoints.valid).sum(1) * usable / count.clamp_min(1), usable


def _log_sum(similarity: Tensor, points: Tensor, valid: Tensor) -> Tensor:
    """Log-sum-exp of each row over its partner and all keypoints far from the partner."""
    near = (points[:, :, None] - points[:, None]).abs().amax(3) < SAFE_DISTANCE
    partner = torch.eye(points.shape[1], dtype=torch.bool, device=points.device)
    counted = (~near & valid[:, None, :]) | partner
    return similarity.masked_fill(~counted, -torch.inf).logsumexp(2)
