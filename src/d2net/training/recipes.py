"""Training runs: from a recipe, or for your own photos."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeAlias

from d2net.errors import InputError
from d2net.io.image_lists import photos_folder
from d2net.networks.light import Light
from d2net.networks.weights import load_network
from d2net.progress import Progress, no_progress
from d2net.training.batches import input_files
from d2net.training.distillation import DistillationObjective
from d2net.training.fine_tuning import FineTuningObjective
from d2net.training.loop import TrainingResult, run
from d2net.training.matcher import MatcherObjective
from d2net.training.objective import Objective
from d2net.training.settings import (
    DistillationSettings,
    FineTuningSettings,
    MatcherTrainingSettings,
    SourceSettings,
    TrainingSettings,
    read_toml,
)
from d2net.training.sources import detect_kind
from d2net.training.sources.reading import read_depth_map, read_photo
from d2net.training.supervised import SupervisedObjective

FeatureSettings: TypeAlias = TrainingSettings | FineTuningSettings
AnySettings: TypeAlias = FeatureSettings | DistillationSettings | MatcherTrainingSettings

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
    """Train or fine-tune a network, distil one or train a matcher, or resume; see `loop.run`."""
    read_photo.cache_clear()  # files may have changed since the last training
    read_depth_map.cache_clear()
    objective: Objective
    if isinstance(settings, MatcherTrainingSettings):
        objective = MatcherObjective(settings, Path(data), Path(output) / "pairs", progress)
    elif isinstance(settings, DistillationSettings):
        objective = DistillationObjective(settings, Path(data), Path(output) / "teachers", progress)
    elif isinstance(settings, FineTuningSettings):
        objective = FineTuningObjective(settings, Path(data))
    else:
        objective = SupervisedObjective(settings, Path(data))
    files = input_files(settings, Path(data))
    return run(
        objective, settings, output, files, device=device, workers=workers, progress=progress
    )


def read_recipe(path: Path) -> FeatureSettings | MatcherTrainingSettings:
    """The settings of a TOML file; `objective` is "matcher" or "light", or missing for a VGG."""
    objective = read_toml(path).get("objective")
    if objective is None:
        return TrainingSettings.from_file(path)
    if objective not in ("light", "matcher"):
        raise InputError(f"{path}: objective must be light or matcher, not {objective!r}")
    settings = FineTuningSettings if objective == "light" else MatcherTrainingSettings
    return settings.from_file(path)


def settings_for_photos(
    folder: Path, *, start: str = "seasons", steps: int = 1000, batch: int = 4
) -> FeatureSettings:
    """Settings that adapt weights to the photos of a folder.

    For a VGG it is the recipe of the weights seasons, shortened. Half of the pairs are random
    homographies of single photos, half come from the reconstruction or the aligned photos if the
    folder has them. A tenth of these pairs is validated on. A run on fewer pairs than the whitening
    needs keeps the whitening of `start`.
    """
    kind = detect_kind(folder)
    sources = [SourceSettings(kind, ".", hold_out=_HOLD_OUT)]
    if kind in ("colmap", "aligned"):
        images = photos_folder(folder) if kind == "colmap" else folder
        sources.insert(0, SourceSettings("photos", images.relative_to(folder).as_posix()))
    common: dict[str, Any] = {
        "sources": tuple(sources),
        "start": start,
        "batch": batch,
        "steps": steps,
        "schedule": "cosine",
        "precision": "bfloat16",
        "validate_every": 500,
        "validation_pairs": 12,
        "save_every": 100,
    }
    if isinstance(load_network(start)[0], Light):
        return FineTuningSettings(**common)
    return TrainingSettings(
        **common,
        layers=("conv4_1", "conv4_2", "conv4_3"),
        learning_rate=2e-4,
        contrast=1.0,
        whitening=_WHITENING if steps * batch >= _WHITENING else 0,
        warmup=20,
        sampling="bilinear",
    )
