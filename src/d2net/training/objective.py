"""The objective of a run: everything that the training loop does not know about.

`supervised.py` is one: pairs with correspondences, and the paper's loss. Distilling a network from
teachers, or training a matcher, means writing another; `loop.run` stays the same.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset

from d2net.errors import D2NetError
from d2net.progress import Progress
from d2net.training.alarms import Alarm
from d2net.training.batches import Drawn
from d2net.training.settings import RunSettings
from d2net.training.state import TrainingState


class Objective(nn.Module, ABC):
    """A network to train, its batches and its loss.

    Attributes:
        network: what is saved in checkpoints, including anything else that learns with it. Its
            parameters that require a gradient are trained. Other modules of the objective, such
            as teachers, are neither trained nor saved.
        start: name and sha256 of the starting weights, such as {"name": "none"} for random ones;
            a run resumes with the same ones only.
        alarms: conditions on the figures of `forward`.
    """

    network: nn.Module
    start: dict[str, str]
    alarms: Sequence[Alarm] = ()

    @abstractmethod
    def dataset(self, rank: int, processes: int) -> Dataset[Drawn[Any] | D2NetError]:
        """The batches by step. They depend on nothing but the settings, the step and the rank.

        Args:
            rank: number of this process.
            processes: number of processes that share each batch.
        """

    @abstractmethod
    def forward(self, batch: Any) -> tuple[Tensor, dict[str, float]]:  # noqa: ANN401 (its own type)
        """The loss of a batch, and figures to record.

        The loss is averaged over all processes (`mean_over_processes`).
        """

    def optimizer(self, settings: RunSettings) -> torch.optim.Optimizer:
        """The optimizer of the parameters that learn."""
        learned = [p for p in self.network.parameters() if p.requires_grad]
        return torch.optim.Adam(learned, lr=settings.learning_rate)

    def validate(self) -> Mapping[str, float] | None:
        """Judge the network: `score` is higher for better weights. None: no validation."""
        return None

    def pictures(self) -> Mapping[str, Image.Image]:
        """Pictures of the last validation for TensorBoard, by name."""
        return {}

    @abstractmethod
    def save(self, path: Path, state: TrainingState) -> None:
        """Write the network as a weights file.

        Raises:
            OutputError: it cannot be written.
        """

    def finish(self, path: Path, progress: Progress) -> None:
        """Add to a weights file what is learned only after the last step.

        Raises:
            TrainingError: that is not possible; the file stays as it was.
        """
