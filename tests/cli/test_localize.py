"""The files that `d2net localize` writes. tests/mapping has what it computes."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import pycolmap
import pytest
from PIL import Image

from d2net.cli.localize import picture_file
from d2net.io.drawn_pictures import write_picture
from d2net.io.poses import read_poses, write_poses
from d2net.mapping.localize import Map
from d2net.mapping.map_folder import MapFolder

from ..tiny import write_photos
from .conftest import Run


@pytest.mark.parametrize(
    ("query", "file"),
    [("a.jpg", "a.jpg"), ("day/a.png", "day/a.png"), ("a.tif", "a.tif.jpg")],
)
def test_pictures_have_the_names_of_their_queries(query: str, file: str) -> None:
    assert picture_file(Path("out"), query) == Path("out", file)


def test_queries_of_one_name_need_a_root(d2net: Run, photos: Path) -> None:
    (photos / "b").mkdir()
    (photos / "b" / "a.png").write_bytes((photos / "a.png").read_bytes())
    queries = (photos / "a.png", photos / "b" / "a.png")
    assert "give a folder that contains both as root" in d2net("localize", "map", *queries).err
    assert "map is not a map" in d2net("localize", "map", *queries, "--root", photos).err


def test_queries_whose_pictures_would_have_one_name_are_refused(d2net: Run, here: Path) -> None:
    write_photos(here / "photos", "a.tif", "a.tif.jpg")
    run = d2net("localize", "map", "photos", "--pictures", "out")
    assert (run.code, "would share a picture" in run.err) == (2, True)


@dataclass
class Answer:
    """What a map says about a query."""

    verdict: str
    best_photo: str | None = None
    map_number: int = 0

    @property
    def cam_from_world(self) -> pycolmap.Rigid3d:
        return pycolmap.Rigid3d()

    def to_dict(self) -> dict[str, str]:
        return {"verdict": self.verdict, "reason": "because"}


@pytest.mark.parametrize(
    ("verdicts", "code", "written", "doubtful"),
    [
        (("localized", "doubtful", "lost"), 0, ["a.png"], ["b.png"]),
        (("lost", "doubtful", "lost"), 1, [], ["b.png"]),
        (("localized", "lost", "localized"), 0, ["a.png", "c.png"], None),
    ],
)
def test_poses_are_those_of_localized_photos(
    d2net: Run,
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    verdicts: tuple[str, ...],
    code: int,
    written: list[str],
    doubtful: list[str] | None,
) -> None:
    names = ["a.png", "b.png", "c.png"]
    write_photos(here / "photos", *names)
    answers = dict(zip(names, verdicts, strict=True))

    class KnowingMap:
        def localize(self, path: Path, **options: object) -> Answer:
            return Answer(answers[path.name])

    monkeypatch.setattr(Map, "open", lambda *arguments, **options: KnowingMap())
    for old in ("poses_doubtful.txt", "poses_map1.txt"):  # of an earlier run
        write_poses(old, {"c.png": pycolmap.Rigid3d()}, beside=True)
    Path("poses_map.txt").write_text("the user's own notes\n")
    run = d2net("localize", "map", "photos", "--json")
    assert run.code == code
    assert [run.json["queries"][name]["verdict"] for name in names] == list(verdicts)
    assert [line.split()[0] for line in Path("poses.txt").read_text().splitlines()] == written
    assert not Path("poses_map1.txt").exists()
    assert Path("poses_map.txt").read_text() == "the user's own notes\n"
    if doubtful is None:
        assert not Path("poses_doubtful.txt").exists()
    else:
        assert list(read_poses("poses_doubtful.txt")) == doubtful


@pytest.mark.parametrize("name", ["poses_map1.txt", "poses_doubtful.txt", "poses_map12.txt"])
def test_poses_of_another_run_are_not_replaced(
    d2net: Run, here: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    write_photos(here / "photos", "a.png")

    class ManyMaps:
        map_number = 0

        def localize(self, path: Path, **options: object) -> Answer:
            return Answer("localized", map_number=self.map_number)

    monkeypatch.setattr(Map, "open", lambda *arguments, **options: ManyMaps())
    assert d2net("localize", "map", "photos", "-o", name).code == 0
    content = Path(name).read_bytes()
    run = d2net("localize", "map", "photos")
    assert (run.code, f"{name} exists" in run.err) == (2, True)
    assert Path(name).read_bytes() == content
    assert not Path("poses.txt").exists()
    Path(name).unlink()
    ManyMaps.map_number = 1
    for _ in range(2):
        assert d2net("localize", "map", "photos").code == 0
        assert list(read_poses("poses_map1.txt")) == ["a.png"]


@pytest.mark.parametrize("option", ["--num-retrieved 0", "--seed -1"])
def test_wrong_options_leave_the_poses_of_an_earlier_run(
    d2net: Run, here: Path, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    write_photos(here / "photos", "a.png")

    class LosingMap:
        def localize(self, path: Path, **options: object) -> Answer:
            return Answer("lost")

    monkeypatch.setattr(Map, "open", lambda *arguments, **options: LosingMap())
    write_poses("poses.txt", {"a.png": pycolmap.Rigid3d()})
    before = Path("poses.txt").read_text()
    assert d2net("localize", "map", "photos", *option.split()).code == 2
    assert Path("poses.txt").read_text() == before


def test_queries_of_one_name_are_told_apart_even_if_one_is_lost(
    d2net: Run, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_photos(here / "photos", "a/x.png", "b/x.png", "b/y.png")

    class KnowingMap:
        def localize(self, path: Path, **options: object) -> Answer:
            return Answer("lost" if path.parent.name == "a" else "localized")

    monkeypatch.setattr(Map, "open", lambda *arguments, **options: KnowingMap())
    assert d2net("localize", "map", "photos").code == 0
    assert list(read_poses("poses.txt")) == ["b/x.png", "y.png"]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_a_query_whose_name_cannot_be_written_fails_alone(
    d2net: Run, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_photos(here / "photos", "a.png", "b\n.png", "\udcff.png")

    class KnowingMap:
        def localize(self, path: Path, **options: object) -> Answer:
            return Answer("localized")

    monkeypatch.setattr(Map, "open", lambda *arguments, **options: KnowingMap())
    run = d2net("localize", "map", "photos", "--json")
    assert run.code == 1
    verdicts = [query["verdict"] for _, query in sorted(run.json["queries"].items())]
    assert verdicts == ["localized", "failed", "failed"]
    assert list(read_poses("poses.txt")) == ["a.png"]


def test_a_pose_counts_although_its_picture_cannot_be_drawn(
    d2net: Run, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_photos(here / "photos", "a.png")

    class MapWithoutPhotos:
        folder = MapFolder(here / "map")

        def localize(self, path: Path, **options: object) -> Answer:
            return Answer("localized", best_photo="gone.png")

    monkeypatch.setattr(Map, "open", lambda *arguments, **options: MapWithoutPhotos())
    (here / "drawn").mkdir()
    write_picture(here / "drawn" / "a.png", Image.new("RGB", (40, 30)))
    run = d2net("localize", "map", "photos", "--pictures", "drawn", "--json")
    assert run.code == 1
    assert not (here / "drawn" / "a.png").exists()  # of an earlier answer
    assert "gone.png" in run.err
    assert run.json["queries"]["a.png"]["verdict"] == "localized"
    assert list(read_poses("poses.txt")) == ["a.png"]
