"""The page shows what the library computes."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import d2net
from d2net import D2Net
from d2net.serving.photos import SentPhoto, match_best, presets

from .served import SIZE, photo


@pytest.fixture
def pair() -> list[SentPhoto]:
    return [SentPhoto.read(photo()), SentPhoto.read(photo(216, 208))]


@pytest.mark.parametrize("preset", ["default", "deep", "original"])
def test_keypoints_are_those_of_the_model_best_first(
    tiny_model: D2Net, pair: list[SentPhoto], preset: str
) -> None:
    settings = {"default": {}, "deep": {"descriptor": "plain"}, "original": {"original": True}}
    found = pair[0].extract(presets(tiny_model)[preset], preset)
    expected = tiny_model.extract(pair[0].file, **settings[preset])
    expected = expected[expected.scores.argsort(descending=True, stable=True)]
    assert len(found) > 20
    assert torch.equal(found.keypoints, expected.keypoints)
    assert (found.scores.diff() <= 0).all()
    assert pair[0].extract(tiny_model, preset) is found


def test_both_networks_of_the_default_can_be_chosen() -> None:
    chosen = presets(D2Net.from_pretrained())
    types = {name: model.settings.descriptor for name, model in chosen.items()}
    assert types == {"default": "combined", "light": "light", "deep": "plain", "original": "plain"}
    assert chosen["original"].settings.original


def test_sixteen_bits_are_not_rounded_to_eight(tiny_model: D2Net, tmp_path: Path) -> None:
    """A thermal photo may use so few of its 16-bit values that 8 bits lose its details."""
    with Image.open(io.BytesIO(photo())) as grey:
        values = 9000 + 2 * np.asarray(grey.convert("L")).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "photo.png")
    expected = tiny_model.extract(tmp_path / "photo.png")
    found = SentPhoto.read((tmp_path / "photo.png").read_bytes()).extract(tiny_model, "default")
    assert len(found) == len(expected) > 20
    assert set(map(tuple, found.keypoints.tolist())) == set(map(tuple, expected.keypoints.tolist()))


@pytest.mark.parametrize("number", [40, 8000])
@pytest.mark.parametrize("threshold", [None, 1.0])
def test_matches_are_those_of_the_library(
    tiny_model: D2Net, pair: list[SentPhoto], number: int, threshold: float | None
) -> None:
    a, b = (sent.extract(tiny_model, "deep") for sent in pair)
    shown = match_best(*pair, "deep", number, threshold)
    expected = d2net.match(a[:number], b[:number], verify="fundamental", threshold=threshold)
    assert shown["inliers"] == expected.num_inliers > 10
    assert (shown["verdict"], shown["significance"]) == (expected.verdict, expected.significance)
    rows = np.column_stack([shown["first"], shown["second"]])
    assert sorted(map(tuple, rows)) == sorted(map(tuple, expected.indices.tolist()))
    verified = {tuple(row) for row in expected.verified().indices.tolist()}
    assert {tuple(row) for row in rows[: shown["inliers"]].tolist()} == verified
    assert shown["threshold"] == pytest.approx(threshold or 3.64 * 1.5)
    shift = b.keypoints[rows[: shown["inliers"], 1]] - a.keypoints[rows[: shown["inliers"], 0]]
    assert torch.allclose(shift.median(dim=0).values, torch.tensor([-16.0, -8.0]), atol=0.5)


def test_another_threshold_needs_no_new_matches(
    tiny_model: D2Net, pair: list[SentPhoto], monkeypatch: pytest.MonkeyPatch
) -> None:
    for sent in pair:
        sent.extract(tiny_model, "deep")
    loose = match_best(*pair, "deep", 100, 5.0)
    monkeypatch.setattr("d2net.serving.photos.match", None)  # calling it would fail
    assert match_best(*pair, "deep", 100, 0.5)["inliers"] <= loose["inliers"]
    with pytest.raises(TypeError):
        match_best(*pair, "deep", 50, 0.5)


def test_photos_without_keypoints_have_no_matches(tiny_model: D2Net) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", SIZE).save(buffer, "PNG")
    black = SentPhoto.read(buffer.getvalue())
    assert len(black.extract(tiny_model, "deep")) == 0
    shown = match_best(black, black, "deep", 100, None)
    assert (shown["first"], shown["inliers"]) == ([], 0)
