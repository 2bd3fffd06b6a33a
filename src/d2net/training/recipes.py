"""Runs by their settings: from a file, or for one's own photos."""

from __future__ import annotations

from pathlib import Path
from typing import TypeAlias

from d2net.io.image_lists import photos_folder
from d2net.progress import Progress, no_progress
from d2net.training.batches import input_files
from d2net.training.distillation import DistillationObjective
from d2net.training.loop import TrainingResult, run
from d2net.training.matcher import MatcherObjective
from d2net.training.objective import Objective
from d2net.training.settings import (
    DistillationSettings,
    MatcherTrainingSettings,
    SourceSettings,
    TrainingSettings,
    read_toml,
)
from d2net.training.sources import detect_kind
from d2net.training.supervised import SupervisedObjective

AnySettings: TypeAlias = TrainingSettings | DistillationSettings | MatcherTrainingSettings

_HOLD_OUT = 10
_WHITENING = 300  # pairs


def train(
    settings: AnySettings,
    output: str | Path,
    *,
    data: str | Path = ".",
    device: str = "cpu",
    workers: int = 1,
    progress: Progress = no_progress,
) -> TrainingResult:
    """Train a network, distil one from teachers or train a matcher, or resume; see `loop.run`."""
    objective: Objective
    if isinstance(settings, MatcherTrainingSettings):
        objective = MatcherObjective(settings, Path(data), Path(output) / "pairs", progress)
    elif isinstance(settings, DistillationSettings):
        targets = Path(output) / "teachers"
        objective = DistillationObjective(settings, Path(data), targets, progress)
    else:
        objective = SupervisedObjective(settings, Path(data))
    files = input_files(settings, Path(data))
    return run(
        objective, settings, output, files, device=device, workers=workers, progress=progress
    )


def read_recipe(path: Path) -> TrainingSettings | MatcherTrainingSettings:
    """The settings of a TOML file: of a matcher if it has the setting `objective`."""
    if "objective" in read_toml(path):
        return MatcherTrainingSettings.from_file(path)
    return TrainingSettings.from_file(path)


def settings_for_photos(
    folder: Path, *, start: str = "seasons", steps: int = 1000, batch: int = 4
) -> TrainingSettings:
    """Settings that adapt weights to the photos of a folder.

    The recipe of the weights seasons, shortened: half random homographies of single photos, half
    pairs of the reconstruction or of aligned photos if the folder has them. A tenth of these pairs
    is validated on. A run on fewer pairs than the whitening needs keeps the whitening of `start`.
    """
    kind = detect_kind(folder)
    sources = [SourceSettings(kind, ".", hold_out=_HOLD_OUT)]
    if kind in ("colmap", "aligned"):
        images = photos_folder(folder) if kind == "colmap" else folder
        sources.insert(0, SourceSettings("photos", images.relative_to(folder).as_posix()))
    return TrainingSettings(
        sources=tuple(sources),
        start=start,
        layers=("conv4_1", "conv4_2", "conv4_3"),
        batch=batch,
        steps=steps,
        learning_rate=2e-4,
        contrast=1.0,
        whitening=_WHITENING if steps * batch >= _WHITENING else 0,
        schedule="cosine",
        warmup=20,
        sampling="bilinear",
        precision="bfloat16",
        validate_every=500,
        validation_pairs=12,
        save_every=100,
    )
