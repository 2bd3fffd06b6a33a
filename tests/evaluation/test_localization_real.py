"""Real photos in the benchmarks' layouts, from the command line on."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path

import pycolmap
import pytest

from d2net.cli import main
from d2net.evaluation.feature_sources import rootsift
from d2net.io.poses import read_poses
from d2net.mapping.triangulate import triangulate
from d2net.matching import match

from .miniature import write_aachen

pytestmark = [pytest.mark.shared, pytest.mark.slow]


@pytest.fixture
def evaluate(tmp_path, monkeypatch, capsys):
    """Run the command on a folder with truth; its first result and what it printed."""
    monkeypatch.setenv("D2NET_CACHE", str(tmp_path / "cache"))

    def run(folder, *arguments):
        command = ["d2net", "evaluate", "localization", folder, "--truth", folder / "truth.txt"]
        outputs = ["-o", tmp_path / "f.json", "--html", tmp_path / "page.html"]
        monkeypatch.setattr("sys.argv", [str(a) for a in (*command, *arguments, *outputs)])
        with pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code, capsys.readouterr().err
        return json.loads((tmp_path / "f.json").read_text())[0], capsys.readouterr().out

    return run


def put_fountain(folder: Path, scene: Path) -> None:
    """Strecha's fountain: every third photo is a query, the last of them passes for night."""
    model = pycolmap.Reconstruction(scene / "model")
    images = sorted(model.images.values(), key=lambda image: image.name)
    asked = images[1::3]
    queries, photos = {}, {}
    for image in asked:
        kind = "night" if image is asked[-1] else "day"
        name = f"query/{kind}/phone/{image.name}"
        queries[name] = (model.cameras[image.camera_id], image.cam_from_world())
        photos[name] = scene / "images" / image.name
    database = pycolmap.Reconstruction()
    for i, image in enumerate((image for image in images if image not in asked), start=1):
        camera = pycolmap.Camera(model.cameras[image.camera_id].todict())
        camera.camera_id = i
        name = f"db/{image.name}"
        database.add_camera_with_trivial_rig(camera)
        database.add_image_with_trivial_frame(
            pycolmap.Image(name=name, camera_id=i, image_id=i), image.cam_from_world()
        )
        photos[name] = scene / "images" / image.name
    points = with_points(database, photos)
    write_aachen(folder, points, queries, photos)


def with_points(model: pycolmap.Reconstruction, photos: dict[str, Path]) -> pycolmap.Reconstruction:
    """Strecha's models have none; Aachen's are SIFT's."""
    source = rootsift("few", max_keypoints=1000)
    features = {
        image.name: source.extract(photos[image.name], image.name)
        for image in model.images.values()
    }
    keypoints = {name: found.keypoints.numpy() for name, found in features.items()}
    pairs = combinations(sorted(features), 2)
    matches = ((a, b, match(features[a], features[b]).indices.numpy()) for a, b in pairs)
    return triangulate(model, keypoints, matches)


def test_fountain_in_the_layout_of_aachen(shared, tmp_path, evaluate):
    put_fountain(tmp_path / "aachen", shared / "data/eval/strecha/fountain-P11")
    result, out = evaluate(
        tmp_path / "aachen",
        *("--features", "rootsift:max_keypoints=2000", "--submission", tmp_path / "poses.txt"),
    )
    assert len(result["pairs"]) == 4
    for group in ("day", "night", "overall"):
        assert result["groups"][group]["0.25 m, 2°"] == 100
        assert result["groups"][group]["median position error"] < 0.02  # of cameras 10 m away
        assert result["groups"][group]["median rotation error"] < 0.1
    assert "0.25 m, 2°" in out
    assert list(read_poses(tmp_path / "poses.txt")) == [
        "0001.jpg",
        "0004.jpg",
        "0007.jpg",
        "0010.jpg",
    ]


@pytest.mark.timeout(900)
def test_fountain_by_the_network_as_it_is_packaged(shared, tmp_path, evaluate):
    put_fountain(tmp_path / "aachen", shared / "data/eval/strecha/fountain-P11")
    result, _ = evaluate(tmp_path / "aachen", "--features", "ots:max_edge=512")
    assert result["groups"]["overall"]["0.25 m, 2°"] == 100
    assert result["groups"]["overall"]["median position error"] < 0.05
