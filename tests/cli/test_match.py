"""`d2net match`: two photos, and the pairs of a features file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from d2net.io.h5 import FeatureFile, MatchFile
from d2net.networks.matcher import MatcherSettings, MatchingTransformer
from d2net.networks.weights import save_weights

from ..tiny import DATA, make_tiny_model
from .conftest import Real, Run

GRAF1, GRAF3 = DATA / "graf1.jpg", DATA / "graf3.jpg"
H = np.loadtxt(DATA / "H1to3p.txt")


# --- On a cluster ----------------------------------------------------------------------------


def test_a_cluster_is_for_files(d2net: Run, photos: Path) -> None:
    run = d2net("match", photos / "a.png", photos / "a.png", "--cluster", "auto")
    assert (run.code, run.out) == (2, "")
    assert run.err.startswith("error: give two photos")


# --- Two photos ------------------------------------------------------------------------------


def test_a_real_pair(real: Real) -> None:
    run = real("match", GRAF1, GRAF3, "--verify", "homography", "--max-edge", 320, "--json")
    assert (run.code, run.err) == (0, "")
    found = run.json
    assert found["photos"] == [str(GRAF1), str(GRAF3)]
    assert all(count > 100 for count in found["keypoints"])
    assert found["model"] == "homography"
    assert found["verdict"] == "same"
    assert found["significance"] > 10
    assert 20 < found["inliers"] < found["matches"]
    matrix = np.array(found["matrix"])
    corners = np.array([[0, 0, 1], [799, 0, 1], [799, 639, 1], [0, 639, 1]]).T
    ends, true = (m @ corners / (m @ corners)[2] for m in (matrix, H))
    assert np.linalg.norm(ends - true, axis=0).mean() < 30  # pixels of 800 x 640
    with Image.open(real.folder / found["output"]) as picture:
        assert picture.format == "PNG"
        assert picture.width > 900


def test_counts_are_told_and_the_picture_is_written(d2net: Run, photos: Path) -> None:
    run = d2net("match", photos / "a.png", photos / "day 1/ü b.png", "-o", "out.jpg")
    assert run.code == 1  # the photos are unrelated
    assert run.err == ""
    assert " keypoints, " in run.out
    assert "of a fundamental matrix, significance " in run.out
    assert run.out.endswith(": out.jpg\n")
    assert run.out.count("\n") == 1
    with Image.open("out.jpg") as picture:
        assert picture.format == "JPEG"


def test_of_two_photos_the_second_is_turned(d2net: Run, photos: Path) -> None:
    with Image.open(photos / "a.png") as photo:
        photo.transpose(Image.Transpose.ROTATE_90).save("turned.png")
    plain = d2net("match", photos / "a.png", "turned.png", "--verify", "none", "--json").json
    found = d2net("match", photos / "a.png", "turned.png", "--turns", 4, "--json").json
    assert found["keypoints"][0] == plain["keypoints"][0]
    assert found["keypoints"][1] > 3 * plain["keypoints"][1]
    assert found["inliers"] >= 0.95 * found["keypoints"][0]


def test_without_verification(d2net: Run, photos: Path) -> None:
    photo = photos / "a.png"
    run = d2net("match", photo, photo, "--verify", "none", "--json")
    assert run.json["keypoints"][0] == run.json["keypoints"][1] == run.json["matches"] > 0
    assert (run.json["model"], run.json["inliers"], run.json["matrix"]) == (None, None, None)
    assert run.json["output"] == "matches.png"
    assert d2net("match", photo, photo, "--verify", "none", "-q").err == ""


def test_unrelated_pictures_show_no_common_place(real: Real) -> None:
    rng = np.random.default_rng(0)
    for name in ("discs.png", "boxes.png"):
        picture = Image.new("RGB", (320, 240), "grey")
        draw = ImageDraw.Draw(picture)
        shape = draw.ellipse if name == "discs.png" else draw.rectangle
        for _ in range(150):
            x, y, radius = rng.uniform([0, 0, 3], [320, 240, 25])
            colour = tuple(int(value) for value in rng.integers(0, 256, 3))
            shape((x - radius, y - radius, x + radius, y + radius), fill=colour)
        picture.save(real.folder / name)
    run = real("match", "discs.png", "boxes.png")
    assert run.code == 1
    assert run.out.startswith("no evidence that these show the same place: ")


def test_matches_as_a_table(d2net: Run, photos: Path) -> None:
    a = photos / "a.png"
    for suffix in ("npz", "csv", "json"):
        run = d2net("match", a, a, "-o", f"matches.{suffix}", "--json")
        assert run.json["output"] == f"matches.{suffix}"
    arrays = np.load("matches.npz")
    listed = json.loads(Path("matches.json").read_text())
    table = np.genfromtxt("matches.csv", delimiter=",", names=True)
    assert len(arrays["points_a"]) == run.json["matches"]
    assert arrays["inliers"].sum() == run.json["inliers"]
    assert arrays["verdict"] == listed["verdict"] == run.json["verdict"]
    np.testing.assert_allclose(listed["points_b"], arrays["points_b"])
    np.testing.assert_allclose(table["x_b"], arrays["points_b"][:, 0])
    np.testing.assert_array_equal(table["inlier"], arrays["inliers"])


def test_photos_without_keypoints(d2net: Run, here: Path) -> None:
    Image.new("RGB", (60, 50)).save("black.png")
    run = d2net("match", "black.png", "black.png", "--json")
    assert run.code == 1
    assert (run.json["verdict"], run.json["significance"]) == ("none", 0)
    assert (run.json["keypoints"], run.json["matches"], run.json["inliers"]) == ([0, 0], 0, 0)


@pytest.mark.parametrize("command", ["match", "show"])
@pytest.mark.parametrize("stored", [False, True], ids=["upright", "stored orientation"])
def test_photos_are_turned_alike_for_keypoints_and_picture(
    d2net: Run, photos: Path, command: str, stored: bool
) -> None:
    with Image.open(photos / "a.png") as photo:
        exif = photo.getexif()
        exif[0x0112] = 6  # to be turned by a quarter
        photo.save("turned.png", exif=exif)
    inputs = ["turned.png"] * (2 if command == "match" else 1)
    options = ["--stored-orientation"] if stored else []
    run = d2net(command, *inputs, "-o", "picture.png", "--json", *options)
    assert run.code == 0, run.err
    if command == "show":
        assert run.json["image_size"] == ([96, 80] if stored else [80, 96])


def test_16_bit_photos(d2net: Run, here: Path) -> None:
    with Image.open(GRAF1) as photo:
        grey = np.asarray(photo.convert("L").resize((160, 128)), np.uint16) * 257
    Image.fromarray(grey).save("deep.png")
    assert d2net("match", "deep.png", "deep.png").code == 0
    assert d2net("show", "deep.png").code == 0


# --- Pairs of a features file ----------------------------------------------------------------


@pytest.fixture
def features(d2net: Run, photos: Path) -> Path:
    d2net("extract", photos, "-o", "f.h5")
    Path("pairs.txt").write_text("a.png\tday 1/ü b.png\nday 1/ü b.png\ta.png\n")
    return Path("f.h5")


def test_pairs_of_a_file(d2net: Run, features: Path) -> None:
    run = d2net("match", "--features", features, "--pairs", "pairs.txt", "-o", "m.h5", "--json")
    assert run.code == 0
    (pair,) = run.json["matched"]
    assert (pair["first"], pair["second"]) == ("a.png", "day 1/ü b.png")
    with MatchFile("m.h5") as file, FeatureFile(features) as photos:
        assert len(file.get("a.png", "day 1/ü b.png")) == pair["matches"]
        assert file.settings is not None
        assert file.settings["verify"] == "fundamental"
        assert file.settings["features"] == photos.settings
    run = d2net("match", "--features", features, "--pairs", "pairs.txt", "-o", "m.h5")
    assert run.out == "0 pairs matched, 0 matches; 1 matched before: m.h5\n"


def test_pairs_of_an_earlier_list_are_mentioned(d2net: Run, features: Path, photos: Path) -> None:
    arguments = ("match", "--features", features, "-o", "m.h5", "--pairs")
    d2net(*arguments, "pairs.txt")
    shutil.copy(photos / "a.png", photos / "c.png")
    d2net("extract", photos, "-o", features)
    Path("other.txt").write_text("a.png c.png\n")
    assert "1 pair of earlier lists kept: m.h5" in d2net(*arguments, "other.txt").out


def test_options_reach_the_matcher(d2net: Run, features: Path) -> None:
    options = ("--verify", "homography", "--threshold", 5, "--ratio", 0.9)
    run = d2net("match", "--features", features, "--pairs", "pairs.txt", "-o", "m.h5", *options)
    assert run.code == 0
    with MatchFile("m.h5") as file:
        assert file.settings is not None
        assert file.settings["verify"] == "homography"
        assert file.settings["threshold"] == 5
        assert file.settings["ratio"] == 0.9


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.png none.png\n", "'none.png'"),
        ("a.png\n", "line 1: expected two names"),
        ("\n", "no pairs"),
        ("a.png ../b.png\n", "line 1"),
    ],
)
def test_wrong_pairs(d2net: Run, features: Path, text: str, message: str) -> None:
    Path("pairs.txt").write_text(text)
    run = d2net("match", "--features", features, "--pairs", "pairs.txt", "-o", "m.h5")
    assert (run.code, run.out) == (2, "")
    assert run.err.startswith("error: ")
    assert message in run.err
    assert not Path("m.h5").exists()


def test_wrong_files(d2net: Run, features: Path) -> None:
    for wrong, message in (("none.h5", "none.h5"), ("pairs.txt", "not an HDF5 file")):
        run = d2net("match", "--features", wrong, "--pairs", "pairs.txt", "-o", "m.h5")
        assert run.code == 2
        assert message in run.err
    run = d2net("match", "--features", features, "--pairs", "pairs.txt", "-o", features)
    assert run.code == 2
    assert "is the input f.h5 of the same command" in run.err
    Path("other.h5").write_bytes(features.read_bytes())
    run = d2net("match", "--features", features, "--pairs", "pairs.txt", "-o", "other.h5")
    assert run.code == 2
    assert "other.h5 contains results of another kind" in run.err
    assert len(run.err) < 300
    run = d2net(
        *("match", "--features", features, "--pairs", "pairs.txt", "-o", "m.h5"),
        *("--device", "cuda:77"),
    )
    assert run.code == 2
    assert "cannot use device" in run.err


@pytest.mark.slow
def test_refined_matches_of_a_real_pair(real: Real) -> None:
    """The homography's error is that of the refined points."""
    wrong = []
    for option in ((), ("--refine",)):
        run = real("match", GRAF1, GRAF3, "--verify", "homography", *option, "--json")
        assert (run.code, run.err) == (0, "")
        corners = np.array([[0, 0, 1], [799, 0, 1], [799, 639, 1], [0, 639, 1]]).T
        found = np.array(run.json["matrix"])
        ends, true = (m @ corners / (m @ corners)[2] for m in (found, H))
        wrong.append(np.linalg.norm((ends - true)[:2], axis=0).mean())
    assert wrong[1] < wrong[0]


def test_refinement_is_for_verified_matches_of_two_photos(d2net: Run, photos: Path) -> None:
    a = photos / "a.png"
    for arguments in ((a, a, "--verify", "none"), ("--features", "f.h5", "--pairs", "p.txt")):
        run = d2net("match", *arguments, "--refine")
        assert (run.code, run.out) == (2, "")
        assert run.err.startswith("error: --refine needs two photos")


def test_options_of_extraction_are_refused_with_a_features_file(d2net: Run) -> None:
    run = d2net("match", "--features", "f.h5", "--pairs", "p.txt", "-o", "m.h5", "--turns", 4)
    assert run.code == 2
    assert "to d2net extract" in run.err


def test_a_learned_matcher_gives_confidences(d2net: Run, photos: Path) -> None:
    a, b = sorted(photos.rglob("*.png"))[:2]
    features = make_tiny_model().extract(a)
    length, descriptor_id = features.descriptors.shape[1], features.descriptor_id or ""
    network = MatchingTransformer(MatcherSettings(length, width=32, heads=2, layers=1))
    file = Path("matcher.safetensors")
    save_weights(file, network, {"name": "m", "descriptor_id": descriptor_id})
    run = d2net("match", a, b, "--matcher", file, "-o", "m.json", "--verify", "none", "--json")
    assert run.code == 0, run.err
    found = json.loads(Path("m.json").read_text())
    assert len(found["confidence"]) == run.json["matches"]
    assert all(0 < confidence <= 1 for confidence in found["confidence"])
