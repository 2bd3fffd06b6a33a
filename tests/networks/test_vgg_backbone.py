"""The backbone: golden maps, both strides, and the fast path against plain torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from d2net.networks.catalogue import CAFFE
from d2net.networks.detection import detect, soft_scores
from d2net.networks.vgg_backbone import RECEPTIVE_FIELD, VGGBackbone
from d2net.networks.weights import load_network

from ..release_outputs import released


@pytest.fixture(scope="module")
def vgg() -> VGGBackbone:
    return load_network("ots")[0].backbone


def normalised(pixels: np.ndarray) -> Tensor:
    return CAFFE(torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float())


@pytest.fixture(scope="module")
def golden_image() -> Tensor:
    return normalised(np.asarray(Image.open(released("tall_96x301.png")).convert("RGB")))


def test_map_is_the_releases(vgg: VGGBackbone, golden_image: Tensor) -> None:
    golden = np.load(released("tall_96x301.dense.npz"))
    maps = vgg.extract(golden_image)[0][0]
    largest = golden["max_over_channels"].max()
    assert maps.shape == (74, 23, 512)
    difference = maps.amax(dim=2).numpy() - golden["max_over_channels"]
    assert np.abs(difference).max() < 1e-5 * largest
    assert (maps.argmax(dim=2).numpy() == golden["argmax"]).mean() > 0.999
    channels = maps[:, :, golden["channels"]].permute(2, 0, 1).numpy()
    assert np.abs(channels - golden["features"]).max() < 1e-3 * largest  # stored in half precision


def test_hard_detections_are_the_releases(vgg: VGGBackbone, golden_image: Tensor) -> None:
    golden = np.load(released("tall_96x301.dense.npz"))["hard_detections"]
    found = detect(vgg.extract(golden_image)[0][0], original=True)
    cells = torch.cat([found.channels[:, None], found.anchors.flip(1)], dim=1).tolist()
    assert sorted(map(tuple, cells)) == sorted(map(tuple, golden.tolist()))


@pytest.mark.parametrize("pair", [0, 1])
@pytest.mark.parametrize("which", [1, 2])
def test_training_stride_and_soft_scores_are_the_releases(
    vgg: VGGBackbone, pair: int, which: int
) -> None:
    golden = np.load(released(f"loss_{pair}.npz"))
    with torch.no_grad():
        maps = vgg(normalised(golden[f"image{which}"]), stride=8)
    assert maps.shape == (1, 512, 32, 32)
    scores = soft_scores(maps)[0].numpy()
    np.testing.assert_allclose(scores, golden[f"scores{which}"], rtol=1e-4)


@pytest.mark.parametrize("size", [(313, 237), (96, 96), (40, 33), (17, 64), (8, 8)])
def test_fast_path_equals_plain_torch(vgg: VGGBackbone, size: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(size[0])
    images = torch.randn(1, 3, *size, generator=generator) * 60
    with torch.no_grad():
        plain = vgg(images, stride=4).relu().permute(0, 2, 3, 1)
    fast = vgg.extract(images)[0]
    assert fast.shape == (1, size[0] // 4 - 1, size[1] // 4 - 1, 512)
    assert float((fast - plain).abs().max()) < 1e-5 * float(plain.max())


def test_the_shallow_map_is_conv3_3_before_its_pool(vgg: VGGBackbone) -> None:
    images = torch.randn(1, 3, 61, 90) * 60
    _, shallow = vgg.extract(images)
    x = images
    with torch.no_grad():
        for stage in vgg.stages[:3]:
            x = x if stage is vgg.stages[0] else torch.nn.functional.max_pool2d(x, 2, 2)
            for name in stage:
                x = vgg.convolution(name)(x).relu()
    assert shallow.shape == (1, 15, 22, 256)
    assert float((shallow - x.permute(0, 2, 3, 1)).abs().max()) < 1e-5 * float(x.max())


def test_batch_equals_single_images(vgg: VGGBackbone) -> None:
    images = torch.randn(2, 3, 61, 90) * 60
    together = vgg.extract(images)[0]
    for i in range(2):
        alone = vgg.extract(images[i : i + 1])[0][0]
        assert float((together[i] - alone).abs().max()) < 1e-5 * float(alone.max())


def test_bfloat16_is_close(vgg: VGGBackbone, golden_image: Tensor) -> None:
    exact = vgg.extract(golden_image)[0]
    rough = vgg.extract(golden_image.bfloat16())[0].float()
    assert float((rough - exact).norm() / exact.norm()) < 0.03


def test_images_without_a_cell(vgg: VGGBackbone) -> None:
    assert vgg.extract(torch.zeros(2, 3, 1, 50))[0].shape == (2, 0, 11, 512)
    assert vgg.extract(torch.zeros(1, 3, 7, 7))[0].shape == (1, 0, 0, 512)
    assert vgg.extract(torch.zeros(1, 3, 7, 7))[1].shape == (1, 1, 1, 256)


def test_receptive_field(tiny_network: VGGBackbone) -> None:
    """A change of a pixel shows in exactly the cells whose field holds it."""
    images = torch.rand(1, 3, 160, 160)
    before = tiny_network(images, stride=4)
    pixel = 81
    images[:, :, pixel, :] += 5
    changed = (tiny_network(images, stride=4) != before).any(dim=3)[0].any(dim=0).nonzero()[:, 0]
    low, high = RECEPTIVE_FIELD
    expected = [c for c in range(before.shape[2]) if 4 * c + low <= pixel <= 4 * c + high]
    assert changed.tolist() == expected


def test_new_weights_take_effect_at_once(tiny_network: VGGBackbone) -> None:
    """Winograd's transformed weights are kept, but never beyond a change of the weights."""
    backbone = VGGBackbone(((4, 4), (4, 4), (4, 4, 256), (256, 256)))
    images = torch.randn(1, 3, 40, 40)
    backbone.extract(images)
    with torch.no_grad():
        backbone.convolution("conv4_2").weight.mul_(0.5)
        plain = backbone(images, stride=4).relu().permute(0, 2, 3, 1)
    torch.testing.assert_close(backbone.extract(images)[0], plain, rtol=1e-4, atol=1e-5)
