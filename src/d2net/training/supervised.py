"""Supervised training: pairs with correspondences, and the loss of the paper."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from d2net.errors import InputError, TrainingError
from d2net.extraction.d2net import D2Net
from d2net.networks.detection import soft_scores
from d2net.networks.vgg import VGG
from d2net.networks.vgg_backbone import VGGBackbone
from d2net.networks.weights import load_network, save_weights
from d2net.progress import Progress, no_progress
from d2net.settings import ExtractionSettings
from d2net.training.alarms import WINDOW, Alarm
from d2net.training.batches import PairBatch, PairBatches, collate, training_part
from d2net.training.contrast import contrastive_loss
from d2net.training.crops import RGB
from d2net.training.loop import TrainingResult, run
from d2net.training.loss import Loss, matching_loss
from d2net.training.objective import Objective
from d2net.training.processes import mean_over_processes
from d2net.training.settings import TrainingSettings
from d2net.training.sources import TrainingPair
from d2net.training.state import TrainingState
from d2net.training.validation import Validate, Validation, fixed_pairs
from d2net.training.whitening import add_whitening

_ALARMS = (
    Alarm(
        "usable",
        lambda share: share == 0,
        f"no pair of the last {WINDOW} steps has a correspondence with a detection score, so "
        "nothing is learned: look at the pairs with `d2net data check`",
        ends_run=True,
    ),
    Alarm(
        "similarity",
        lambda cosine: cosine > 0.98,  # off-the-shelf weights have 0.6
        "the descriptors have collapsed: those of different cells have a mean cosine of "
        "{value:.3f}; start again with a lower learning_rate, with retention, or from other "
        "weights",
        ends_run=True,
    ),
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


def train(
    settings: TrainingSettings,
    output: str | Path,
    *,
    data: str | Path = ".",
    device: str = "cpu",
    workers: int = 1,
    validate: Validate | None = None,
    progress: Progress = no_progress,
) -> TrainingResult:
    """Train weights, or resume an interrupted run with the same output; see `loop.run`.

    Args:
        settings: settings of the run.
        output: folder of all files that the run writes.
        data: the folder that the sources' paths are relative to.
        device: see `loop.run`.
        workers: see `loop.run`.
        validate: judges the weights; by default `Validation` on the settings' validation sources.
        progress: called after every step.

    Raises:
        D2NetError: as `loop.run`; WeightsError if the starting weights cannot be loaded.
    """
    objective = SupervisedObjective(settings, Path(data), validate)
    return run(objective, settings, output, device=device, workers=workers, progress=progress)


class SupervisedObjective(Objective):
    """The last layers of the backbone, trained on pairs with correspondences.

    Weights stay float32 and are rounded to the precision of the convolutions as they are used.

    Args:
        settings: settings of the run.
        data: the folder that the sources' paths are relative to.
        validate: judges the weights; None: `Validation` on the settings' validation sources.
    """

    network: VGGBackbone
    alarms = _ALARMS

    def __init__(
        self, settings: TrainingSettings, data: Path, validate: Validate | None = None
    ) -> None:
        super().__init__()
        self.settings, self.data = settings, data
        network, self.start = load_network(settings.start)
        if not isinstance(network, VGG):
            raise InputError(f"{settings.start} are not weights of a VGG")
        self.normalisation, self.whitening = network.normalisation, network.whitening
        self.network = network.backbone.requires_grad_(False)
        first = self.network.names.index(settings.layers[0])
        self._frozen, self._learned = self.network.names[:first], self.network.names[first:]
        for name in self._learned:
            self.network.convolution(name).requires_grad_(True)
        self.start_network = (
            copy.deepcopy(self.network).requires_grad_(False) if settings.retention else None
        )
        for convolution in self.network.children():
            convolution.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._validate = validate

    def dataset(self, rank: int, processes: int) -> PairBatches[TrainingPair]:
        """See `Objective.dataset`."""
        open_one = training_part(self.settings, self.data)
        make_batch = partial(collate, corners=self.settings.contrast > 0)
        return PairBatches(self.settings, open_one, make_batch, rank, processes)

    def forward(self, batch: PairBatch) -> tuple[Tensor, dict[str, float]]:
        """The weighted sum of the paper's loss, the contrastive loss and the retention term."""
        s = self.settings
        frozen = self._frozen_layers(batch.images)
        maps = self.network.layers(frozen, self._learned, s.stride)
        matching = matching_loss(maps, batch.correspondences, sampling=s.sampling, stride=s.stride)
        loss = mean_over_processes(matching.per_pair, matching.usable)
        figures = _figures(matching)
        if batch.corners is not None:
            per_pair, usable = contrastive_loss(maps, batch.corners, stride=s.stride)
            contrast = mean_over_processes(per_pair, usable)
            loss = loss + s.contrast * contrast
            figures["contrast"] = float(contrast.detach())
        if self.start_network is not None:
            with torch.no_grad():
                before = self.start_network.layers(frozen, self._learned, s.stride)
            cosine = F.cosine_similarity(maps.float(), before.float(), dim=1)
            retention = (1 - cosine).mean()
            loss = loss + s.retention * retention
            figures["retention"] = float(retention.detach())
        return loss, figures

    @torch.no_grad()
    def _frozen_layers(self, images: Tensor) -> Tensor:
        """Run N x H x W x 3 uint8 images through the layers that are not trained."""
        dtype: torch.dtype = getattr(torch, self.settings.precision)

        def run_layers(part: Tensor) -> Tensor:
            x = self.normalisation(part.permute(0, 3, 1, 2).float())
            x = x.to(dtype).contiguous(memory_format=torch.channels_last)  # the fast layout
            return self.network.layers(x, self._frozen, self.settings.stride)

        # On a CPU one image at a time, because its widest maps nearly fit into the cache.
        step = 1 if images.device.type == "cpu" else len(images)
        return torch.cat([run_layers(images[i : i + step]) for i in range(0, len(images), step)])

    def validate(self) -> dict[str, float] | None:
        """See `Objective.validate`."""
        if self._validate is None:
            if not self.settings.validation_sources:
                return None
            self._validate = Validation(fixed_pairs(self.settings, self.data), self.pair_loss)
        return dict(self._validate(self._model()))

    @torch.no_grad()
    def pair_loss(self, pair: TrainingPair) -> float:
        """The paper's loss of a pair at stride 8, in this process alone."""
        device = next(self.network.parameters()).device
        batch = collate([pair]).to(device)
        dtype: torch.dtype = getattr(torch, self.settings.precision)
        images = self.normalisation(batch.images.permute(0, 3, 1, 2).float())
        maps = self.network(images.to(dtype))
        loss = matching_loss(maps, batch.correspondences, sampling=self.settings.sampling)
        return float(loss.mean())

    @torch.no_grad()
    def _soft_scores(self, crop: RGB) -> NDArray[np.float32]:
        """The h x w soft scores of a crop at stride 8."""
        device = next(self.network.parameters()).device
        image = torch.from_numpy(crop).to(device).permute(2, 0, 1)[None].float()
        scores = soft_scores(self.network(self.normalisation(image)))[0]
        return np.asarray(scores.cpu().numpy(), np.float32)

    def pictures(self) -> Mapping[str, Image.Image]:
        """See `Objective.pictures`."""
        if not isinstance(self._validate, Validation):
            return {}
        return self._validate.pictures(self._model(), self._soft_scores)

    def _model(self) -> D2Net:
        precision = ExtractionSettings(precision=self.settings.precision)
        return D2Net(VGG(self.network, self.normalisation), precision)

    def save(self, path: Path, state: TrainingState) -> None:
        """See `Objective.save`."""
        s, start = self.settings, self.start["name"]
        sources = ", ".join(source.path for source in s.training_sources)
        save_weights(
            path,
            VGG(self.network, self.normalisation, self.whitening),
            {
                "name": s.name or path.resolve().parent.name,
                "licence": s.licence or f"as of {start} and of the training data",
                "training_data": f"{', '.join(s.layers)} of {start} on {sources}",
                "start": json.dumps(state.start),
                "settings": json.dumps(s.to_dict()),
                "steps": str(state.step),
                "pairs": str(state.pairs),
            },
        )

    def finish(self, path: Path, progress: Progress) -> None:
        """Learn the whitening of descriptors, if the settings ask for it."""
        if self.settings.whitening:
            device = str(next(self.network.parameters()).device)
            try:
                add_whitening(path, self.settings, self.data, device, progress)
            except TrainingError as error:
                kept = "no whitening" if self.whitening is None else "the starting weights'"
                raise TrainingError(
                    f"no new whitening was learned ({kept} is kept): {error}"
                ) from error


def _figures(loss: Loss) -> dict[str, float]:
    """Means over a batch of the loss and its failure modes."""
    usable = loss.usable
    return {
        "matching": float(loss.mean().detach()),
        "usable": float(usable.float().mean()),
        "correspondences": float(loss.correspondences.float().mean()),
        "positive": float(loss.positive[usable].nanmean()) if usable.any() else 0.0,
        "negative": float(loss.negative[usable].nanmean()) if usable.any() else 0.0,
        "inactive": float(loss.inactive.mean()),
        "peak": float(loss.peak.max()),
        "similarity": float(loss.similarity.mean()),
    }
