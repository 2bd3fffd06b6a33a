"""Settings for a folder of one's own, and for a given time."""

from __future__ import annotations

import time
from pathlib import Path

import torch

from d2net.errors import InputError
from d2net.io.image_lists import photos_folder
from d2net.networks.vgg_backbone import VGGBackbone
from d2net.networks.weights import load_weights
from d2net.training.batches import Draws, load
from d2net.training.network import Learner
from d2net.training.objective import objective
from d2net.training.settings import SourceSettings, TrainingSettings
from d2net.training.sources import kind_of

_HELD_OUT = 10
_OVERHEAD = 1.15  # validation and checkpoints, as a factor on the time of the steps
_TRIALS = 6
_WHITENING_COSTS = 1.5  # pairs of a step: float32 and stride 4, but no gradient
_FEWEST_WHITENED = 100  # pairs, about as many as give enough keypoints


def own_photos(folder: Path) -> TrainingSettings:
    """Settings that adapt the default weights to the photos of a folder.

    The recipe of the default weights, shorter: half random homographies of single photos, half
    pairs of the reconstruction or of aligned photos where the folder has them. A tenth of these
    pairs is validated on.

    Args:
        folder: a COLMAP reconstruction with its photos, aligned photos, or any photos.

    Raises:
        InputError: there is no such folder.
    """
    kind = kind_of(folder)
    if kind == "megadepth":  # its photos lie elsewhere
        return _adapting(SourceSettings(kind, ".", hold_out=_HELD_OUT))
    images = photos_folder(folder).relative_to(folder).as_posix() if kind == "colmap" else "."
    sources = [SourceSettings("photos", images, hold_out=_HELD_OUT if kind == "photos" else 0)]
    if kind != "photos":
        sources.append(SourceSettings(kind, ".", hold_out=_HELD_OUT))
    return _adapting(*sources)


def _adapting(*sources: SourceSettings) -> TrainingSettings:
    return TrainingSettings(
        sources=sources,
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


def settings_within(
    minutes: float, settings: TrainingSettings, *, data: Path, device: str, workers: int
) -> TrainingSettings:
    """The settings with about as many steps as this machine does in a given time, from trying some.

    The whitening of descriptors gets a third of the time at most; where that is too little to
    learn it from, it stays the starting weights'.

    Raises:
        D2NetError: as `train`.
    """
    if not minutes > 0:
        raise InputError(f"minutes must be above 0, not {minutes}")
    per_step = _seconds_per_step(settings, data, device, workers)
    per_pair = _WHITENING_COSTS * per_step / settings.batch
    pairs = min(settings.whitening, round(60 * minutes / 3 / per_pair))
    whitening = pairs if pairs >= _FEWEST_WHITENED else 0
    left = 60 * minutes - whitening * per_pair
    return settings.updated(steps=max(1, round(left / (per_step * _OVERHEAD))), whitening=whitening)


def _seconds_per_step(settings: TrainingSettings, data: Path, device: str, workers: int) -> float:
    loaded = load_weights(settings.start)
    backbone = VGGBackbone()
    backbone.load_state_dict(loaded.state)
    learner = Learner(backbone, loaded.normalisation, settings).to(device)
    ends = []
    for batch in load(Draws(settings, data), range(_TRIALS), workers):
        there = batch.to(torch.device(device))
        maps, _ = learner(there.images)
        loss = objective(maps, there, settings).total
        loss.backward()  # type: ignore[no-untyped-call]
        float(loss.detach())  # waits for the device
        ends.append(time.monotonic())
    return (ends[-1] - ends[0]) / (len(ends) - 1)  # the first one pays for the start
