"""Fine-tuning of the network light on pairs of photos with correspondences.

The network learns to match the crops of a pair. It must also reproduce the descriptors and scores
of its starting weights, so that it does not get worse on other photos.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from d2net.errors import InputError
from d2net.extraction.d2net import D2Net
from d2net.networks.light import Light
from d2net.networks.weights import load_network, save_weights
from d2net.training.alarms import COLLAPSE
from d2net.training.batches import PairBatch, PairBatches, collate, training_part
from d2net.training.distillation import contrast, contrast_of_pair, near_points
from d2net.training.objective import FeatureObjective, mean_over_processes
from d2net.training.settings import FineTuningSettings
from d2net.training.sources.base import TrainingPair
from d2net.training.state import TrainingState

_DESCRIPTORS, _SCORE = 2.0, 10.0  # weights of the terms
_SCALE = 33.0  # factor of the cosines in the softmax


class FineTuningObjective(FeatureObjective):
    """All weights of the network light; its batch normalisation, if it has any, stays fixed."""

    settings: FineTuningSettings
    network: Light
    alarms = (COLLAPSE,)

    def __init__(self, settings: FineTuningSettings, data: Path) -> None:
        super().__init__(settings, data)
        network, self.start = load_network(settings.start)
        if not isinstance(network, Light):
            raise InputError(f"{settings.start} are not weights of the network light")
        self.network = network.float().eval().requires_grad_(True)
        self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._before = self.network.for_inference().requires_grad_(False)

    def dataset(self, rank: int, processes: int) -> PairBatches[TrainingPair]:
        """See `Objective.dataset`."""
        make_batch = partial(collate, most=self.settings.points)
        open_one = training_part(self.settings, self.data)
        return PairBatches(self.settings, open_one, make_batch, rank, processes)

    def forward(self, batch: PairBatch) -> tuple[Tensor, dict[str, float]]:
        """The weighted sum of the losses.

        - between: contrastive, the descriptors of one crop against those of the other;
        - descriptors: distance of each descriptor from that of the starting weights, 1 - cosine;
        - score: KL divergence of each cell's score distribution from that of the starting weights.
        """
        points_a, points_b, valid = batch.correspondences
        images, points = batch.images.float(), torch.cat([points_a, points_b])
        both = torch.cat([valid, valid])
        (now, score), (before, score_before) = (
            self._describe(network, images, points) for network in (self.network, self._before)
        )
        a, b = (part[valid] for part in now.chunk(2))
        near = near_points(points_a, valid) | near_points(points_b, valid)
        between = contrast(a @ b.T * _SCALE, near)
        distance = 1 - (now * before).sum(-1)[both]
        divergence = (score_before.exp() * (score_before - score)).sum(1)
        terms = {
            "between": mean_over_processes(between) / 2,
            "descriptors": mean_over_processes(distance),
            "score": mean_over_processes(divergence.flatten()),
        }
        loss = terms["between"] + _DESCRIPTORS * terms["descriptors"] + _SCORE * terms["score"]
        figures = {name: float(value.detach()) for name, value in terms.items()}
        figures["similarity"] = float(a.detach().mean(0).square().sum())
        return loss, figures

    def _describe(self, network: Light, images: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        """Descriptors at points, and logarithms of the probability of each place in each cell."""
        maps = network.compute_maps(images, getattr(torch, self.settings.precision))
        score = network.score_head.log_probability(maps[3].float())
        return network.describe_batch(maps, points), score

    def pair_loss(self, pair: TrainingPair) -> float:
        """The loss between the crops of a validation pair, at its correspondences."""
        return contrast_of_pair(self.network, pair, _SCALE)

    def model(self) -> D2Net:
        """See `FeatureObjective.model`."""
        return D2Net(self.network.for_inference())

    def save(self, path: Path, state: TrainingState) -> None:
        """See `Objective.save`."""
        made_of = f"{self.start['name']}, fine-tuned"
        save_weights(path, self.network, self.header(path, state, made_of))
