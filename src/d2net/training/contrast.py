"""The contrastive loss, which compares descriptors at corners.

The paper's loss asks a descriptor to be nearer to its partner than to the hardest negative, and
weights it by the soft scores of the deep map, so corners of the photo count for little. This loss
asks for what matching asks for: among all keypoints of the other photo, the partner must be the
most similar one, in both directions. Its likelihood is a softmax over similarities (InfoNCE: van
den Oord, Li and Vinyals, 2018; in both directions as in LoFTR: Sun et al., CVPR 2021, section 3.3).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from d2net.networks.sampling import sample_batch
from d2net.training.loss import CELLS, Correspondences, unit

TEMPERATURE = 0.05
"""Divisor of the similarities, which are cosines of descriptors."""

SAFE_DISTANCE = 8.0
"""Keypoints nearer to the partner than this are no negatives, because the maps hardly distinguish
them. Chebyshev distance in pixels."""

MIN_KEYPOINTS = 8
"""Pairs with fewer keypoints do not count: among few keypoints the partner is easy to find."""


def contrastive_loss(
    maps: Tensor, keypoints: Correspondences, *, stride: int
) -> tuple[Tensor, Tensor]:
    """The negative log-likelihood of the right matches of a batch.

    Args:
        maps: 2B x C x h x w, before the ReLU: first those of all first crops, then of all second.
        keypoints: corresponding corners of the B pairs.
        stride: stride of the maps, 8 or 4.

    Returns:
        B float32, the mean over keypoints and directions of minus the log-probability of the
        partner (0 for a pair with fewer than `MIN_KEYPOINTS`); and B bool, which pairs have enough.
    """
    pairs = len(keypoints.valid)
    cells = F.relu(maps).permute(0, 2, 3, 1).float().contiguous()
    points = torch.cat([keypoints.points_a, keypoints.points_b])
    descriptors = unit(sample_batch(cells, CELLS[stride].inverse()(points)))
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
    """Log-sum-exp of each row over its partner and all keypoints far from the partner.

    Args:
        similarity: B x K x K.
        points: B x K x 2 positions of the columns.
        valid: B x K bool.
    """
    near = (points[:, :, None] - points[:, None]).abs().amax(3) < SAFE_DISTANCE
    partner = torch.eye(points.shape[1], dtype=torch.bool, device=points.device)
    counted = (~near & valid[:, None, :]) | partner
    return similarity.masked_fill(~counted, -torch.inf).logsumexp(2)
