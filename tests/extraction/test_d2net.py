"""The class D2Net as a user meets it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from d2net import D2Net, ExtractionSettings, ImageError, InputError, WeightsError
from d2net.networks.light import Light
from d2net.networks.weights import save_weights

from ..tiny import default_type, make_tiny_model

PHOTO = Path(__file__).parents[1] / "data" / "graf1.jpg"


@pytest.fixture(scope="module")
def shipped() -> D2Net:
    return D2Net.from_pretrained()


@pytest.fixture(scope="module")
def model() -> D2Net:
    return make_tiny_model()


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    return np.asarray(Image.open(PHOTO))[100:340, 200:520]


def test_features_of_a_photo(shipped: D2Net, photo: np.ndarray) -> None:
    features = shipped.extract(photo)
    assert 200 < len(features) < 2000
    assert features.image_size == (320, 240)
    assert (features.keypoints >= 0).all()
    assert (features.keypoints <= torch.tensor([319.0, 239.0])).all()
    assert (features.scores.diff() <= 0).all(), "best first"
    torch.testing.assert_close(features.descriptors.norm(dim=1), torch.ones(len(features)))


def test_path_pillow_array_and_tensor_agree(
    model: D2Net, photo: np.ndarray, tmp_path: Path
) -> None:
    Image.fromarray(photo).save(tmp_path / "a.png")
    tensor = torch.from_numpy(photo.copy()).permute(2, 0, 1)
    expected = model.extract(photo).keypoints
    for image in (tmp_path / "a.png", Image.fromarray(photo), tensor, tensor.float() / 255):
        torch.testing.assert_close(model.extract(image).keypoints, expected, rtol=0, atol=1e-3)


def test_budget_and_threshold(model: D2Net, photo: np.ndarray) -> None:
    everything = model.extract(photo)
    best = model.extract(photo, max_keypoints=50)
    torch.testing.assert_close(best.keypoints, everything.keypoints[:50])
    threshold = float(everything.scores[99])
    some = model.extract(photo, score_threshold=threshold)
    assert len(some) == 100
    assert len(model.extract(photo, score_threshold=1e9)) == 0


def test_original_with_a_budget_keeps_the_best_in_the_releases_order(
    model: D2Net, photo: np.ndarray
) -> None:
    everything = model.extract(photo, original=True)
    some = model.extract(photo, original=True, max_keypoints=50)
    best = everything.scores.argsort(descending=True)[:50].sort().values
    torch.testing.assert_close(some.keypoints, everything.keypoints[best])


def test_mask_bars_keypoints_before_the_budget(model: D2Net, photo: np.ndarray) -> None:
    mask = np.ones(photo.shape[:2], dtype=np.uint8)
    mask[:, :160] = 0
    features = model.extract(photo, mask=mask, max_keypoints=100)
    assert len(features) == 100
    assert float(features.keypoints[:, 0].min()) >= 159.5


def test_mask_counts_in_the_photo_also_when_it_is_reduced(model: D2Net, photo: np.ndarray) -> None:
    mask = np.ones(photo.shape[:2], dtype=np.uint8)
    mask[120:] = 0
    features = model.extract(photo, mask=mask, max_edge=200)
    assert len(features) > 20
    assert float(features.keypoints[:, 1].max()) < 119.5


def test_mask_of_another_size(model: D2Net, photo: np.ndarray) -> None:
    with pytest.raises(InputError, match="320 x 240"):
        model.extract(photo, mask=np.ones((10, 10), dtype=np.uint8))


def test_exif_orientation(model: D2Net, photo: np.ndarray, tmp_path: Path) -> None:
    """Keypoints are in the upright photo, or on request in the stored one."""
    stored = np.ascontiguousarray(np.rot90(photo))  # turned left; orientation 6 turns it right
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(stored).save(tmp_path / "turned.png", exif=exif)
    upright = model.extract(tmp_path / "turned.png")
    torch.testing.assert_close(upright.keypoints, model.extract(photo).keypoints)
    as_stored = model.extract(tmp_path / "turned.png", upright=False)
    assert as_stored.image_size == (240, 320)


def test_a_batch_equals_single_photos(model: D2Net, photo: np.ndarray) -> None:
    other = np.ascontiguousarray(photo[::-1])
    together = model.extract_batch([photo, other])
    for features, image in zip(together, (photo, other), strict=True):
        alone = model.extract(image)
        assert len(features) == len(alone)
        torch.testing.assert_close(features.keypoints, alone.keypoints, rtol=0, atol=1e-3)


def test_a_batch_may_be_a_generator(model: D2Net, photo: np.ndarray) -> None:
    mask = np.zeros(photo.shape[:2], bool)
    found = model.extract_batch((photo for _ in range(2)), masks=(m for m in (None, mask)))
    assert [len(features) for features in found] == [len(model.extract(photo)), 0]


def test_one_photo_is_no_batch(model: D2Net, photo: np.ndarray, tmp_path: Path) -> None:
    tensor = torch.from_numpy(photo.copy())
    for one in (photo, photo[..., 0], tensor, "a.png", tmp_path / "a.png", Image.fromarray(photo)):
        with pytest.raises(InputError, match="use extract for one photo"):
            model.extract_batch(one)


def test_a_batch_may_mix_sizes(model: D2Net, photo: np.ndarray) -> None:
    together = model.extract_batch([photo, photo[1:], photo])
    for features, image in zip(together, (photo, photo[1:], photo), strict=True):
        alone = model.extract(image)
        torch.testing.assert_close(features.keypoints, alone.keypoints, rtol=0, atol=1e-3)
    assert model.extract_batch([]) == []


def test_multi_scale_adds_levels(model: D2Net, photo: np.ndarray) -> None:
    features = model.extract(photo, multiscale=True)
    assert set(features.scales.tolist()) == {2.0, 1.0, 0.5}
    assert len(features) > len(model.extract(photo))
    # what a coarse level has found is not found again within half its cell
    for coarse, radius in ((2.0, 4.0), (1.0, 2.0)):
        kept = features.keypoints[features.scales == coarse]
        finer = features.keypoints[features.scales < coarse]
        assert float(torch.cdist(finer, kept, p=torch.inf).min()) > radius


def test_uncertainty_is_in_pixels_of_the_photo(model: D2Net, photo: np.ndarray) -> None:
    large = np.repeat(np.repeat(photo, 2, axis=0), 2, axis=1)
    plain, reduced = (model.extract(large, max_edge=edge) for edge in (None, 320))
    ratio = float(reduced.uncertainty.median() / plain.uncertainty.median())
    assert ratio == pytest.approx(2)


def test_lightglue_style(model: D2Net, photo: np.ndarray) -> None:
    image = torch.from_numpy(photo.copy()).permute(2, 0, 1)[None].float() / 255
    found = model({"image": image})
    expected = model.extract(photo)
    n = len(expected)
    assert found["keypoints"].shape == (1, n, 2)
    assert found["keypoint_scores"].shape == (1, n)
    assert found["descriptors"].shape == (1, n, expected.descriptors.shape[1])
    assert found["image_size"].tolist() == [[320, 240]]
    for key, value in expected.to_dict().items():
        torch.testing.assert_close(found[key], value, rtol=1e-4, atol=1e-3)


def test_lightglue_style_batch_is_padded(model: D2Net, photo: np.ndarray) -> None:
    image = torch.from_numpy(photo.copy()).permute(2, 0, 1).float() / 255
    found = model({"image": torch.stack([image, torch.zeros_like(image)])})
    counts = found["num_keypoints"].tolist()
    assert found["keypoints"].shape == (2, max(counts), 2)
    assert counts[0] > 200
    assert counts[1] == 0


@pytest.mark.parametrize(
    ("shape", "multiscale"),
    [((1, 1), True), ((1, 5000), True), ((5000, 1), False), ((7, 7), True), ((8, 8), True),
     ((20000, 40), False), ((16, 2000), True), ((12, 12), True)],
)  # fmt: skip
@pytest.mark.parametrize("original", [False, True])
def test_odd_shapes_are_no_error(
    tiny_model: D2Net, shape: tuple[int, int], multiscale: bool, original: bool
) -> None:
    image = np.random.default_rng(0).integers(0, 255, (*shape, 3)).astype(np.uint8)
    features = tiny_model.extract(
        image, multiscale=multiscale, original=original, max_edge=None, max_sum_edges=None
    )
    assert features.image_size == shape[::-1]
    assert torch.isfinite(features.keypoints).all()
    if min(shape) < 4:
        assert len(features) == 0


@pytest.mark.parametrize("shape", [(1, 5000), (20000, 40)])
@pytest.mark.parametrize("original", [False, True])
def test_odd_shapes_within_the_limits(
    tiny_model: D2Net, shape: tuple[int, int], original: bool
) -> None:
    tiny_model.extract(np.zeros((*shape, 3), dtype=np.uint8), original=original)


@pytest.mark.parametrize("value", [0, 255])
@pytest.mark.parametrize("multiscale", [False, True])
def test_a_photo_without_contrast_has_no_keypoints(
    model: D2Net, value: int, multiscale: bool
) -> None:
    flat = np.full((160, 200, 3), value, np.uint8)
    assert len(model.extract(flat, multiscale=multiscale)) == 0


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("weights", "original"), [("light", False), ("seasons", False), ("ots", True)]
)
def test_flat_areas_have_no_keypoints(
    photo: np.ndarray, weights: str, original: bool, precision: Any
) -> None:
    """A saturated sky: rounding must not pass for structure."""
    image = photo.copy()
    image[:, 60:] = 255
    model = D2Net.from_pretrained(weights, original=original, precision=precision)
    features = model.extract(image)
    beyond = features.keypoints[:, 0] > 60 + 49
    inside = beyond & (features.keypoints - 120 < torch.tensor([149.0, 69.0])).all(dim=1)
    inside &= features.keypoints[:, 1] > 50
    assert len(features) > 30
    assert int(inside.sum()) == 0


def test_nan_is_refused(model: D2Net) -> None:
    image = torch.zeros(3, 40, 40)
    image[1, 3, 4] = torch.nan
    with pytest.raises(InputError, match="NaN"):
        model.extract(image)
    with pytest.raises(InputError, match="NaN"):
        model({"image": image[None]})


def test_an_empty_batch_is_refused(model: D2Net) -> None:
    with pytest.raises(InputError, match="of shape"):
        model({"image": torch.zeros(0, 3, 40, 40)})


def test_unreadable_photo(model: D2Net, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="missing"):
        model.extract(tmp_path / "missing.jpg")


def test_wrong_names(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"max_keypoint.*known are"):
        D2Net.from_pretrained(max_keypoint=5)
    with pytest.raises(WeightsError):
        D2Net.from_pretrained("no-such-weights")
    with pytest.raises(InputError, match="device 'toaster'"):
        D2Net.from_pretrained(device="toaster")


@pytest.mark.parametrize(
    "bad", [{"max_edge": 0}, {"max_keypoints": -1}, {"precision": "float8"},
            {"score_threshold": float("nan")}, {"max_sum_edges": 2.5}]
)  # fmt: skip
def test_impossible_settings(bad: dict[str, object]) -> None:
    with pytest.raises(InputError, match=next(iter(bad))):
        ExtractionSettings.from_dict(bad)


def test_float16_needs_a_gpu(tiny_model: D2Net) -> None:
    with pytest.raises(InputError, match="float16 needs a GPU"):
        tiny_model.extract(np.zeros((40, 40, 3), np.uint8), precision="float16")


def test_bfloat16_finds_nearly_the_same(shipped: D2Net, photo: np.ndarray) -> None:
    exact, rough = shipped.extract(photo), shipped.extract(photo, precision="bfloat16")
    distance = torch.cdist(exact.keypoints, rough.keypoints).min(dim=1).values
    assert float((distance < 2).float().mean()) > 0.85


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["float32", "float16", "bfloat16"])
def test_gpu_finds_the_same(shipped: D2Net, photo: np.ndarray, precision: str) -> None:
    on_gpu = D2Net.from_pretrained(device="cuda").extract(photo, precision=precision)
    assert on_gpu.keypoints.device.type == "cuda"
    distance = (
        torch.cdist(shipped.extract(photo).keypoints, on_gpu.keypoints.cpu()).min(dim=1).values
    )
    assert float((distance < 2).float().mean()) > 0.85


def test_a_budget_chooses_among_all_candidates(model: D2Net, photo: np.ndarray) -> None:
    """Only the candidates that can matter are held in memory; a mask makes it hold all."""
    everywhere = np.ones(photo.shape[:2], np.uint8)
    few = model.extract(photo, max_keypoints=12)
    expected = model.extract(photo, max_keypoints=12, mask=everywhere)
    assert len(model.extract(photo, max_keypoints=None)) > 2 * 12
    torch.testing.assert_close(few.keypoints, expected.keypoints)
    torch.testing.assert_close(few.descriptors, expected.descriptors)


def test_a_wrong_call_says_what_to_give(tiny_model: D2Net) -> None:
    image = torch.rand(1, 3, 64, 64)
    for wrong in (image, {"img": image}, {"image": [image[0], image[0, :, 8:]]}):
        with pytest.raises(InputError, match="one tensor B x 3 x H x W"):
            tiny_model(wrong)
    for wrong in (image.to_sparse(), image.to("meta")):
        with pytest.raises(InputError, match="sparse or meta"):
            tiny_model({"image": wrong})
    with pytest.raises(InputError, match="precision='bfloat16'"):
        copy.deepcopy(tiny_model).bfloat16().extract(np.zeros((64, 64, 3), np.uint8))
    with pytest.raises(InputError, match="'meta' holds no values"):
        copy.deepcopy(tiny_model).to("meta").extract(np.zeros((64, 64, 3), np.uint8))


def test_the_score_map_of_light_covers_the_photo_and_no_more() -> None:
    light = D2Net.from_pretrained("light")
    photo = np.full((225, 225, 3), 128, np.uint8)
    photo[200:206, 210:216] = 255
    scores = light.score_map(photo)
    assert scores.shape == (225, 225)
    y, x = divmod(int(scores.argmax()), 225)
    assert 195 <= y <= 210
    assert 205 <= x <= 220


@pytest.mark.parametrize("default", [torch.float64, torch.float16])
def test_the_default_type_and_device_of_torch_do_not_matter(
    tiny_model: D2Net, photo: np.ndarray, tmp_path: Path, default: torch.dtype
) -> None:
    save_weights(tmp_path / "w.safetensors", Light(), {"name": "w"})

    def results(light: D2Net | None = None) -> list[torch.Tensor]:
        found = tiny_model.extract(photo, multiscale=True, turns=3)
        light = light or D2Net.from_pretrained(tmp_path / "w.safetensors")
        image = torch.full((1, 3, 64, 64), 0.5, dtype=torch.float32, device="cpu")
        by_light = light.extract(photo)
        return [
            found.keypoints,
            found.descriptors,
            by_light.keypoints,
            by_light.descriptors,
            light({"image": image})["keypoints"],
            light.score_map(photo),
        ]

    torch.manual_seed(0)
    expected = results()
    with default_type(default):
        found = results()
    torch.testing.assert_close(found, expected)
    light = D2Net.from_pretrained(tmp_path / "w.safetensors")
    with torch.device("meta"):
        found = results(light)
    torch.testing.assert_close(found, expected)
    with torch.autocast("cpu", torch.bfloat16):  # the setting `precision` counts
        torch.testing.assert_close(results(), expected)


def test_features_of_loaded_parameters_are_not_those_of_the_old_ones() -> None:
    model = D2Net.from_pretrained("light")
    packaged, state = model.descriptor_id(), model.state_dict()
    model.load_state_dict(state)
    assert model.descriptor_id() == packaged  # nothing has changed
    model.load_state_dict({name: 1.01 * value for name, value in state.items()})
    assert model.descriptor_id().startswith("loaded ")
    half = D2Net.from_pretrained("light")
    del state[next(iter(state))]
    with pytest.raises(RuntimeError):  # after the others have been loaded
        half.load_state_dict({name: 1.01 * value for name, value in state.items()})
    assert half.descriptor_id() != packaged
