"""Light and a VGG together: keypoints of the first, descriptors of both."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from d2net import D2Net, InputError, WeightsError
from d2net.extraction.keypoints import find_keypoints
from d2net.networks.combined import Combined
from d2net.networks.light import Light, LightSettings
from d2net.networks.vgg import VGG
from d2net.networks.weights import file_names, load_network, load_weights, save_weights
from d2net.settings import ExtractionSettings

from ..tiny import DATA, make_tiny_network


@pytest.fixture(scope="module")
def network() -> Combined:
    torch.manual_seed(0)
    light = Light(LightSettings(channels=(8, 8, 8, 8, 8), neck=16, hidden=16, dimension=12))
    return Combined(light.for_inference(), VGG(make_tiny_network()))


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    return np.asarray(Image.open(DATA / "graf1.jpg"))[:300, :380]


def test_keypoints_are_lights_and_descriptors_those_of_both(
    network: Combined, photo: np.ndarray
) -> None:
    found = D2Net(network).extract(photo, max_keypoints=200)
    alone = D2Net(network.light).extract(photo, max_keypoints=200)
    assert torch.equal(found.keypoints, alone.keypoints)
    assert torch.equal(found.uncertainty, alone.uncertainty)
    maps = network.vgg.compute_maps(torch.from_numpy(photo.copy())[None].float(), torch.float32)
    of_vgg = network.vgg.describe(tuple(part[0] for part in maps), found.keypoints, "fused")
    expected = torch.cat([alone.descriptors, of_vgg], dim=1) / 2**0.5
    torch.testing.assert_close(found.descriptors, expected, rtol=1e-4, atol=1e-4)
    assert found.descriptors.shape[1] == network.descriptor_lengths["combined"]


@torch.no_grad()
def test_tiles_equal_the_whole(network: Combined, photo: np.ndarray) -> None:
    tensor = torch.from_numpy(photo.copy())[None]
    settings = network.resolve(ExtractionSettings())
    whole, tiled = (
        find_keypoints(network, tensor, settings, cells_per_tile=cells)[0] for cells in (10**9, 900)
    )
    assert torch.equal(whole.ranks, tiled.ranks)
    torch.testing.assert_close(whole.descriptors, tiled.descriptors, rtol=0, atol=1e-3)


@pytest.mark.parametrize("size", [(5, 60), (60, 7), (9, 9)])
def test_small_photos(network: Combined, size: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (*size, 3), np.uint8)
    found = D2Net(network).extract(pixels, multiscale=True)
    assert found.descriptors.shape == (len(found), network.descriptor_lengths["combined"])


def test_loading_by_two_names(network: Combined, tmp_path: Path) -> None:
    path = tmp_path / "small.safetensors"
    save_weights(path, network.light, {"name": "small"})
    model = D2Net.from_pretrained(f"{path}+seasons")
    assert model.weights["name"] == "small+seasons"
    alone = [load_weights(file).sha256 for file in (path, "seasons")]
    assert model.weights["sha256"] not in alone
    assert model.network.descriptor_lengths == {"combined": 12 + 384}
    with pytest.raises(WeightsError, match="light and of a VGG"):
        load_network(f"seasons+{path}")
    with pytest.raises(InputError, match="original"):
        model.extract(np.zeros((40, 40, 3), np.uint8), original=True)


def test_a_path_may_contain_the_sign_that_joins(network: Combined, tmp_path: Path) -> None:
    path = tmp_path / "a+b" / "small.safetensors"
    path.parent.mkdir()
    save_weights(path, network.light, {"name": "small"})
    assert load_network(path)[1]["name"] == "small"
    assert file_names(f"light+{path}") == ["light", str(path)]
    with pytest.raises(WeightsError, match=r"a\+b/none\.safetensors"):
        load_network(path.with_stem("none"))


def test_the_default_is_light_and_seasons() -> None:
    model = D2Net.from_pretrained()
    assert isinstance(model.network, Combined)
    assert model.weights["name"] == "light+seasons"
    assert model.descriptor_id().endswith(" combined")
    with pytest.raises(InputError, match="cannot reproduce the 2019 release"):
        model.resolve(original=True)
    paper = D2Net.from_pretrained(original=True)
    assert isinstance(paper.network, VGG)
    assert paper.weights["name"] == "ots"
