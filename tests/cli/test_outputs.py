"""No command writes over one of its inputs, or over a photo that d2net did not make."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from d2net.io.drawn_pictures import write_picture

from .conftest import Run


@pytest.fixture
def files(photos: Path, d2net: Run) -> dict[Path, bytes]:
    """Every kind of file that a user may have, and what is in each."""
    photos.rename("photos").joinpath("a.png").rename("photos/p.png")
    for name in ("a.png", "b.png", "other.png"):
        Path(name).write_bytes(Path("photos/p.png").read_bytes())
    assert d2net("extract", "photos", "-o", "f.h5").code == 0
    Path("pairs.txt").write_text("p.png day 1/ü b.png\n")
    Path("list.txt").write_text("a.png\nb.png\n")
    Path("cameras.txt").write_text("a.png PINHOLE 96 80 100 100 48 40\n")
    Path("table.json").write_text("{}\n")
    for text in ("map/map.json", "photos/seq/H_1_2", "model/cameras.txt", "model/pairs.txt"):
        Path(text).parent.mkdir(exist_ok=True)
        Path(text).write_text("a b\n" if "pairs" in text else "1 0 0 0 1 0 0 0 1\n")
    write_picture(Path("drawn.png"), Image.new("RGB", (96, 80)))
    return {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "command",
    [
        "match a.png b.png -o b.png",
        "match a.png b.png -o other.png",
        "match a.png b.png -o table.json",
        "match --features f.h5 --pairs pairs.txt -o f.h5",
        "match --features f.h5 --pairs pairs.txt -o pairs.txt",
        "show a.png -o a.png",
        "show a.png -o other.png",
        "extract photos -o photos/p.png",
        "extract --image-list list.txt -o list.txt",
        "pairs photos --method exhaustive -o photos/p.png",
        "pairs f.h5 --method exhaustive -o f.h5",
        "pairs photos --method exhaustive -o model/cameras.txt",
        "pairs photos --method covisibility --model model -o model/pairs.txt",
        "reconstruct photos -o . --pairs pairs.txt",
        "localize map a.png -o a.png",
        "localize map a.png -o other.png",
        "localize map a.png --intrinsics cameras.txt -o cameras.txt",
        "localize map a.png --pictures .",
        "localize map a.png -o map/map.json",
        "localize map a.png -o table.json",
        "data check photos -o other.png",
        "evaluate homography photos -o other.png",
        "evaluate homography photos --html other.png",
        "evaluate localization photos --submission other.png",
        "evaluate homography photos -o list.txt",
        "evaluate homography photos -o table.json",
        "evaluate homography photos --html list.txt",
        "evaluate localization photos --submission list.txt",
        "evaluate homography photos -o photos/seq/H_1_2",
        "evaluate epipolar photos --html photos/seq/../seq/H_1_2",
        "evaluate epipolar . -o pairs.txt",
        "evaluate pose photos --pairs pairs.txt -o pairs.txt",
        "evaluate pose photos --pairs pairs.txt --html pairs.txt",
        "evaluate reconstruction photos --model model -o model/cameras.txt",
        "evaluate localization photos --truth list.txt --submission list.txt",
        "evaluate localization photos --queries list.txt --pairs pairs.txt -o pairs.txt",
        "evaluate localization photos --queries list.txt --html list.txt",
        "evaluate localization photos --submission photos/seq/H_1_2",
    ],
)
def test_files_of_the_user_are_not_overwritten(
    d2net: Run, files: dict[Path, bytes], command: str
) -> None:
    run = d2net(*command.split())
    assert run.code == 2
    output = command.split()[-1]
    assert ("a.png" if output == "." else output) in run.err
    assert {path: path.read_bytes() for path in files} == files


@pytest.mark.usefixtures("files")
def test_a_picture_by_d2net_that_is_the_query_is_not_overwritten(d2net: Run) -> None:
    content = Path("drawn.png").read_bytes()
    run = d2net("localize", "map", "drawn.png", "--pictures", ".")
    assert run.code == 2
    assert "the input drawn.png" in run.err
    assert Path("drawn.png").read_bytes() == content


@pytest.mark.usefixtures("files")
def test_a_file_in_a_linked_folder_of_the_data_is_not_overwritten(d2net: Run, here: Path) -> None:
    Path("photos/seq").rename("elsewhere")
    Path("photos/seq").symlink_to(here / "elsewhere")
    Path("linked").symlink_to(here / "photos")
    for folder in ("photos", "linked", "photos/../photos"):
        run = d2net("evaluate", "homography", folder, "-o", "photos/seq/H_1_2")
        assert run.code == 2
        assert "photos/seq/H_1_2" in run.err
        assert Path("elsewhere/H_1_2").read_text() == "1 0 0 0 1 0 0 0 1\n"


@pytest.mark.parametrize("options", ["-o x --html ./x", "--submission x -o x", "--html x -o link"])
@pytest.mark.usefixtures("files")
def test_two_outputs_in_one_file_are_refused_before_the_work(d2net: Run, options: str) -> None:
    Path("link").symlink_to("x")
    run = d2net("evaluate", "localization", "photos", *options.split())
    assert run.code == 2
    assert "the same file" in run.err
    assert "device" not in run.err
    assert not Path("x").exists()


@pytest.mark.parametrize(
    "command",
    [
        "match a.png b.png -o",
        "show a.png -o",
        "pairs photos --method exhaustive -o",
        "localize map a.png -o",
        "data check photos -o",
        "evaluate homography photos --html",
    ],
)
@pytest.mark.usefixtures("files")
def test_a_missing_folder_is_told_before_the_work(d2net: Run, command: str) -> None:
    run = d2net(*command.split(), "none/out.png")
    assert run.code == 2
    assert "the folder none does not exist" in run.err
    assert "device" not in run.err


def test_a_picture_in_the_folder_of_a_map_is_not_overwritten(d2net: Run, photos: Path) -> None:
    (photos / "a.png").rename(photos / "map.png")
    content = (photos / "map.png").read_bytes()
    run = d2net("reconstruct", photos, "-o", photos)
    assert run.code == 2
    assert "map.png does not seem to be of a map" in run.err
    assert (photos / "map.png").read_bytes() == content


@pytest.mark.parametrize("command", ["match a.png a.png -o", "localize map a.png -o"])
@pytest.mark.usefixtures("files")
def test_a_folder_is_no_output(d2net: Run, command: str) -> None:
    run = d2net(*command.split(), "model")
    assert (run.code, "model cannot be written: it is a folder" in run.err) == (2, True)
    assert "device" not in run.err


def test_links_that_lead_to_each_other_are_written(d2net: Run, photos: Path) -> None:
    Path("a.json").symlink_to("b.json")
    Path("b.json").symlink_to("a.json")
    assert d2net("match", photos / "a.png", photos / "a.png", "-o", "a.json").code == 0
    assert "points_a" in Path("a.json").read_text()


@pytest.mark.parametrize(
    "name", [f"matches.{kind}" for kind in ("png", "jpg", "npz", "csv", "json")]
)
def test_own_results_are_replaced(d2net: Run, photos: Path, name: str) -> None:
    for _ in range(2):
        assert d2net("match", photos / "a.png", photos / "a.png", "-o", name).code == 0
        (photos / "new\nline.png").unlink(missing_ok=True)
        assert d2net("pairs", photos, "--method", "exhaustive").code == 0


def test_a_list_of_pairs_with_a_comment_of_the_user_is_not_overwritten(
    d2net: Run, photos: Path
) -> None:
    (photos / "new\nline.png").unlink(missing_ok=True)
    mine = Path("pairs.txt")
    mine.write_text("# chosen by hand\na.png b.png\n")
    run = d2net("pairs", photos, "--method", "exhaustive")
    assert (run.code, "pairs.txt" in run.err) == (2, True)
    assert mine.read_text().startswith("# chosen by hand")
