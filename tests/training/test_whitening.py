"""Learning the whitening of descriptors, in closed form and at the end of a run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from d2net import D2Net
from d2net.errors import TrainingError
from d2net.matching.nearest import mutual_nearest
from d2net.networks.vgg import VGG, WHITENING_INPUTS
from d2net.networks.weights import load_weights
from d2net.training import whitening
from d2net.training.correspondences import corner_correspondences
from d2net.training.recipes import train
from d2net.training.settings import TrainingSettings
from d2net.training.sources.base import TrainingPair
from d2net.training.supervised import SupervisedObjective

from . import made
from .workers import SMALL

SETTINGS = TrainingSettings.from_dict({**SMALL, "crop": 192, "steps": 1, "whitening": 8})


@pytest.fixture(autouse=True)
def fewer(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Enough keypoints for a test, as many directions as they can tell, and one thread."""
    monkeypatch.setattr(whitening, "MIN_KEYPOINTS", 600)
    monkeypatch.setattr(whitening, "DIMENSIONS", 256)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def pairs(count: int, seed: int, dark: float) -> list[TrainingPair]:
    """Crops of one photo, of each a second version that is darker and noisier."""
    source = made.Made(Path(), made.MadeOptions(), 192)
    rng = np.random.default_rng(seed)
    found = []
    for number in range(count):
        pair = source.pair(number, rng)
        assert pair is not None
        noisy = pair.image_a * dark + rng.normal(0, 12, pair.image_a.shape)
        second = np.clip(noisy, 0, 255).astype(np.uint8)
        found.append(
            TrainingPair(
                pair.image_a, second, pair.points_a, pair.points_b, pair.source, pair.photos
            )
        )
    return found


@torch.no_grad()
def right_matches(model: D2Net, asked: list[TrainingPair]) -> float:
    """Share of the matches of corners that are right."""
    right = total = 0
    descriptor = model.settings.descriptor
    assert descriptor is not None
    for pair in asked:
        known = pair.points_a, pair.points_b
        points = [
            torch.from_numpy(part)
            for part in corner_correspondences(pair.image_a, pair.image_b, known)
        ]
        described = []
        for image, places in zip((pair.image_a, pair.image_b), points, strict=True):
            maps = model.network.compute_maps(torch.from_numpy(image)[None], torch.float32)
            of_photo = tuple(part[0] for part in maps)
            described.append(model.network.describe(of_photo, places, descriptor))
        rows_a, rows_b = mutual_nearest(*described).indices.unbind(1)
        error = (points[1][rows_a] - points[1][rows_b]).norm(dim=1)
        right, total = right + int((error < 3).sum()), total + len(error)
    return right / total


@pytest.mark.slow
def test_fewer_numbers_tell_more_apart_in_the_dark() -> None:
    """Learned on half of the crops, judged on others of another darkness."""
    plain = D2Net.from_pretrained("ots", descriptor="fused")
    network = plain.network
    assert isinstance(network, VGG)
    learned = whitening.learn_whitening(network, pairs(16, 0, 0.15))
    assert learned.weight.shape == (256, WHITENING_INPUTS)
    model = D2Net(VGG(network.backbone, network.normalisation, learned))
    assert model.settings.descriptor == "whitened"
    unseen = pairs(4, 1, 0.2)
    found = model.extract(unseen[0].image_a)
    assert found.descriptors.shape[1] == 256
    torch.testing.assert_close(found.descriptors.norm(dim=1), torch.ones(len(found)))
    before, after = (right_matches(m, unseen) for m in (plain, model))
    assert after > before


@pytest.mark.slow
def test_a_run_gives_its_weights_a_whitening_always_the_same(tmp_path: Path) -> None:
    ends = [train(SETTINGS, tmp_path / name, workers=0).weights for name in ("one", "two")]
    one, two = (load_weights(path).network.whitening for path in ends)
    assert one is not None
    assert two is not None
    assert torch.equal(one.weight, two.weight)
    about = load_weights(ends[0])
    assert len(about.network.whitening.bias) == 256
    assert about.metadata["pairs"] == "2"
    assert D2Net.from_pretrained(ends[0]).settings.descriptor == "whitened"
    assert D2Net.from_pretrained(ends[0], descriptor="plain").settings.descriptor == "plain"


def test_too_little_to_learn_from_leaves_the_weights_without(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    result = train(SETTINGS.updated(whitening=1), tmp_path, workers=0)
    assert load_weights(result.weights).network.whitening is None
    (warning,) = caplog.messages
    assert "no new whitening was learned (no whitening is kept): the whitening" in warning


def test_what_is_not_learned_anew_stays_the_starting_weights(tmp_path: Path) -> None:
    settings = SETTINGS.updated(start="seasons", whitening=0)
    found = load_weights(train(settings, tmp_path, workers=0).weights).network.whitening
    before = load_weights("seasons").network.whitening
    assert found is not None
    assert before is not None
    assert torch.equal(found.weight, before.weight)


def test_too_little_is_an_error_for_who_asks_for_it() -> None:
    network = D2Net.from_pretrained("ots").network
    assert isinstance(network, VGG)
    with pytest.raises(TrainingError, match="600 corresponding keypoints, but"):
        whitening.learn_whitening(network, pairs(1, 0, 0.5))


def test_a_run_finishes_although_its_best_weights_were_moved_away(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([0.5, 0.2, 0.1])
    monkeypatch.setattr(SupervisedObjective, "validate", lambda _: {"score": next(scores)})

    def interrupt(stage: str, done: int, _: int | None) -> None:
        if stage.startswith("training") and done == 2:
            raise KeyboardInterrupt

    settings = replace(SETTINGS, steps=2, validate_every=1, save_every=1)
    with pytest.raises(KeyboardInterrupt):
        train(settings, tmp_path, workers=0, progress=interrupt)
    (tmp_path / "best.safetensors").unlink()
    result = train(settings, tmp_path, workers=0)
    assert result.best is None and "best.safetensors" in caplog.text
    assert "whitening.bias" in load_file(result.weights)
