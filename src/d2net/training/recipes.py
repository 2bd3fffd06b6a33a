"""Recipes: from a file, for one's own photos, and for a given time."""

from __future__ import annotations

import time
from pathlib import Path

import torch

from d2net.errors import InputError
from d2net.io.image_lists import photos_folder
from d2net.training.batches import load
from d2net.training.matcher import MatcherTrainingSettings
from d2net.training.settings import SourceSettings, TrainingSettings, read_toml
from d2net.training.sources import detect_kind
from d2net.training.supervised import SupervisedObjective

_HOLD_OUT = 10
_TRIAL_STEPS = 6
_OVERHEAD = 1.05  # of checkpoints and validations in between, as a factor on the time of the steps

_VALIDATION_COST, _WHITENING_COST = 1.6, 1.3
"""Time per pair, relative to a pair of a step. (On one core, with the settings below: 1.05 s and
0.86 s, against 0.68 s.)"""

_MIN_WHITENING_PAIRS = 100  # these give about enough keypoints


def read_recipe(path: Path) -> TrainingSettings | MatcherTrainingSettings:
    """The settings of a TOML file: of a matcher if it says objective = "matcher".

    Raises:
        InputError: no such file, no TOML, or an unknown or impossible setting.
    """
    if read_toml(path).get("objective") == "matcher":
        return MatcherTrainingSettings.from_file(path)
    return TrainingSettings.from_file(path)


def settings_for_photos(folder: Path) -> TrainingSettings:
    """Settings that adapt the default weights to the photos of a folder.

    The recipe of the default weights, shortened: half random homographies of single photos, half
    pairs of the reconstruction or of aligned photos if the folder has them. A tenth of these pairs
    is validated on.

    Args:
        folder: a COLMAP reconstruction with its photos, aligned photos, or any photos.

    Raises:
        InputError: there is no such folder.
    """
    kind = detect_kind(folder)
    sources = [SourceSettings(kind, ".", hold_out=_HOLD_OUT)]
    if kind in ("colmap", "aligned"):
        images = photos_folder(folder) if kind == "colmap" else folder
        sources.insert(0, SourceSettings("photos", images.relative_to(folder).as_posix()))
    return TrainingSettings(
        sources=tuple(sources),
        start="default",
        layers=("conv4_1", "conv4_2", "conv4_3"),
        batch=4,
        steps=1000,
        learning_rate=2e-4,
        contrast=1.0,
        whitening=300,
        schedule="cosine",
        warmup=20,
        sampling="bilinear",
        precision="bfloat16",
        validate_every=500,
        validation_pairs=12,
        save_every=100,
    )


def settings_for_minutes(
    minutes: float, settings: TrainingSettings, *, data: Path, device: str, workers: int
) -> TrainingSettings:
    """Settings with as many steps as this machine can do in a given time, judged by a few trials.

    The time includes the trials, the first and the last validation, and at most a third for
    learning the whitening. If that is too short, the whitening of the starting weights is kept.

    Raises:
        D2NetError: as `train`.
    """
    if not minutes > 0:
        raise InputError(f"minutes must be above 0, not {minutes}")
    began = time.monotonic()
    per_pair = _seconds_per_pair(settings, data, device, workers)
    validation_pairs = 2 * settings.validation_pairs * len(settings.validation_sources)
    seconds = 60 * minutes - (time.monotonic() - began)
    seconds -= _VALIDATION_COST * per_pair * validation_pairs
    # The whitening is learned twice if the best weights are not the last ones.
    per_whitening_pair = 2 * _WHITENING_COST * per_pair
    whitening = min(settings.whitening, round(seconds / 3 / per_whitening_pair))
    if whitening < _MIN_WHITENING_PAIRS:
        whitening = 0
    seconds -= whitening * per_whitening_pair
    steps = round(seconds / (settings.batch * per_pair * _OVERHEAD))
    return settings.updated(steps=max(1, steps), whitening=whitening)


def _seconds_per_pair(settings: TrainingSettings, data: Path, device: str, workers: int) -> float:
    objective = SupervisedObjective(settings, data).to(device)
    ends = []
    for drawn in load(objective.dataset(0, 1), range(_TRIAL_STEPS), workers):
        loss, _ = objective(drawn.content.to(torch.device(device)))
        loss.backward()
        float(loss.detach())  # waits for the device
        ends.append(time.monotonic())
    # The first step includes the start.
    return (ends[-1] - ends[0]) / (len(ends) - 1) / settings.batch
