"""Descriptors told apart at keypoints that extraction really takes.

The paper's loss asks of a descriptor to be nearer to its partner than the hardest other one, and
weighs it by the soft scores of the deep map. Corners of the photo are no part of it. Here both are
what matching is: among all the keypoints of the other photo, the partner shall be the most similar,
in both directions. The likelihood of that is a softmax over similarities (InfoNCE: van den Oord, Li
and Vinyals, 2018; both ways, as in LoFTR: Sun et al., CVPR 2021, section 3.3).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from d2net.networks.sampling import sample_batch
from d2net.training.loss import CELLS, Correspondences, unit

TEMPERATURE = 0.05
"""By which similarities, cosines of descriptors, are divided."""

SAFE_DISTANCE = 8.0
"""In pixels (Chebyshev): keypoints nearer to the partner than that are no negatives, for the maps
hardly tell them apart."""

FEWEST = 8
"""Keypoints that a pair needs to count: among few, nothing has to be told apart."""


def contrastive_loss(
    maps: Tensor, keypoints: Correspondences, *, stride: int
) -> tuple[Tensor, Tensor]:
    """How unlikely the right matches of a batch are.

    Args:
        maps: 2B x C x h x w, before the ReLU: first those of all first crops, then of all second.
        keypoints: of the B pairs, positions in both crops.
        stride: of the maps, 8 or 4.

    Returns:
        B float32, the mean over the keypoints of minus the logarithm of the probability of the
        partner, of both directions (0 for a pair with fewer than `FEWEST`); and B bool, which pairs
        have enough.
    """
    pairs = len(keypoints.valid)
    cells = F.relu(maps).permute(0, 2, 3, 1).float().contiguous()
    points = torch.cat([keypoints.points_a, keypoints.points_b])
    descriptors = unit(sample_batch(cells, CELLS[stride].inverse()(points)))
    similarity = descriptors[:pairs] @ descriptors[pairs:].mT / TEMPERATURE
    right = similarity.diagonal(dim1=1, dim2=2)
    loss = (
        _total(similarity, keypoints.points_b, keypoints.valid)
        + _total(similarity.mT, keypoints.points_a, keypoints.valid)
    ) / 2 - right
    count = keypoints.valid.sum(1)
    usable = count >= FEWEST
    return (loss * keypoints.valid).sum(1) * usable / count.clamp_min(1), usable


def _total(similarity: Tensor, points: Tensor, valid: Tensor) -> Tensor:
    """Logarithm of the sum over what each row may be matched with: its partner and all far from it.

    Args:
        similarity: B x K x K.
        points: B x K x 2, where the columns lie.
        valid: B x K.
    """
    near = (points[:, :, None] - points[:, None]).abs().amax(3) < SAFE_DISTANCE
    itself = torch.eye(points.shape[1], dtype=torch.bool, device=points.device)
    apart = (~near & valid[:, None, :]) | itself
    return similarity.masked_fill(~apart, -torch.inf).logsumexp(2)
