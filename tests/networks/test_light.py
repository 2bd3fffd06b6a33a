"""The network light: one extraction path with VGG, tiles, files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from d2net import D2Net, InputError, match
from d2net.extraction.keypoints import find_keypoints
from d2net.networks.detection import largest_around
from d2net.networks.light import Light, LightSettings, sample_centred
from d2net.networks.weights import load_network, save_weights
from d2net.settings import ExtractionSettings

PHOTO = Path(__file__).parents[1] / "data" / "graf1.jpg"


@pytest.fixture(scope="module")
def light() -> Light:
    torch.manual_seed(0)
    network = Light(LightSettings(channels=(8, 8, 8, 8, 8), neck=16, hidden=16, dimension=12))
    network.train()
    for _ in range(3):  # so that batch normalisation has seen data
        network.compute_maps(torch.randint(0, 256, (2, 64, 96, 3)), torch.float32)
    return network.eval()


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    return np.asarray(Image.open(PHOTO))[100:337, 150:463]


def test_features_of_a_photo(light: Light, photo: np.ndarray) -> None:
    model = D2Net(light)
    features = model.extract(photo, max_keypoints=300)
    assert len(features) == 300
    assert features.descriptors.shape == (300, 12)
    torch.testing.assert_close(features.descriptors.norm(dim=1), torch.ones(300))
    assert (features.scores.diff() <= 0).all()
    mask = np.zeros(photo.shape[:2], np.uint8)
    mask[:, 160:] = 1
    assert float(model.extract(photo, mask=mask).keypoints[:, 0].min()) >= 159.5
    levels = model.extract(photo, multiscale=True)
    assert set(levels.scales.tolist()) == {2.0, 1.0, 0.5}


@pytest.mark.parametrize("weights", ["light", "light+seasons"])
def test_multiscale_bridges_a_zoom(weights: str) -> None:
    """Coarse keypoints once suppressed most of the fine ones."""
    photo = Image.open(PHOTO).convert("RGB").resize((480, 384))
    half = photo.resize((240, 192), Image.Resampling.LANCZOS)
    right = {}
    for multiscale in (False, True):
        model = D2Net.from_pretrained(weights, multiscale=multiscale, max_keypoints=1500)
        a, b = (model.extract(image) for image in (photo, half))
        of_a, of_b = match(a, b).points(a, b)
        right[multiscale] = int((abs((of_a + 0.5) / 2 - 0.5 - of_b).max(axis=1) <= 2).sum())
    assert right[True] > 1.5 * right[False]


def test_bfloat16_finds_nearly_the_same(light: Light, photo: np.ndarray) -> None:
    for network in (light, light.for_inference()):
        exact, rough = (
            D2Net(network).extract(photo, precision=precision, max_keypoints=None)
            for precision in ("float32", "bfloat16")
        )
        distance = torch.cdist(exact.keypoints, rough.keypoints).min(dim=1).values
        assert float((distance < 1.5).float().mean()) > 0.5  # ties of an untrained network move
        assert rough.descriptors.dtype == torch.float32


def test_folding_the_normalisation_changes_nothing(light: Light, photo: np.ndarray) -> None:
    images = torch.from_numpy(photo.copy())[None].float()
    with torch.no_grad():
        for a, b in zip(
            light.compute_maps(images, torch.float32),
            light.for_inference().compute_maps(images, torch.float32),
            strict=True,
        ):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_wide_convolutions_give_the_same_by_another_algorithm(photo: np.ndarray) -> None:
    """Only the wide blocks of the network with folded normalisation use it."""
    torch.manual_seed(0)
    network = Light().eval()
    images = torch.from_numpy(photo.copy())[None].float()
    with torch.no_grad():
        expected = network.compute_maps(images, torch.float32)
        found = network.for_inference().compute_maps(images, torch.float32)
    for a, b in zip(expected, found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("multiscale", [False, True])
def test_tiles_equal_the_whole(light: Light, photo: np.ndarray, multiscale: bool) -> None:
    large = np.asarray(Image.open(PHOTO))[:400, :480]
    settings = light.resolve(ExtractionSettings(multiscale=multiscale))
    tensor = torch.from_numpy(large.copy())[None]
    with torch.no_grad():
        whole, tiled = (
            find_keypoints(light, tensor, settings, cells_per_tile=cells)[0]
            for cells in (10**9, 3500 if multiscale else 1200)
        )
    # Rounding decides about a keypoint just at the radius of suppression.
    assert len(set(whole.ranks.tolist()) ^ set(tiled.ranks.tolist())) <= (2 if multiscale else 0)
    whole = whole[torch.isin(whole.ranks, tiled.ranks)]
    tiled = tiled[torch.isin(tiled.ranks, whole.ranks)]
    assert float((whole.positions - tiled.positions).abs().max()) < 1e-3
    torch.testing.assert_close(whole.scores, tiled.scores, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(whole.descriptors, tiled.descriptors, rtol=0, atol=1e-3)


def test_weights_come_back_from_a_file(light: Light, photo: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "small.safetensors"
    save_weights(path, light, {"name": "small"})
    network, weights = load_network(path)
    assert weights["name"] == "small"
    a, b = D2Net(light).extract(photo), D2Net(network).extract(photo)
    assert len(a) == pytest.approx(len(b), rel=0.05)  # half precision moves scores a little
    with pytest.raises(InputError, match="cannot reproduce the 2019 release"):
        D2Net.from_pretrained(path, original=True)


def test_the_largest_value_around() -> None:
    values = torch.rand(23, 31)
    expected = torch.nn.functional.max_pool2d(values[None, None], 5, 1, 2)[0, 0]
    assert torch.equal(largest_around(values, 2), expected)


def test_samples_lie_at_pixels_whatever_the_stride() -> None:
    x = torch.arange(64.0).expand(1, 1, 64, 64)
    positions = torch.tensor([[[20.25, 31.0], [9.5, 40.0]]])
    for stride in (2, 4, 8):
        maps = torch.nn.functional.avg_pool2d(x, stride)
        torch.testing.assert_close(
            sample_centred(maps, positions, stride)[0, :, 0], positions[0, :, 0]
        )


@pytest.mark.parametrize("widths", [{"dimension": 0}, {"channels": [16, 32, 0, 128, 128]}])
def test_impossible_widths(widths: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="at least 1"):
        LightSettings.from_dict(widths)
