import numpy as np
import pytest

from d2net.errors import FormatError, InputError
from d2net.evaluation.cache import CachedSource
from d2net.evaluation.epipolar import evaluate_epipolar, find_pairs, line_distance

from .scene import SIZE, Known, views


def put_pair(folder, marks):
    folder.mkdir(parents=True)
    for name in ("01.png", "02.jpg"):
        (folder / name).write_bytes(str(folder / name).encode())  # the fake source reads no pixels
    np.savetxt(folder / "corrs.txt", marks)


@pytest.fixture
def folder(tmp_path):
    for pair in ("night/tower", "night/square", "deep/er/season"):
        put_pair(tmp_path / "wxbs" / pair, np.hstack(views(20, seed=1)))
    return tmp_path / "wxbs"


def known(**photos):
    """Right keypoints for all pairs but those given (photo 2 by pair)."""
    a, b = views(150, seed=0)
    points = {}
    for pair in ("night/tower", "night/square", "deep/er/season"):
        points[f"{pair}/01.png"] = a
        points[f"{pair}/02.jpg"] = photos.get(pair.rpartition("/")[2], b)
    return Known(points)


def evaluate(source, folder):
    return evaluate_epipolar(CachedSource(source, folder.parent / "cache"), folder)


def test_projections_of_a_scene_give_all_marks_within_a_pixel(folder):
    result = evaluate(known(), folder)
    assert set(result.groups) == {"night", "deep/er", "overall"}
    assert [p.photos[0] for p in result.pairs] == [
        "deep/er/season/01.png",
        "night/square/01.png",
        "night/tower/01.png",
    ]
    overall = result.groups["overall"]
    assert overall["within@1"] == overall["mAA"] == 1
    assert overall["mAA spread"] == 0
    assert (overall["features"], overall["matches"]) == (150, 150)
    assert overall["inliers"] > 145
    assert result.pairs[0].drawing.correct.all()
    assert {metric.name for metric in result.headline} <= set(overall)
    assert {result.curve.metric(t).name for t in result.curve.thresholds} <= set(overall)


def test_wrong_keypoints_give_little_and_none_give_zero(folder):
    rng = np.random.default_rng(5)
    wrong = rng.uniform([0, 0], SIZE, (150, 2))
    result = evaluate(known(square=wrong, tower=np.empty((0, 2))), folder)
    season, square, tower = (pair.figures for pair in result.pairs)
    assert season["mAA"] == 1
    assert square["mAA"] < 0.3  # a random line passes a mark within 20 px now and then
    assert tower["mAA"] == tower["within@20"] == tower["matches"] == 0
    assert result.groups["overall"]["mAA"] == pytest.approx((1 + square["mAA"]) / 3)
    assert result.groups["night"]["mAA"] == pytest.approx(square["mAA"] / 2)
    assert result.pairs[1].drawing.correct.mean() < 0.2


def test_marks_beside_their_lines_count_from_their_distance_on(folder):
    marks = np.hstack(views(20, seed=1))
    marks[:5, 3] += 7.5  # lines of this motion are nearly horizontal
    np.savetxt(folder / "night/tower/corrs.txt", marks)
    tower = evaluate(known(), folder).pairs[2].figures
    assert tower["within@6"] == 0.75
    assert tower["within@9"] == 1


def test_the_spread_of_a_group_is_that_of_its_means(folder):
    rng = np.random.default_rng(5)
    noisy = views(150, seed=0)[1] + rng.normal(0, 3, (150, 2))
    noisy[:75] = rng.uniform([0, 0], SIZE, (75, 2))
    overall = evaluate(known(season=noisy, tower=noisy), folder).groups["overall"]
    values = [overall[f"mAA seed={seed}"] for seed in (0, 1, 2)]
    assert overall["mAA spread"] == max(values) - min(values) > 0
    assert overall["mAA"] == pytest.approx(np.mean(values))


def test_evaluating_twice_gives_identical_figures(folder):
    rng = np.random.default_rng(5)
    source = known(tower=views(150, seed=0)[1] + rng.normal(0, 3, (150, 2)))
    first = evaluate(source, folder)
    assert evaluate(source, folder).to_dict() == first.to_dict()


def test_line_distance_is_the_larger_of_the_two():
    F = np.array([[0.0, 0, 0], [0, 0, -1], [0, 2, 0]])  # y_b's line: 2 y_a = y_b; twice the zoom
    distance = line_distance(F, np.array([[5.0, 10]]), np.array([[9.0, 26]]))
    assert distance == pytest.approx([6])  # 26 from 2 * 10; in photo a it is 3
    epipole = line_distance(np.zeros((3, 3)), np.zeros((1, 2)), np.zeros((1, 2)))
    assert epipole == [np.inf]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("1 2 3 4\n1 2 3\n", "line 2"),
        ("1 2 3 x\n", "line 1"),
        ("1 2 3 4\n\n1 2 3 nan\n", "line 3"),
        ("1 2 3 4 5\n" * 4, "line 1.* x1 y1 x2 y2"),  # twenty numbers
    ],
)
def test_broken_marks_are_told_in_one_sentence(folder, text, message):
    path = folder / "night/tower/corrs.txt"
    path.write_text(text)
    with pytest.raises(FormatError, match=message) as error:
        find_pairs(folder)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [("01.png", "one photo 01"), ("02.jpg", "one photo 02")],
)
def test_what_a_pair_lacks_is_told(folder, name, message):
    (folder / "night/tower" / name).unlink()
    with pytest.raises(FormatError, match=message):
        find_pairs(folder)


def test_two_photos_of_one_number_are_told(folder):
    (folder / "night/tower/01.JPG").write_bytes(b"another")
    with pytest.raises(FormatError, match=r"01\.JPG, 01\.png"):
        find_pairs(folder)


def test_folders_without_pairs_are_told(tmp_path):
    with pytest.raises(InputError, match="holds no pair"):
        find_pairs(tmp_path)


def test_linked_folders_are_searched(folder, tmp_path):
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "night").symlink_to(folder / "night", target_is_directory=True)
    for name in ("back", "night/again"):
        (tmp_path / "linked" / name).symlink_to(tmp_path / "linked", target_is_directory=True)
    (folder / "deep").rename(tmp_path / "linked" / ".hidden")
    assert len(find_pairs(tmp_path / "linked")) == 3


def test_a_pair_by_itself_is_found(folder):
    (pair,) = find_pairs(folder / "night/tower")
    assert pair.group == "tower"
    (pair, *_) = find_pairs(folder / "night")
    assert pair.group == "night"


@pytest.mark.shared
def test_wxbs_is_read(shared):
    pairs = find_pairs(shared / "data/eval/wxbs")
    assert len(pairs) == 12
    assert {pair.group for pair in pairs} == {"WGABS", "WGALBS", "WGBS", "WGLBS", "WGSBS", "WLABS"}
    assert all(len(pair.marks_a) >= 8 for pair in pairs)
