"""Supervised training: pairs with correspondences, and the loss of the paper."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from d2net.errors import InputError, TrainingError
from d2net.extraction.d2net import D2Net
from d2net.networks.vgg import VGG
from d2net.networks.vgg_backbone import VGGBackbone
from d2net.networks.weights import load_network, load_weights, save_weights
from d2net.progress import Progress
from d2net.settings import ExtractionSettings
from d2net.training.alarms import COLLAPSE, WINDOW, Alarm
from d2net.training.batches import Mixture, PairBatch, PairBatches, collate, training_part
from d2net.training.loss import PaddedCorrespondences, contrastive_loss, matching_loss
from d2net.training.objective import FeatureObjective, mean_over_processes
from d2net.training.settings import TrainingSettings
from d2net.training.sources.base import TrainingPair, pair_generator
from d2net.training.state import TrainingState
from d2net.training.whitening import learn_whitening

_ALARMS = (
    Alarm(
        "usable",
        lambda share: share == 0,
        f"no pair of the last {WINDOW} steps has a correspondence with a detection score, so "
        "nothing is learned: look at the pairs with `d2net data check`",
        ends_run=True,
    ),
    COLLAPSE,
    Alarm(
        "usable",
        lambda share: share < 0.5,
        f"only {{value:.0%}} of the pairs of the last {WINDOW} steps have a correspondence with a "
        "detection score: look at them with `d2net data check`",
    ),
    Alarm(
        "inactive",
        lambda share: share > 0.5,
        "in {value:.0%} of the cells no channel is active, so nothing can be detected there: lower "
        "learning_rate or start from other weights",
    ),
    Alarm(
        "peak",
        lambda share: share > 0.5,
        "one cell has {value:.0%} of an image's score, so only single spots are detected: lower "
        "learning_rate or start from other weights",
    ),
)


class SupervisedObjective(FeatureObjective):
    """The last layers of the backbone, trained on pairs with correspondences.

    Weights stay float32 and are rounded to the precision of the convolutions as they are used.
    """

    settings: TrainingSettings
    network: VGGBackbone
    alarms = _ALARMS

    def __init__(self, settings: TrainingSettings, data: Path) -> None:
        super().__init__(settings, data)
        network, self.start = load_network(settings.start)
        if not isinstance(network, VGG):
            raise InputError(
                f"start must be seasons, ots or the file of a VGG, not {settings.start}; a recipe "
                'for the network light has objective = "light"'
            )
        self.normalisation, self.whitening = network.normalisation, network.whitening
        self.network = network.backbone.requires_grad_(False)
        first = self.network.names.index(settings.layers[0])
        self._frozen, self._learned = self.network.names[:first], self.network.names[first:]
        for name in self._learned:
            self.network.convolution(name).requires_grad_(True)
        for convolution in self.network.children():
            convolution.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._dtype: torch.dtype = getattr(torch, settings.precision)

    def dataset(self, rank: int, processes: int) -> PairBatches[TrainingPair]:
        """See `Objective.dataset`."""
        open_one = training_part(self.settings, self.data)
        make_batch = partial(collate, corners=self.settings.contrast > 0)
        return PairBatches(self.settings, open_one, make_batch, rank, processes)

    def forward(self, batch: PairBatch) -> tuple[Tensor, dict[str, float]]:
        """The weighted sum of the paper's loss and the contrastive loss."""
        s = self.settings
        # On a CPU one image at a time, because its widest maps nearly fit into the cache.
        step = 1 if batch.images.device.type == "cpu" else len(batch.images)
        frozen = []
        with torch.no_grad():
            for first in range(0, len(batch.images), step):
                images = batch.images[first : first + step]
                x = self.normalisation(images.permute(0, 3, 1, 2).float()).to(self._dtype)
                x = x.contiguous(memory_format=torch.channels_last)  # the fast layout
                frozen.append(self.network.layers(x, self._frozen, 8))
        maps = self.network.layers(torch.cat(frozen), self._learned, 8)
        matching = matching_loss(maps, batch.correspondences, sampling=s.sampling)
        usable = matching.usable
        loss = mean_over_processes(matching.per_pair, usable)
        figures = {
            "matching": float(matching.mean().detach()),
            "usable": float(usable.float().mean()),
            "correspondences": float(batch.correspondences.valid.sum(1).float().mean()),
            "inactive": float(matching.inactive.mean()),
            "peak": float(matching.peak.max()),
            "similarity": float(matching.similarity.mean()),
        }
        if batch.corners is not None:
            contrast = mean_over_processes(*contrastive_loss(maps, batch.corners))
            loss = loss + s.contrast * contrast
            figures["contrast"] = float(contrast.detach())
        return loss, figures

    @torch.no_grad()
    def pair_loss(self, pair: TrainingPair) -> float:
        """The paper's loss of a pair at stride 8."""
        device = next(self.network.parameters()).device
        batch = collate([pair])
        images = self.normalisation(batch.images.to(device).permute(0, 3, 1, 2).float())
        known = PaddedCorrespondences(*(part.to(device) for part in batch.correspondences))
        maps = self.network(images.to(self._dtype))
        return float(matching_loss(maps, known, sampling=self.settings.sampling).mean())

    def model(self) -> D2Net:
        """See `FeatureObjective.model`."""
        precision = ExtractionSettings(precision=self.settings.precision)
        return D2Net(VGG(self.network, self.normalisation), precision)

    def save(self, path: Path, state: TrainingState) -> None:
        """See `Objective.save`."""
        made_of = f"{', '.join(self.settings.layers)} of {self.start['name']}"
        network = VGG(self.network, self.normalisation, self.whitening)
        save_weights(path, network, self.header(path, state, made_of))

    def finish(self, path: Path, progress: Progress) -> None:
        """Learn the whitening of descriptors, if the settings ask for it."""
        s = self.settings
        if not s.whitening:
            return
        loaded = load_weights(path)
        network = loaded.network
        assert isinstance(network, VGG)  # noqa: S101 (`save` writes no other)
        network.to(next(self.network.parameters()).device)
        mixture = Mixture.open(s, training_part(s, self.data))

        def pairs() -> Iterator[TrainingPair]:
            for number in range(s.whitening):
                # other pairs than those of the run's steps
                yield mixture.draw(pair_generator(s.seed, s.steps + number))[0]
                progress("whitening", number + 1, s.whitening)

        try:
            network.whitening = learn_whitening(network, pairs())
        except TrainingError as error:
            kept = "no whitening" if self.whitening is None else "the starting weights'"
            raise TrainingError(
                f"no new whitening was learned ({kept} is kept): {error}"
            ) from error
        save_weights(path, network, loaded.metadata)
