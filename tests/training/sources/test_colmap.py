"""COLMAP reconstructions: by tracks, by depth, and what may be wrong with them."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from PIL import Image

from d2net.errors import FormatError, ImageError, InputError
from d2net.io.h5 import FeatureWriter
from d2net.training.check_pairs import check_source, sift_errors
from d2net.training.sources import open_source
from d2net.training.sources.base import pair_generator

from ..plane import (
    NAMES,
    SIZE,
    Plane,
    write_depth_colmap,
    write_depth_h5,
    write_depth_png,
)

CROP = 64


def opened(folder, **options):
    return open_source("colmap", folder, CROP, options)


def photo_numbers(pair):
    return [NAMES.index(photo.rsplit("/")[-1]) for photo in pair.photos]


def truth_error(plane, pair, source_photos=None):
    """How far partners are from where the plane puts them; crops are found in their photos."""
    a, b = photo_numbers(pair)
    offsets = [crop_offset(plane.photo(n), c) for n, c in ((a, pair.image_a), (b, pair.image_b))]
    expected = plane.carried(a, b, pair.points_a + offsets[0]) - offsets[1]
    return np.abs(expected - pair.points_b).max()


def crop_offset(photo, crop):
    """Where in the photo a plain crop was cut, (x, y)."""
    edge = len(crop)
    for top in range(photo.shape[0] - edge + 1):
        for left in range(photo.shape[1] - edge + 1):
            if (photo[top, left : left + edge] == crop[0]).all() and np.array_equal(
                photo[top : top + edge, left : left + edge], crop
            ):
                return np.array([left, top])
    raise AssertionError("the crop is no part of the photo")


@pytest.mark.parametrize("model", ["PINHOLE", "SIMPLE_RADIAL", "OPENCV"])
def test_tracks(tmp_path, model):
    plane = Plane(model)
    source = opened(plane.write(tmp_path / "scene"))
    assert len(source) == 12  # every two of four photos, both orders
    for index in range(0, 12, 3):
        pair = source.pair(index, pair_generator(0, index))
        assert pair.source == "scene"
        assert len(pair.points_a) >= 16
        assert truth_error(plane, pair) < 1e-3


def test_text_models_and_named_folders(tmp_path):
    plane = Plane()
    folder = plane.write(tmp_path / "scene")
    (tmp_path / "text").mkdir()
    plane.reconstruction().write_text(tmp_path / "text")
    (folder / "images").rename(folder / "photos")
    source = opened(folder, model=str(tmp_path / "text"), images="photos")
    assert truth_error(plane, source.pair(0, pair_generator(0, 0))) < 1e-3


WRITERS = {
    "depth/{stem}.png": (write_depth_png, 2e-3),
    "depths/{stem}.h5": (write_depth_h5, 2e-3),
    "stereo/depth_maps/{stem}.png.geometric.bin": (write_depth_colmap, 2e-3),
}


@pytest.mark.parametrize("place", WRITERS)
def test_depth(tmp_path, place):
    write, _ = WRITERS[place]
    plane = Plane()
    folder = plane.write(tmp_path / "scene")
    for number, name in enumerate(NAMES):
        write(folder / place.format(stem=name.removesuffix(".png")), plane.depth(number))
    source = opened(folder, min_correspondences=10)
    for index in range(0, 12, 3):
        pair = source.pair(index, pair_generator(1, index))
        cells = (pair.points_a - 3.5) / 8
        assert np.array_equal(cells, np.rint(cells))
        assert truth_error(plane, pair) < 0.1
    assert len(opened(folder, depth=False).pair(0, pair_generator(0, 0)).points_a) != 64


def test_check_finds_sound_data_sound_and_wrong_data_wrong(tmp_path):
    plane = Plane(size=(320, 256))
    folder = plane.write(tmp_path / "scene")
    for number, name in enumerate(NAMES):
        write_depth_png(folder / "depth" / name, plane.depth(number))
    options = {"min_correspondences": 20}
    checked = check_source(open_source("colmap", folder, 128, options), 12)
    assert checked.warnings == ()
    assert checked.figures["usable_share"] == 1
    assert checked.figures["track_error_pixels"] < 1e-3
    assert checked.figures["depth_error"] < 1e-3
    assert checked.figures["share_occluded"] == 0
    assert checked.figures["sift_agreement"] > 0.9

    wrong_unit = check_source(
        open_source("colmap", folder, 128, {**options, "png_unit": 0.002}), 12
    )
    assert wrong_unit.figures["depth_error"] == pytest.approx(1, abs=0.01)
    assert any("different units" in text for text in wrong_unit.warnings)

    model = plane.reconstruction()
    for image in model.images.values():  # as if names had been mixed up
        image.name = NAMES[(image.image_id + 1) % 4]
    model.write_binary(folder / "sparse")
    mixed = check_source(open_source("colmap", folder, 128, {**options, "depth": False}), 12)
    assert any("SIFT matches contradict" in text for text in mixed.warnings)


def test_crops_may_be_turned_and_scaled(tmp_path):
    plane = Plane(size=(320, 256))
    folder = plane.write(tmp_path / "scene")
    for number, name in enumerate(NAMES):
        write_depth_png(folder / "depth" / name, plane.depth(number))
    warped = {"rotation": 40.0, "scale": 1.5, "perspective": 0.2, "min_correspondences": 20}
    for depth in (True, False):
        source = open_source("colmap", folder, 128, {"depth": depth, **warped})
        checked = check_source(source, 12)
        assert checked.figures["sift_agreement"] > 0.9


def test_limits_choose_pairs(tmp_path):
    folder = Plane().write(tmp_path / "scene")
    everything = len(opened(folder, min_overlap=0.0))
    assert 0 < len(opened(folder, min_overlap=0.85)) < everything
    with pytest.raises(InputError, match=r"an overlap of 1.01; the largest is \d.\d\d"):
        opened(folder, min_overlap=1.01)


def test_large_photos_are_reduced_with_their_cameras(tmp_path):
    small, large = Plane(size=(160, 128)), Plane(size=(320, 256))
    source = opened(large.write(tmp_path / "scene"), max_edge=160)
    pair = source.pair(0, pair_generator(0, 0))
    a, b = photo_numbers(pair)
    # The same lens on a smaller photo sees the same: the plane tells where partners lie.
    photos = [
        np.asarray(Image.fromarray(large.photo(n)).resize((160, 128), Image.Resampling.BILINEAR))
        for n in (a, b)
    ]
    offsets = [crop_offset(p, c) for p, c in zip(photos, (pair.image_a, pair.image_b), strict=True)]
    expected = small.carried(a, b, pair.points_a + offsets[0]) - offsets[1]
    assert np.abs(expected - pair.points_b).max() < 1e-3


def test_photos_stored_on_their_side(tmp_path):
    """COLMAP's own cameras are of photos as stored; a model of upright photos works as well."""
    plane = Plane()
    folder = plane.write(tmp_path / "scene", tuple(n.replace("png", "jpg") for n in NAMES))
    exif = Image.Exif()
    exif[274] = 6
    for path in (folder / "images").iterdir():
        with Image.open(path) as photo:
            photo.load()
        photo.save(path, exif=exif, quality=95)
    assert opened(folder).pair(0, pair_generator(0, 0)).image_a.shape == (CROP, CROP, 3)
    stored = check_source(opened(folder), 8).examples
    for path in (folder / "images").iterdir():  # pixels on their side, the tag turns them back
        with Image.open(path) as photo:
            turned = photo.transpose(Image.Transpose.ROTATE_90)
        turned.save(path, exif=exif, quality=95)
    upright = check_source(opened(folder), 8).examples
    for pairs in (stored, upright):
        assert np.mean(np.concatenate([sift_errors(pair) for pair in pairs]) < 2) > 0.8


@pytest.mark.parametrize("by_d2net", [False, True])
def test_photos_stored_upside_down(tmp_path, by_d2net):
    """The size does not tell whether a model is of the photos as stored. A map by d2net tells."""
    scene = Plane().write(tmp_path / "map", tuple(n.replace("png", "jpg") for n in NAMES))
    exif = Image.Exif()
    exif[274] = 3
    for path in (scene / "images").iterdir():
        with Image.open(path) as photo:
            pixels = photo.transpose(Image.Transpose.ROTATE_180) if by_d2net else photo.copy()
        pixels.save(path, exif=exif, quality=95)
    if by_d2net:
        (scene / "sparse/0").mkdir()
        for path in (scene / "sparse").glob("*.bin"):
            path.rename(scene / "sparse/0" / path.name)
        (scene / "map.json").write_text("{}")
        with FeatureWriter(scene / "features.h5", {"extraction": {"upright": True}}):
            pass
    pairs = check_source(opened(scene), 8).examples
    assert np.mean(np.concatenate([sift_errors(pair) for pair in pairs]) < 2) > 0.8


def test_a_map_json_of_another_program_is_ignored(tmp_path):
    scene = Plane().write(tmp_path / "scene")
    (scene / "sparse/0").mkdir()
    for path in (scene / "sparse").glob("*.bin"):
        path.rename(scene / "sparse/0" / path.name)
    (scene / "map.json").write_text('{"type": "FeatureCollection"}')
    assert len(opened(scene))


def test_sources_can_be_sent_to_other_processes(tmp_path):
    source = opened(Plane().write(tmp_path / "scene"))
    sent = pickle.loads(pickle.dumps(source))
    a, b = (s.pair(3, pair_generator(0, 5)) for s in (source, sent))
    assert np.array_equal(a.points_b, b.points_b) and np.array_equal(a.image_b, b.image_b)


def test_missing_photos_are_left_out_and_told(tmp_path):
    folder = Plane().write(tmp_path / "scene")
    (folder / "images" / "c.png").unlink()
    source = opened(folder)
    assert len(source) == 6
    assert source.remarks == (
        f"1 of the 4 photos are not in {folder / 'images'} (for example c.png) and are left out",
    )
    for path in (folder / "images").iterdir():
        path.rename(folder / path.name.upper())
    with pytest.raises(InputError, match=r"4 of the 4 photos are not in .* \(for example a\.png"):
        opened(folder)


def test_photos_without_depth_among_others_with(tmp_path):
    plane = Plane()
    folder = plane.write(tmp_path / "scene")
    for number, name in enumerate(NAMES[:3]):
        write_depth_png(folder / "depth" / name, plane.depth(number))
    source = opened(folder)
    assert len(source) == 6
    assert source.remarks == ("1 of the 4 photos have no depth map and are left out",)


def test_what_is_wrong_is_told(tmp_path):
    plane = Plane()
    folder = plane.write(tmp_path / "scene")
    with pytest.raises(InputError, match="no COLMAP model"):
        opened(folder / "images")
    Image.new("RGB", (30, 20)).save(folder / "images" / "a.png")
    with pytest.raises(InputError, match=r"a\.png has 30 x 20 pixels, but its camera 160 x 128"):
        opened(folder)
    (folder / "images" / "a.png").write_bytes(b"no photo")
    with pytest.raises(ImageError, match=r"a\.png"):
        opened(folder)
    (folder / "sparse" / "images.bin").write_bytes(b"\x09")
    with pytest.raises(FormatError, match="cut off or damaged"):
        opened(folder)


def test_photos_that_observe_missing_points(tmp_path):
    folder = Plane().write(tmp_path / "scene")
    text = folder / "text"
    text.mkdir()
    Plane().reconstruction().write_text(text)
    lines = (text / "points3D.txt").read_text().splitlines(keepends=True)
    (text / "points3D.txt").write_text("".join(lines[:3] + lines[3::2]))
    source = opened(folder, model=str(text))
    assert source.pair(0, pair_generator(0, 0)) is not None
    (text / "points3D.txt").write_text("# none\n")
    with pytest.raises(InputError, match="4 of the 4 photos see no point"):
        opened(folder, model=str(text))


def test_a_camera_without_a_size(tmp_path):
    folder = Plane().write(tmp_path / "scene")
    model = Plane().reconstruction()
    model.cameras[1].width = model.cameras[1].height = 0
    model.write_binary(folder / "sparse")
    with pytest.raises(InputError, match="has no size"):
        opened(folder)


def test_a_model_without_any_track_error_is_warned_of(tmp_path):
    folder = Plane("PINHOLE").write(tmp_path / "scene")
    model = Plane("PINHOLE").reconstruction()
    model.cameras[1].params = np.array([1e-4, 1e-4, *model.cameras[1].params[2:]])
    model.write_binary(folder / "sparse")
    warnings = check_source(opened(folder), 4).warnings
    assert any("track_error_pixels" in warning for warning in warnings)


def test_no_two_photos_see_the_same(tmp_path):
    plane = Plane()
    folder = plane.write(tmp_path / "scene")
    model = plane.reconstruction(points=0)
    model.write_binary(folder / "sparse")
    with pytest.raises(InputError, match="4 of the 4 photos see no point"):
        opened(folder)


BROKEN = {
    "cut.png": lambda p, d: p.write_bytes(b"\x89PNG"),
    "eight.png": lambda p, d: Image.fromarray(d.astype(np.uint8)).save(p),
    "empty.png": lambda p, d: write_depth_png(p, 0 * d),
    "cut.h5": lambda p, d: p.write_bytes(b"\x89HDF"),
    "flat.h5": lambda p, d: write_depth_h5(p, d.ravel()),
    "cut.bin": lambda p, d: p.write_bytes(b"160&128&1&abc"),
    "nan.h5": lambda p, d: write_depth_h5(p, np.nan * d),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_depth_is_told_in_one_sentence(tmp_path, name):
    plane = Plane()
    folder = plane.write(tmp_path / "scene")
    extension = name.rpartition(".")[2]
    for number, photo in enumerate(NAMES):
        stem = photo.removesuffix(".png")
        path = {
            "png": folder / "depth" / photo,
            "h5": folder / "depth" / f"{stem}.h5",
            "bin": folder / "stereo" / "depth_maps" / f"{photo}.geometric.bin",
        }[extension]
        path.parent.mkdir(parents=True, exist_ok=True)
        BROKEN[name](path, plane.depth(number))
    source = opened(folder)
    with pytest.raises(FormatError, match=r"^the depth map .* (cannot be read|holds|has)") as error:
        source.pair(0, pair_generator(0, 0))
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="no pair of scene can be made: the depth map"):
        check_source(source, 3)


def test_a_depth_map_gone_since_is_told(tmp_path):
    plane = Plane()
    folder = plane.write(tmp_path / "scene")
    for number, name in enumerate(NAMES):
        write_depth_png(folder / "depth" / name, plane.depth(number))
    source = opened(folder)
    for path in (folder / "depth").iterdir():
        path.unlink()
    with pytest.raises(FormatError, match="there is no depth map"):
        source.pair(0, pair_generator(0, 0))


@pytest.mark.shared
@pytest.mark.parametrize("name", ["statue_of_liberty", "rgbd_hololens_office", "lund_door"])
def test_real_reconstructions_agree_with_sift(shared, name):
    source = open_source("colmap", shared / "data" / "train" / name, 256, {})
    plain_walls = name == "rgbd_hololens_office"  # few SIFT matches in a pair
    checked = check_source(source, 40 if plain_walls else 6)
    assert checked.warnings == ()
    assert checked.figures["sift_error_median"] < (5 if plain_walls else 1)


def test_sizes_are_those_of_the_scene():
    assert Plane().photo(0).shape == (SIZE[1], SIZE[0], 3)
