"""Arrays and tensors to pixels, size limits, resizing, masks."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from d2net.errors import ImageError, InputError
from d2net.geometry import coordinates
from d2net.io.images import (
    has_low_contrast,
    limited_size,
    read_image,
    read_mask,
    resize,
    resize_like_release,
    stretch_contrast,
    to_pixels,
)

from ..release_outputs import released

DATA = Path(__file__).parent.parent / "data"
ORIENTATION = 0x0112


@pytest.fixture
def rgb():
    return np.random.default_rng(7).integers(0, 256, (11, 17, 3), dtype=np.uint8)


# --- to_pixels -------------------------------------------------------------------------------


def test_paths_and_pillow_images_are_read(rgb, tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(rgb).save(path)
    for image in (path, str(path), Image.open(path), Image.fromarray(rgb)):
        np.testing.assert_array_equal(to_pixels(image), rgb)
    with pytest.raises(ImageError, match=r"none\.png"):
        to_pixels(tmp_path / "none.png")


@pytest.mark.parametrize("kind", ["png", "jpg", "tif", "ppm"])
def test_a_file_in_memory_is_read_like_one_on_the_disk(rgb, tmp_path, kind):
    path = tmp_path / f"a.{kind}"
    Image.fromarray(rgb).save(path)
    file = io.BytesIO(path.read_bytes())
    for _ in range(2):
        np.testing.assert_array_equal(read_image(file), read_image(path))
    with pytest.raises(ImageError, match="cannot read the photo: the file is empty"):
        read_image(io.BytesIO())


@pytest.mark.parametrize("kind", ["png", "tif", "ppm"])
def test_larger_files_than_asked_for_are_refused(rgb, tmp_path, kind):
    path = tmp_path / f"a.{kind}"
    Image.fromarray(rgb).save(path)
    assert read_image(path, max_pixels=11 * 17).shape == rgb.shape
    with pytest.raises(ImageError, match="more than 0 megapixels"):
        read_image(path, max_pixels=11 * 17 - 1)


def test_upright_is_passed_on(rgb, tmp_path):
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    Image.fromarray(rgb).save(tmp_path / "a.png", exif=exif)
    assert to_pixels(tmp_path / "a.png").shape == (17, 11, 3)
    np.testing.assert_array_equal(to_pixels(tmp_path / "a.png", upright=False), rgb)


def test_uint8_arrays_are_taken_as_they_are(rgb):
    assert np.shares_memory(to_pixels(rgb), rgb)
    np.testing.assert_array_equal(to_pixels(rgb), rgb)
    np.testing.assert_array_equal(to_pixels(np.dstack([rgb, rgb[:, :, 0]])), rgb)
    grey = np.stack([rgb[:, :, 0]] * 3, axis=2)
    np.testing.assert_array_equal(to_pixels(rgb[:, :, 0]), grey)
    np.testing.assert_array_equal(to_pixels(rgb[:, :, :1]), grey)


def test_other_arrays_are_scaled_to_255(rgb):
    deep = rgb.astype(np.uint16) * 257
    assert to_pixels(deep).dtype == np.float32
    np.testing.assert_array_equal(to_pixels(deep), rgb)
    np.testing.assert_array_equal(to_pixels(deep.astype(">u2")), rgb)
    for kind, tolerance in ((np.float64, 1e-4), (np.float32, 1e-4), (np.float16, 0.1)):
        pixels = to_pixels((rgb / 255).astype(kind))
        assert pixels.dtype == np.float32
        np.testing.assert_allclose(pixels, rgb, atol=tolerance)
    bits = rgb[:, :, 0] > 99
    assert to_pixels(bits).dtype == np.uint8
    np.testing.assert_array_equal(to_pixels(bits)[:, :, 2], bits * 255)


def test_small_overshoots_of_floats_are_clipped():
    assert to_pixels(np.array([[-0.0009, 1.0009]]))[0, :, 0].tolist() == [0, 255]


@pytest.mark.parametrize(
    "tensor",
    [
        lambda rgb: torch.from_numpy(rgb).permute(2, 0, 1),
        lambda rgb: torch.from_numpy(rgb).permute(2, 0, 1)[None],
        lambda rgb: torch.from_numpy(rgb / 255).permute(2, 0, 1),
        lambda rgb: (torch.from_numpy(rgb).permute(2, 0, 1)[None] / 255).requires_grad_(),
    ],
)
def test_tensors_have_channels_first(rgb, tensor):
    pixels = to_pixels(tensor(rgb))
    np.testing.assert_allclose(pixels, rgb, atol=1e-4)


def test_grey_and_bfloat16_tensors():
    grey = torch.tensor([[[0.0, 0.5], [1.0, 0.25]]])
    truth = np.stack([[[0, 127.5], [255, 63.75]]] * 3, axis=-1)
    np.testing.assert_allclose(to_pixels(grey), truth)
    np.testing.assert_allclose(to_pixels(grey[None].bfloat16()), truth)


def test_pixels_can_be_given_to_torch(rgb, tmp_path):
    """torch warns of arrays that cannot be written, and fails on negative strides."""
    Image.fromarray(rgb).save(tmp_path / "a.png")
    frozen = rgb.copy()
    frozen.flags.writeable = False
    exif = Image.Exif()
    exif[ORIENTATION] = 3
    Image.fromarray(rgb).save(tmp_path / "b.png", exif=exif)
    for image in (frozen, rgb[:, :, ::-1], tmp_path / "a.png", tmp_path / "b.png"):
        torch.from_numpy(to_pixels(image))


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (np.zeros((5, 6, 2), np.uint8), "H x W"),
        (np.zeros((3, 50, 60), np.uint8), "H x W"),
        (np.zeros((1, 5, 6, 3), np.uint8), "H x W"),
        (np.zeros(5, np.uint8), "H x W"),
        (np.zeros((0, 5, 3), np.uint8), "at least one pixel"),
        (np.zeros((5, 0), np.uint8), "at least one pixel"),
        (np.zeros((5, 6, 3), np.int64), "int64"),
        (np.zeros((5, 6, 3), np.complex64), "complex64"),
        (np.zeros((5, 6, 3), object), "object"),
        (np.full((5, 6), np.nan), "NaN"),
        (np.full((5, 6), np.inf), "infinite"),
        (np.full((5, 6), -0.1), "from -0.1 to -0.1; expected 0 to 1"),
        (torch.zeros(5, 6, 3), "3 x H x W"),
        (torch.zeros(2, 3, 5, 6), "batch dimension of one"),
        (torch.zeros(5, 6), "3 x H x W"),
        (torch.zeros(3, 0, 6), "at least one pixel"),
        (torch.zeros(3, 5, 6, dtype=torch.int64), "int64"),
        (torch.full((3, 5, 6), 70000.0), "from 70000 to 70000"),
        (torch.full((3, 5, 6), torch.nan), "NaN"),
        (torch.zeros(3, 5, 6).to_sparse(), "sparse"),
        (torch.zeros(3, 5, 6, device="meta"), "meta"),
        (None, "not NoneType"),
        (b"a.jpg", "not bytes"),
        ([[1, 2], [3, 4]], "not list"),
    ],
)
def test_unsuitable_input_is_refused(image, expected):
    with pytest.raises(InputError, match=expected):
        to_pixels(image)


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 3), (2, 3, 4)])
@pytest.mark.parametrize("masked", [False, True])
def test_the_advice_for_masked_arrays_works(shape, masked):
    image = np.ma.MaskedArray(np.full(shape, 0.5))
    if masked:
        image[(0,) * len(shape)] = np.ma.masked  # of a colour photo, one channel
    with pytest.raises(InputError, match="masked arrays") as refused:
        to_pixels(image)
    allowed = eval(str(refused.value).partition("mask=")[2], {"np": np, "image": image})
    found = read_mask(allowed, (3, 2))
    assert found[0].tolist() == [not masked, True, True]
    assert found[1].all()
    with pytest.raises(InputError, match=r"mask\.filled"):
        read_mask(image, (3, 2))


# --- Sizes and resizing ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "limits", "expected"),
    [
        ((800, 640), (1600, 2800), (800, 640)),
        ((4000, 3000), (1600, 2800), (1600, 1200)),
        ((3000, 4000), (1600, 2800), (1200, 1600)),
        ((3000, 3000), (1600, 2800), (1400, 1400)),
        ((4000, 3600), (1600, 2800), (1474, 1326)),
        ((4000, 3000), (None, None), (4000, 3000)),
        ((4000, 3000), (None, 700), (400, 300)),
        ((4000, 3000), (2000, None), (2000, 1500)),
        ((20000, 4), (1600, 2800), (1600, 1)),
        ((1, 1), (1600, 2800), (1, 1)),
    ],
)
def test_limited_size(size, limits, expected):
    assert limited_size(size, *limits) == expected


@given(
    st.tuples(st.integers(1, 10**5), st.integers(1, 10**5)),
    st.integers(1, 5000),
    st.integers(2, 9000),
)
def test_limited_size_meets_its_limits_and_keeps_the_shape(size, max_edge, max_sum_edges):
    new = limited_size(size, max_edge, max_sum_edges)
    assert max(new) <= max(max_edge, 1)
    assert sum(new) <= max_sum_edges + 1  # each edge is rounded on its own
    factor = max(new) / max(size)
    assert all(abs(n - s * factor) <= 1 for n, s in zip(new, size, strict=True))


@pytest.mark.parametrize("size", [(40, 36), (13, 11), (96, 50), (64, 48)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_resize_moves_content_as_coordinates_say(size, dtype):
    """A ramp stays a ramp: the value at a new pixel is the old position of its centre."""
    x, y = np.meshgrid(np.arange(64), np.arange(48))
    ramps = np.stack([x * 3.0, y * 3.0, x + y], axis=2).astype(dtype)
    resized = resize(ramps, size)
    assert resized.shape == (size[1], size[0], 3)
    assert resized.dtype == dtype
    grid = np.stack(np.meshgrid(np.arange(size[0]), np.arange(size[1])), axis=2).reshape(-1, 2)
    old = coordinates.resize((64, 48), size).inverse()(torch.tensor(grid, dtype=torch.float64))
    old = old.numpy().reshape(size[1], size[0], 2)
    inner = ((old > 6) & (old < [57, 41])).all(axis=2)  # the filter is cut off at the border
    assert inner.sum() > 20
    # Pillow's filter weights, sampled at whole pixels, swing about the true place a little.
    errors = resized[inner][:, :2] / 3 - old[inner]
    assert np.abs(errors).max() < (0.07 if dtype == np.float32 else 0.5)
    assert np.abs(errors.mean(axis=0)).max() < (0.002 if dtype == np.float32 else 0.1)


def test_resize_does_not_alias():
    board = (np.indices((64, 64)).sum(axis=0) % 2 * 255).astype(np.uint8)
    small = resize(np.stack([board] * 3, axis=2), (16, 16))
    assert np.abs(small.astype(int) - 127).max() <= 2


def test_resize_of_float_pixels_agrees_with_bytes_and_keeps_fractions():
    photo = read_image(DATA / "graf1.jpg")
    exact = resize(photo.astype(np.float32), (300, 240))
    assert np.abs(exact - resize(photo, (300, 240))).max() < 1.1
    faint = resize(np.full((20, 20, 3), 100.25, np.float32), (9, 7))
    np.testing.assert_allclose(faint, 100.25, rtol=1e-6)


def test_resize_to_the_same_size_gives_the_input(rgb):
    assert resize(rgb, (17, 11)) is rgb


@pytest.mark.parametrize(
    ("source", "target"), [((1, 1), (3, 2)), ((1, 5000), (1, 1600)), ((20000, 40), (1600, 3))]
)
def test_resize_of_extreme_shapes(source, target):
    pixels = np.full((source[1], source[0], 3), 77, np.uint8)
    assert (resize(pixels, target) == 77).all()
    assert resize(pixels, target).shape == (target[1], target[0], 3)


# --- The release's limits --------------------------------------------------------------------


def test_release_rounds_sizes_down():
    photo = read_image(released("graf_odd_313x237.png"))
    resized = resize_like_release(photo, 200, 2800)
    assert resized.shape == (151, 200, 3)  # 237 * 200 / 313 = 151.4
    truth = Image.open(released("graf_odd_313x237.png")).resize((200, 151), Image.BILINEAR)
    np.testing.assert_array_equal(resized, np.asarray(truth))
    # 313 * (100 / 237) is 132.07; 0.7 of an edge of 10 is 7, whatever floats make of it.
    assert resize_like_release(photo, None, 300).shape[:2] == (int(237 * 300 / 550), 170)


def two_tones(height, width):
    pixels = np.full((height, width, 3), 50, np.uint8)
    pixels[:, width // 2 :] = 150
    return pixels


def test_release_stretches_the_contrast_in_its_second_resize():
    pixels = two_tones(160, 200)
    once = resize_like_release(pixels, 100, 2800)
    assert once.shape == (80, 100, 3)
    assert (once[0, 0, 0], once[0, -1, 0]) == (50, 150)
    only_sum = resize_like_release(pixels, 1600, 180)
    assert only_sum.shape == (80, 100, 3)
    np.testing.assert_array_equal(once, only_sum)
    twice = resize_like_release(pixels, 100, 120)
    assert twice.shape == (53, 66, 3)  # 180 -> 120: 53.3 and 66.7
    assert (twice[0, 0, 0], twice[0, -1, 0]) == (0, 255)


def test_release_stretches_deep_photos_in_the_first_resize():
    pixels = two_tones(160, 200).astype(np.float32) / 2
    resized = resize_like_release(pixels, 100, 2800)
    assert resized.dtype == np.uint8
    assert (resized[0, 0, 0], resized[0, -1, 0]) == (0, 255)


def test_release_leaves_what_is_within_the_limits(rgb):
    assert resize_like_release(rgb, 17, 28) is rgb
    assert resize_like_release(rgb, None, None) is rgb
    flat = np.full((300, 300, 3), 9, np.float32)
    assert (resize_like_release(flat, 100, 50) == 0).all()
    assert resize_like_release(np.zeros((1, 5000, 3), np.uint8), 1600, 2800).shape == (1, 1600, 3)


# --- Masks -----------------------------------------------------------------------------------


@pytest.fixture
def allowed():
    mask = np.zeros((11, 17), bool)
    mask[3:, 5:] = True
    return mask


@pytest.mark.parametrize("value", [1, 255])
def test_mask_files_of_many_kinds(allowed, tmp_path, value):
    grey = Image.fromarray(allowed.astype(np.uint8) * value)
    blue = Image.fromarray(np.dstack([np.zeros((11, 17, 2), np.uint8), np.asarray(grey)]))
    opaque = grey.copy()
    opaque.putalpha(255)
    palette = Image.fromarray(allowed.astype(np.uint8), "P")
    palette.putpalette([0, 0, 0, 0, value, 0])
    labels = Image.fromarray(allowed.astype(np.int32) * (value + 100_000))
    fraction = Image.fromarray(allowed.astype(np.float32) * -value)
    for number, mask in enumerate((grey, blue, opaque, palette, labels, fraction)):
        path = tmp_path / f"{number}.tif"
        mask.save(path)
        np.testing.assert_array_equal(read_mask(path, (17, 11)), allowed)
        np.testing.assert_array_equal(read_mask(str(path), (17, 11)), allowed)
        np.testing.assert_array_equal(read_mask(mask, (17, 11)), allowed)


def test_mask_arrays(allowed):
    colours = np.dstack([allowed, np.zeros_like(allowed), allowed])
    with_alpha = np.dstack([colours, np.ones_like(allowed)])
    depths = np.where(allowed, 2.5, np.nan)
    for array in (allowed, allowed * 0.5, depths, allowed[:, :, None], colours, with_alpha):
        result = read_mask(array, (17, 11))
        assert result.dtype == bool
        np.testing.assert_array_equal(result, allowed)


def test_mask_is_turned_like_its_photo(allowed, tmp_path):
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    Image.fromarray(allowed).save(tmp_path / "m.png", exif=exif)
    np.testing.assert_array_equal(read_mask(tmp_path / "m.png", (11, 17)), np.rot90(allowed, -1))
    np.testing.assert_array_equal(read_mask(tmp_path / "m.png", (17, 11), upright=False), allowed)


def test_unsuitable_masks_are_refused(allowed, tmp_path):
    Image.fromarray(allowed).save(tmp_path / "m.png")
    with pytest.raises(InputError, match=r"m\.png' has 17 x 11 .* its photo has 11 x 17"):
        read_mask(tmp_path / "m.png", (11, 17))
    with pytest.raises(InputError, match="17 x 11"):
        read_mask(allowed, (16, 11))
    with pytest.raises(InputError, match="shape"):
        read_mask(np.ones(5), (5, 1))
    with pytest.raises(InputError, match="not NoneType"):
        read_mask(None, (5, 1))
    with pytest.raises(ImageError, match="no such file"):
        read_mask(tmp_path / "none.png", (5, 1))


# --- Contrast --------------------------------------------------------------------------------


def test_photos_of_12_bits_in_16_are_recognized_and_stretched():
    photo = to_pixels(DATA / "graf1.jpg")
    dim = to_pixels(photo.astype(np.uint16) * 16)
    assert has_low_contrast(dim)
    assert not has_low_contrast(photo)
    stretched = stretch_contrast(dim)
    assert not has_low_contrast(stretched)
    np.testing.assert_allclose(stretched, stretch_contrast(photo), atol=1e-3)
    assert (stretched.min(), stretched.max()) == (0, 255)


def test_a_constant_photo_cannot_be_stretched():
    constant = np.full((30, 40, 3), 7, np.uint8)
    assert not has_low_contrast(constant)
    assert stretch_contrast(constant) is constant
