"""Every third photo of a scene left out of the map and placed in it, by day and at night."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from d2net.errors import FormatError, InputError, OutputError
from d2net.evaluation.cache import CachedSource
from d2net.evaluation.localization import evaluate_localization
from d2net.evaluation.localization_dataset import LocalizationSettings
from d2net.evaluation.results import Result
from d2net.evaluation.simulated_night import at_night
from d2net.features import Features
from d2net.io.image_lists import find_images

from ..mapping.made import nothing, seen, write_photos
from ..mapping.test_reconstruct import POSES, true_model

QUERIES = (1, 4)


class Prepared:
    """Gives prepared features by the number in a photo's name, others by night."""

    name = "prepared"

    def __init__(self, day: list[Features], night: list[Features]) -> None:
        self._day, self._night = day, night

    @property
    def provenance(self) -> dict[str, str]:
        return {}

    def extract(self, photo: Path, name: str) -> Features:
        features = self._night if name.startswith("night/") else self._day
        return features[int(Path(name).stem[-2:].removesuffix("."))]


EXACT = [seen(pose) for pose in POSES]


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    write_photos(tmp_path / "place" / "images", range(10, 16))
    for number in range(6):
        old = tmp_path / "place" / "images" / f"photo{10 + number}.png"
        old.rename(old.with_name(f"photo{number:02}.png"))
    (tmp_path / "place" / "model").mkdir()
    true_model().write_text(tmp_path / "place" / "model")
    return tmp_path / "place"


def evaluate(scene: Path, night: list[Features] | None = None) -> Result:
    source = CachedSource(Prepared(EXACT, night or EXACT), scene.parent / "cache")
    folder = None if night is None else scene.parent / "night"
    return evaluate_localization(source, scene, LocalizationSettings(night=folder))


def test_exact_features_place_the_photos_left_out(scene: Path) -> None:
    result = evaluate(scene)
    assert [pair.photos[0] for pair in result.pairs] == [f"images/photo{i:02}.png" for i in QUERIES]
    assert {f"images/photo{i:02}.png" for i in QUERIES}.isdisjoint(
        p.photos[1] for p in result.pairs
    )
    assert list(result.groups) == ["day", "overall"]
    assert result.groups["day"]["1 %, 1°"] == 100
    assert result.groups["day"]["median position error"] < 0.05


def test_errors_are_in_percent_of_the_spread(scene: Path) -> None:
    """A photo whose features are another's is placed where that one was."""
    features = list(EXACT)
    features[1] = EXACT[2]
    source = CachedSource(Prepared(features, features), scene.parent / "cache")
    first = evaluate_localization(source, scene).pairs[0]
    centres = np.array([pose.inverse().translation for pose in POSES])
    spread = np.sqrt(((centres - centres.mean(axis=0)) ** 2).sum(axis=1).mean())
    distance = np.linalg.norm(centres[1] - centres[2])
    assert first.figures["position error"] == pytest.approx(100 * distance / spread, rel=0.01)
    assert first.figures["5 %, 5°"] == 0


def test_the_same_photos_at_night_are_placed_beside_the_day(scene: Path) -> None:
    few = [features[:40] for features in EXACT]
    few[4] = nothing()
    result = evaluate(scene, few)
    assert [pair.group for pair in result.pairs] == ["day", "day", "night", "night"]
    assert result.groups["day"]["1 %, 1°"] == 100
    assert result.groups["night"]["1 %, 1°"] == 50
    assert result.groups["night"]["localized"] == 50
    for pair in result.pairs[2:]:
        with Image.open(scene / pair.photos[0]) as image:
            assert image.size == (640, 480)


def test_a_night_photo_is_written_again_only_after_its_photo_changed(scene: Path) -> None:
    evaluate(scene, EXACT)
    first, second = (scene.parent / "night" / f"photo{i:02}.png.png" for i in QUERIES)
    old = first.stat(), second.stat()
    Image.new("RGB", (640, 480), "red").save(scene / "images/photo04.png")
    evaluate(scene, EXACT)
    assert (first.stat().st_mtime_ns, first.stat().st_ino) == (old[0].st_mtime_ns, old[0].st_ino)
    assert second.stat().st_mtime_ns > old[1].st_mtime_ns
    assert not find_images([scene.parent / "night"])  # simulated photos do not count as photos


def test_a_night_photo_never_replaces_a_file_of_the_user(scene: Path) -> None:
    night = scene.parent / "night"
    night.mkdir()
    own = night / "photo04.png.png"
    own.write_bytes((scene / "images/photo00.png").read_bytes())
    with pytest.raises(OutputError, match=r"photo04\.png\.png exists"):
        evaluate(scene, EXACT)
    assert list(night.iterdir()) == [own]
    assert own.read_bytes() == (scene / "images/photo00.png").read_bytes()


@pytest.mark.parametrize("below", ["images", "images/night", "linked", "images/photo03.png"])
def test_night_photos_stay_apart_from_the_photos(scene: Path, below: str) -> None:
    (scene / "linked").symlink_to(scene / "images")
    photos = sorted(scene.rglob("*"))
    source = CachedSource(Prepared(EXACT, EXACT), scene.parent / "cache")
    with pytest.raises(InputError, match="night photos"):
        evaluate_localization(source, scene, LocalizationSettings(night=scene / below))
    assert sorted(scene.rglob("*")) == photos


def test_a_broken_scene_is_reported(scene: Path, tmp_path: Path) -> None:
    (scene / "images" / "photo03.png").unlink()
    with pytest.raises(FormatError, match=r"lacks the photo photo03\.png"):
        evaluate(scene)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="only the queries of a scene"):
        evaluate(tmp_path / "empty", EXACT)
    with pytest.raises(InputError, match="nor a scene with a COLMAP model"):
        evaluate(tmp_path / "empty")


def test_night_is_dark_coloured_noisy_and_the_same_again() -> None:
    day = np.full((120, 160, 3), 200, np.uint8)
    night = at_night(day, np.random.default_rng(1))
    assert night.shape == day.shape
    assert night.dtype == np.uint8
    assert night.mean() < 0.6 * day.mean()
    assert np.ptp(night.mean(axis=(0, 1))) > 5
    smooth = night.reshape(12, 10, 16, 10, 3).std(axis=(1, 3))
    assert smooth.mean() > 5
    assert (at_night(day, np.random.default_rng(1)) == night).all()
    assert (at_night(day, np.random.default_rng(2)) != night).any()
