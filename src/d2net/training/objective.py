"""What a step descends: the paper's loss, and the contrastive one if the settings want it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from d2net.training.batches import Batch
from d2net.training.contrast import contrastive_loss
from d2net.training.loss import Loss, matching_loss, mean_of_usable
from d2net.training.settings import TrainingSettings


@dataclass(frozen=True, eq=False)
class Objective:
    """The sum, and what it is made of.

    Attributes:
        total: differentiable, without the term of `retention`.
        matching: the paper's loss.
        contrast: the contrastive loss, None where it is off.
    """

    total: Tensor
    matching: Loss
    contrast: Tensor | None


def objective(
    maps: Tensor,
    batch: Batch,
    settings: TrainingSettings,
    mean: Callable[[Tensor, Tensor], Tensor] = mean_of_usable,
) -> Objective:
    """The objective of a batch.

    Args:
        maps: 2B x C x h x w, before the ReLU.
        batch: the pairs.
        settings: of the run.
        mean: of B losses over the usable of B pairs; other where processes share a batch.
    """
    loss = matching_loss(
        maps, batch.correspondences, sampling=settings.sampling, stride=settings.stride
    )
    total = mean(loss.per_pair, loss.usable)
    if batch.corners is None:
        return Objective(total, loss, None)
    contrast = mean(*contrastive_loss(maps, batch.corners, stride=settings.stride))
    return Objective(total + settings.contrast * contrast, loss, contrast)
