"""The objective of a run: everything that the training loop does not know about."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed
from torch import Tensor, nn
from torch.utils.data import Dataset

from d2net.errors import D2NetError
from d2net.extraction.d2net import D2Net
from d2net.geometry.coordinates import Array
from d2net.matching.nearest import mutual_nearest
from d2net.progress import Progress
from d2net.training.alarms import Alarm
from d2net.training.batches import Drawn, Mixture, open_part
from d2net.training.correspondences import interpolate
from d2net.training.settings import RunSettings
from d2net.training.sources.base import TrainingPair, pair_generator
from d2net.training.state import TrainingState

THRESHOLDS = (3, 10)  # maximum errors in pixels of matches that count as right in validation

_SEED = 0  # the fixed pairs are the same for all runs, whatever their seed


class Objective(nn.Module, ABC):
    """A network to train, its batches and its loss.

    Attributes:
        settings: the recipe; its sources are in the folder `data`.
        network: the module that checkpoints save, with everything that learns with it. Its
            parameters that require a gradient are trained. Other modules of the objective, such
            as teachers, are neither trained nor saved.
        start: name and sha256 of the starting weights, such as {"name": "none"} for random ones;
            a run resumes with the same ones only.
        alarms: conditions on the figures of `forward`.
    """

    settings: RunSettings
    data: Path
    network: nn.Module
    start: dict[str, str]
    alarms: Sequence[Alarm] = ()

    @abstractmethod
    def dataset(self, rank: int, processes: int) -> Dataset[Drawn | D2NetError]:
        """The batches by step. They depend on nothing but the settings, the step and the rank."""

    @abstractmethod
    def forward(self, batch: Any) -> tuple[Tensor, dict[str, float]]:  # noqa: ANN401 (its own type)
        """The loss of a batch, and figures to record.

        The loss is averaged over all processes (`mean_over_processes`).
        """

    def optimizer(self, settings: RunSettings) -> torch.optim.Optimizer:
        """The optimizer of the parameters that learn."""
        learned = [p for p in self.network.parameters() if p.requires_grad]
        return torch.optim.Adam(learned, lr=settings.learning_rate)

    def header(self, path: Path, state: TrainingState, made_of: str) -> dict[str, str]:
        """Metadata of a weights file: name, licence, training data, and how the run was made."""
        settings, start = self.settings, state.start["name"]
        sources = ", ".join(dict.fromkeys(source.path for source in settings.training_sources))
        data = "the teachers" if start == "none" else start
        return {
            "name": settings.name or path.resolve().parent.name,
            "licence": f"as of {data} and of the training data",
            "training_data": f"{made_of} on {self.data.resolve().name} ({sources})",
            "start": json.dumps(state.start),
            "settings": json.dumps(settings.to_dict()),
            "steps": str(state.step),
            "pairs": str(state.pairs),
        }

    def validate(self) -> Mapping[str, float] | None:
        """Judge the network: `score` is higher for better weights. None: no validation."""
        return None

    @abstractmethod
    def save(self, path: Path, state: TrainingState) -> None:
        """Write the network as a weights file."""

    def finish(self, path: Path, progress: Progress) -> None:
        """Learn the parts that follow the last step, and add them to a weights file."""


def fixed_pairs(settings: RunSettings, data: Path) -> list[TrainingPair]:
    """Draw the validation pairs of a run: equally many from each source, always the same."""
    pairs = []
    for row, source in enumerate(settings.validation_sources):
        mixture = Mixture([open_part(source, settings.crop, data, held_out=True)])
        for number in range(settings.validation_pairs):
            pairs.append(mixture.draw(pair_generator(_SEED, number, row))[0])
    return pairs


class FeatureObjective(Objective):
    """An objective whose network makes features.

    It is validated with extraction as users run it, because the training loss is computed at points
    that are known to correspond. A match is right at t px if its second keypoint lies within t px
    of the true partner of the first, which is interpolated from the pair's correspondences. Where
    that is impossible, a match is not judged.
    """

    def __init__(self, settings: RunSettings, data: Path) -> None:
        super().__init__()
        self.settings, self.data = settings, data
        self._fixed: list[TrainingPair] = []

    @abstractmethod
    def model(self) -> D2Net:
        """The network as users get it."""

    @abstractmethod
    def pair_loss(self, pair: TrainingPair) -> float:
        """The loss of a validation pair, in this process alone."""

    def validate(self) -> dict[str, float] | None:
        """Judge the network on the validation pairs.

        Returns:
            `loss`; `accuracy@3` and `accuracy@10`, the shares of right matches among those judged
            (0 if there are none); and `right@10`, the number of right matches. Each is the mean
            over the sources of the mean over their pairs, and is also given per source as
            `loss/NAME`. `score` is the mean of both accuracies.
        """
        if not self.settings.validation_sources:
            return None
        self._fixed = self._fixed or fixed_pairs(self.settings, self.data)
        model, rows = self.model(), defaultdict(list)
        for pair in self._fixed:
            errors = match_errors(model, pair)
            row = {"loss": self.pair_loss(pair)}
            for t in THRESHOLDS:
                row[f"accuracy@{t}"] = float((errors <= t).mean()) if len(errors) else 0.0
            row[f"right@{max(THRESHOLDS)}"] = float((errors <= max(THRESHOLDS)).sum())
            rows[pair.source].append(row)
        figures: dict[str, float] = {}
        for name in list(next(iter(rows.values()))[0]):
            means = {source: float(np.mean([row[name] for row in rows[source]])) for source in rows}
            figures[name] = float(np.mean(list(means.values())))
            figures.update({f"{name}/{source}": mean for source, mean in means.items()})
        figures["score"] = float(np.mean([figures[f"accuracy@{t}"] for t in THRESHOLDS]))
        return figures


def match_errors(model: D2Net, pair: TrainingPair) -> Array:
    """Match the crops of a pair: the error of each match in pixels, where it can be judged."""
    a, b = model.extract_batch([pair.image_a, pair.image_b])
    points_a, points_b = mutual_nearest(a.descriptors, b.descriptors).points(a, b)
    partners = interpolate(points_a, pair.points_a, pair.points_b)
    errors = np.linalg.norm(partners - points_b, axis=1).astype(np.float64)
    return np.asarray(errors[np.isfinite(errors)])


def mean_over_processes(values: Tensor, usable: Tensor | None = None) -> Tensor:
    """This process's contribution to the mean over the usable values of all processes.

    The gradients of the processes are averaged. For the result to be the gradient of the joint
    mean, each process counts for as many values as it has usable ones. The N values are 0 where
    they are not usable; by default all are usable.
    """
    count = torch.tensor(len(values), device=values.device) if usable is None else usable.sum()
    processes = 1
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        processes = torch.distributed.get_world_size()
        torch.distributed.all_reduce(count)
    return values.sum() * processes / count.clamp_min(1)
