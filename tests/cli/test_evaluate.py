"""`d2net evaluate`: every protocol from the command line, on what the repository holds."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

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
        shutil.copy(DATA / f"graf{k}.png", folder / f"img{k}.png")
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
        shutil.copy(DATA / f"graf{k}.png", folder / name)
    points = np.array([[x, y, 1.0] for x in (150, 300, 450) for y in (150, 300, 450)])
    there = points @ H.T
    np.savetxt(folder / "corrs.txt", np.c_[points[:, :2], there[:, :2] / there[:, 2:]])
    run = d2net("evaluate", "epipolar", here / "wxbs", "--features", "rootsift", "--json")
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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("missing",), "no folder"),
        ((".",), "no sequence"),
        ((".", "--features", "rootsift:colour=1"), "colour"),
        ((".", "--max-keypoints", "0"), "at least 1"),
    ],
)
def test_bad_input(d2net: Run, here: Path, arguments: tuple[str, ...], message: str) -> None:
    run = d2net("evaluate", "homography", *arguments)
    assert run.code == 2
    assert message in run.err
