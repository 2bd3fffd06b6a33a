"""Reconstruction of scenes whose truth is known."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pycolmap
import pytest
import torch

from d2net.errors import FormatError, InputError
from d2net.evaluation.cache import CachedSource
from d2net.evaluation.feature_sources import open_source
from d2net.evaluation.reconstruction import evaluate_reconstruction
from d2net.evaluation.results import Result
from d2net.features import Features
from d2net.io.h5 import FeatureWriter

from ..mapping.made import nothing, seen, write_photos
from ..mapping.test_reconstruct import POSES, true_model


class Prepared:
    """Gives prepared features by the number in a photo's name."""

    name = "prepared"

    def __init__(self, features: list[Features], note: str = "") -> None:
        self._features = features
        self._note = note

    @property
    def provenance(self) -> dict[str, str]:
        return {"prepared": self._note}

    def extract(self, photo: Path, name: str) -> Features:
        return self._features[int(Path(name).stem[-2:])]


def scene(folder: Path, photos: int = 6, *, truth: bool = True) -> Path:
    write_photos(folder / "images", range(photos))
    if truth:
        (folder / "model").mkdir()
        true_model().write_text(folder / "model")
    return folder


def evaluate(folder: Path, features: list[Features], cache: Path) -> Result:
    return evaluate_reconstruction(CachedSource(Prepared(features), cache), folder)


EXACT = [seen(pose) for pose in POSES]


def test_exact_features_give_exact_cameras_and_a_changed_photo_another_map(tmp_path: Path) -> None:
    folder = scene(tmp_path / "place")
    result = evaluate(folder, EXACT, tmp_path / "cache")
    figures = result.groups["place"]
    assert figures["images registered"] == 6
    assert figures["registered share"] == 1
    assert figures["called good"] == 1
    assert figures["sparse points"] > 100
    assert figures["position error"] < 0.1
    assert figures["rotation error"] < 0.1
    assert figures["placed well"] == 1
    seen_points = sum(pair.figures["points"] for pair in result.pairs)
    assert figures["observations per image"] == pytest.approx(seen_points / 6)
    assert figures["track length"] == pytest.approx(seen_points / figures["sparse points"])
    assert figures["true images"] == 6
    assert result.groups["overall"] == figures
    again = evaluate(folder, EXACT, tmp_path / "cache").groups["place"]
    assert again == figures  # its time, too
    with (folder / "images" / "photo03.png").open("ab") as changed:
        changed.write(b"as if saved by another program")
    swapped = [*EXACT[:3], nothing(), *EXACT[4:]]
    anew = evaluate(folder, swapped, tmp_path / "cache").groups["place"]
    assert anew["images registered"] == 5


def test_noise_shows_in_every_error(tmp_path: Path) -> None:
    folder = scene(tmp_path / "place")
    torch.manual_seed(0)
    noisy = [replace(f, keypoints=f.keypoints + torch.randn(f.keypoints.shape)) for f in EXACT]
    sharp = evaluate(folder, EXACT, tmp_path / "a").groups["overall"]
    blurred = evaluate(folder, noisy, tmp_path / "b").groups["overall"]
    for name in ("reprojection error", "position error", "rotation error"):
        assert blurred[name] > 3 * sharp[name]


def test_scenes_beside_each_other_and_without_truth(tmp_path: Path) -> None:
    scene(tmp_path / "both" / "a", truth=False)
    scene(tmp_path / "both" / "b", 2, truth=False)
    result = evaluate(tmp_path / "both", EXACT, tmp_path / "cache")
    assert "position error" not in result.groups["overall"]
    assert result.groups["a"]["images registered"] == 6
    assert (
        result.groups["overall"]["registered share"]
        == (1 + result.groups["b"]["registered share"]) / 2
    )
    assert {pair.photos[0].split("/")[0] for pair in result.pairs} == {"a", "b"}


def test_a_features_file_names_photos_of_scenes_by_their_paths(tmp_path: Path) -> None:
    scene(tmp_path / "one", 3, truth=False)
    for place in "ab":
        scene(tmp_path / "both" / place, 3, truth=False)
    for file, folder in (("flat", ""), ("full", "a/images/")):
        with FeatureWriter(tmp_path / f"{file}.h5", {}) as writer:
            for number, features in enumerate(EXACT[:3]):
                writer.add(f"{folder}photo{number:02}.png", features)
                if file == "full":
                    writer.add(f"b/images/photo{number:02}.png", nothing())

    def run(file: str, folder: str) -> Result:
        source = CachedSource(open_source(str(tmp_path / f"{file}.h5")), tmp_path / "cache")
        return evaluate_reconstruction(source, tmp_path / folder)

    assert run("flat", "one").groups["one"]["images registered"] == 3
    both = run("full", "both").groups
    assert (both["a"]["images registered"], both["b"]["images registered"]) == (3, 0)
    with pytest.raises(InputError, match=r"no features of 'a/images/photo00\.png'"):
        run("flat", "both")


def test_no_model_is_zero(tmp_path: Path) -> None:
    folder = scene(tmp_path / "place")
    result = evaluate(folder, [nothing()] * 6, tmp_path / "cache")
    assert result.groups["place"]["images registered"] == 0
    assert result.groups["place"]["placed well"] == 0
    assert json.loads(json.dumps(result.to_dict()))["groups"]["place"]["sparse points"] == 0


def test_broken_truth_gets_one_sentence(tmp_path: Path) -> None:
    folder = scene(tmp_path / "place")
    (folder / "images" / "photo03.png").unlink()
    with pytest.raises(FormatError, match=r"photo03\.png, which .* lacks"):
        evaluate(folder, EXACT, tmp_path / "cache")
    write_photos(folder / "images", [3])
    model = pycolmap.Reconstruction(folder / "model")
    camera = model.cameras[1]
    camera.width, camera.height = camera.height, camera.width
    model.write_text(folder / "model")
    with pytest.raises(InputError, match=r"640 x 480 pixels, but its camera 480 x 640"):
        evaluate(folder, EXACT, tmp_path / "cache")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no scene"):
        evaluate(tmp_path / "empty", EXACT, tmp_path / "cache")
