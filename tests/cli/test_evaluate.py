"""`d2net evaluate`: every protocol from the command line, on what the repository holds."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pycolmap
import pytest
from PIL import Image

from d2net.evaluation.feature_sources import open_source
from d2net.io.h5 import FeatureWriter

from ..evaluation.miniature import write_aachen
from ..tiny import SIZE, write_photos
from .conftest import Run

DATA = Path(__file__).parents[1] / "data"
H = np.loadtxt(DATA / "H1to3p.txt")


@pytest.fixture
def oxford(here: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """OpenCV's pair in Oxford's layout."""
    monkeypatch.setenv("D2NET_CACHE", str(here / "cache"))
    folder = here / "oxford" / "graf"
    folder.mkdir(parents=True)
    for k in (1, 3):
        shutil.copy(DATA / f"graf{k}.jpg", folder / f"img{k}.png")
    shutil.copy(DATA / "H1to3p.txt", folder / "H1to3p")
    return folder.parent


def test_homography_of_two_sources(d2net: Run, oxford: Path) -> None:
    run = d2net(
        *("evaluate", "homography", oxford, "--features", "rootsift"),
        *("--compare", "rootsift:max_keypoints=500", "-o", "f.json", "--html", "page.html"),
    )
    assert run.code == 0
    assert "MMA@3" in run.out
    rows = [line.rstrip() for line in run.out.splitlines() if not line.startswith("homography:")]
    assert max(map(len, rows)) <= 80
    first, second = json.loads(Path("f.json").read_text())
    assert first["groups"]["overall"]["MMA@3"] > 0.3
    assert first["groups"]["overall"]["corner@5"] == 1
    assert second["groups"]["overall"]["features"] <= 501
    page = Path("page.html").read_text()
    assert "rootsift:max_keypoints=500" in page


def test_files_of_one_name_are_told_apart_by_their_folders(d2net: Run, oxford: Path) -> None:
    source = open_source("rootsift:max_keypoints=50")
    for run in ("run1", "run2"):
        Path(run).mkdir()
        with FeatureWriter(f"{run}/features.h5", {}) as writer:
            for name in ("img1.png", "img3.png"):
                writer.add(f"graf/{name}", source.extract(oxford / "graf" / name, name))
    options = ("--features", "run1/features.h5", "--compare", "run2/features.h5", "--json")
    results = d2net("evaluate", "homography", oxford, *options).json
    assert [r["method"] for r in results] == ["run1/features.h5", "run2/features.h5"]


def test_earlier_results_are_replaced_in_the_evaluated_folder(d2net: Run, oxford: Path) -> None:
    options = ("-o", oxford / "f.json", "--html", oxford / "page.html")
    for number in (100, 50):
        source = f"rootsift:max_keypoints={number}"
        assert d2net("evaluate", "homography", oxford, "--features", source, *options).code == 0
        for file in ("f.json", "page.html"):
            assert source in (oxford / file).read_text()


def test_json_and_quiet(d2net: Run, oxford: Path) -> None:
    arguments = ("evaluate", "homography", oxford, "--features", "rootsift:max_keypoints=200")
    (result,) = d2net(*arguments, "--json").json
    assert result["protocol"] == "homography"
    assert d2net(*arguments, "--quiet").out == ""


def test_epipolar(d2net: Run, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Marks on the plane of OpenCV's pair, from its homography."""
    monkeypatch.setenv("D2NET_CACHE", str(here / "cache"))
    folder = here / "wxbs" / "WGBS" / "graf"
    folder.mkdir(parents=True)
    for k, name in ((1, "01.png"), (3, "02.png")):
        shutil.copy(DATA / f"graf{k}.jpg", folder / name)
    points = np.array([[x, y, 1.0] for x in (150, 300, 450) for y in (150, 300, 450)])
    there = points @ H.T
    np.savetxt(folder / "corrs.txt", np.c_[points[:, :2], there[:, :2] / there[:, 2:]])
    arguments = ("evaluate", "epipolar", here / "wxbs", "--features", "rootsift", "--json")
    run = d2net(*arguments)
    assert run.code == 0
    (result,) = run.json
    assert result["groups"]["overall"]["mAA"] > 0.5


def test_pose_without_a_model_is_one_sentence(d2net: Run, here: Path) -> None:
    (here / "scene").mkdir()
    Image.new("RGB", (64, 48)).save(here / "scene" / "a.png")
    run = d2net("evaluate", "pose", here / "scene", "--features", "rootsift")
    assert run.code == 2
    assert run.err.startswith("error: ")
    assert run.err.count("\n") == 1


@pytest.fixture
def scene(here: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """OpenCV's pair and a copy of its first photo, as if a camera had moved along a wall."""
    monkeypatch.setenv("D2NET_CACHE", str(here / "cache"))
    folder = here / "scene"
    (folder / "images").mkdir(parents=True)
    (folder / "model").mkdir()
    for name, k in (("a.png", 1), ("b.png", 3), ("c.png", 1)):
        shutil.copy(DATA / f"graf{k}.jpg", folder / "images" / name)
    with Image.open(DATA / "graf1.jpg") as photo:
        width, height = photo.size
    (folder / "model/cameras.txt").write_text(
        f"1 SIMPLE_PINHOLE {width} {height} 900 {width / 2} {height / 2}\n"
    )
    (folder / "model/points3D.txt").write_text("")
    turned = np.cos(np.radians(20)), np.sin(np.radians(20))  # of half the angle
    (folder / "model/images.txt").write_text(
        f"1 1 0 0 0 0 0 0 1 a.png\n\n2 {turned[0]} 0 {turned[1]} 0 1 0 0 1 b.png\n\n"
        "3 1 0 0 0 1 0 0 1 c.png\n\n"
    )
    return folder


def test_pose_of_a_list_with_another_solver(d2net: Run, scene: Path) -> None:
    (scene / "pairs.txt").write_text("a.png c.png\n")
    arguments = ("evaluate", "pose", scene, "--features", "rootsift:max_keypoints=500", "--json")
    (result,) = d2net(*arguments, "--pairs", scene / "pairs.txt", "--solver", "magsac").json
    assert [pair["photos"] for pair in result["pairs"]] == [["images/a.png", "images/c.png"]]
    assert result["settings"]["solver"] == "magsac"
    assert "AUC@5 t=2" in result["groups"]["overall"]


DOCUMENTED = re.findall(
    r"^d2net (?!.* SCENE)(.*)$",
    (Path(__file__).parents[2] / "docs/localization-benchmarks.md").read_text(),
    flags=re.MULTILINE,
)


@pytest.fixture
def benchmarks(here: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Aachen and a scene, as the documentation draws them; small photos."""
    monkeypatch.setenv("D2NET_CACHE", str(here / "cache"))
    options = pycolmap.SyntheticDatasetOptions(
        num_rigs=3, num_cameras_per_rig=1, num_frames_per_rig=1, num_points3D=30
    )
    options.camera_width, options.camera_height = SIZE
    options.camera_params = [90, SIZE[0] / 2, SIZE[1] / 2, 0]
    model = pycolmap.synthesize_dataset(options)
    pose = pycolmap.Rigid3d()
    camera = next(iter(model.cameras.values()))
    for i, image in model.images.items():
        image.name = f"db/{i}.png"
    database = [image.name for image in model.images.values()]
    queries = {"query/day/a.png": (camera, pose), "query/night/b.png": (camera, pose)}
    photos = write_photos(here / "photos", *database, *queries)
    files = {name: photos / name for name in (*database, *queries)}
    write_aachen(here / "aachen", model, queries, files)
    (here / "aachen/truth.txt").rename(here / "truth.txt")
    shutil.copytree(photos / "db", here / "scene" / "images" / "db")
    (here / "scene" / "model").mkdir()
    model.write_text(here / "scene" / "model")
    return here


@pytest.mark.parametrize("command", DOCUMENTED)
def test_documented_commands_find_their_files(d2net: Run, benchmarks: Path, command: str) -> None:
    words = command.split()
    run = d2net(*words, "--json")
    assert run.code == 0, run.err
    assert run.json[0]["dataset"] == ""
    if "--night" in words:
        assert list(Path(words[words.index("--night") + 1]).rglob("*.png"))
    if "--submission" in words:
        assert Path(words[words.index("--submission") + 1]).exists()


def test_localization_without_a_dataset_is_one_sentence(d2net: Run, here: Path) -> None:
    run = d2net("evaluate", "localization", here, "--features", "rootsift")
    assert run.code == 2
    assert "neither in Aachen Day-Night's layout" in run.err
    assert run.err.count("\n") == 1
    run = d2net("evaluate", "localization", here, "--compare", "rootsift", "--submission", "p.txt")
    assert run.code == 2
    assert "--submission" in run.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("missing",), "no folder"),
        ((".",), "no sequence"),
        ((".", "--features", "rootsift:colour=1"), "colour"),
        ((".", "--max-keypoints", "0"), "at least 1"),
        ((".", "--compare", "rootsift:colour=1"), "colour"),  # before the first is evaluated
    ],
)
def test_bad_input(d2net: Run, here: Path, arguments: tuple[str, ...], message: str) -> None:
    run = d2net("evaluate", "homography", *arguments)
    assert run.code == 2
    assert message in run.err
