"""The protocol of planar sequences, where the answer is known and against an independent one."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from d2net.errors import FormatError, InputError
from d2net.evaluation import homography
from d2net.evaluation.cache import CachedSource
from d2net.evaluation.homography import evaluate_homography, find_pairs
from d2net.features import Features, Matches

SIZE = (200, 160)
H = np.array([[0.9, 0.1, 12.0], [-0.05, 1.1, -6.0], [1e-4, 2e-4, 1.0]])


def transferred(H: np.ndarray, points: np.ndarray) -> np.ndarray:
    homogeneous = np.c_[points, np.ones(len(points))] @ H.T
    return homogeneous[:, :2] / homogeneous[:, 2:]


def features(points: np.ndarray, descriptors: np.ndarray) -> Features:
    n = len(points)
    return Features(
        keypoints=torch.from_numpy(points).float().view(n, 2),
        scores=torch.arange(n, 0, -1).float(),
        scales=torch.ones(n),
        descriptors=torch.nn.functional.normalize(torch.from_numpy(descriptors).float(), dim=1),
        image_size=SIZE,
        uncertainty=torch.ones(n),
    )


class Known:
    """Features that are put in by hand."""

    name = "known"

    def __init__(self, by_name: dict[str, Features]) -> None:
        self.by_name = by_name
        self.calls = 0

    @property
    def provenance(self) -> dict[str, Any]:
        return {"known": sorted(self.by_name), "id": id(self)}

    def extract(self, photo: Path, name: str) -> Features:
        self.calls += 1
        return self.by_name[name]


def write_sequence(folder: Path, name: str, homographies: dict[int, np.ndarray]) -> None:
    (folder / name).mkdir(parents=True)
    for k in (1, *homographies):
        seed = [k, *name.encode()]
        noise = np.random.default_rng(seed).integers(0, 255, (SIZE[1], SIZE[0]), np.uint8)
        Image.fromarray(noise).save(folder / name / f"{k}.ppm")
    for k, matrix in homographies.items():
        np.savetxt(folder / name / f"H_1_{k}", matrix)


@pytest.fixture
def scene(tmp_path: Path) -> tuple[Path, np.ndarray, np.ndarray]:
    folder = tmp_path / "data"
    write_sequence(folder, "v_one", {2: H})
    rng = np.random.default_rng(0)
    points = rng.uniform((40, 40), (150, 110), (100, 2))
    return folder, points, rng.normal(size=(100, 32))


def evaluate(folder: Path, a: Features, b: Features, max_keypoints: int | None = None) -> Any:
    known = Known({"v_one/1.ppm": a, "v_one/2.ppm": b})
    source = CachedSource(known, folder.parent / "cache", max_keypoints=max_keypoints)
    return evaluate_homography(source, folder)


def test_displaced_matches_are_right_from_their_distance_on(
    scene: tuple[Path, np.ndarray, np.ndarray],
) -> None:
    """Half are exact, a quarter 2.5 px off, a quarter 30 px off."""
    folder, points, descriptors = scene
    there = transferred(H, points)
    there[50:75, 0] += 2.5
    there[75:, 1] += 30
    result = evaluate(folder, features(points, descriptors), features(there, descriptors))
    figures = result.groups["overall"]
    assert [figures[f"MMA@{t}"] for t in (1, 2, 3, 10)] == pytest.approx([0.5, 0.5, 0.75, 0.75])
    assert figures["matches"] == 100
    assert figures["features"] == 100
    assert figures["corner@3"] == 1
    assert result.groups["viewpoint"] == figures
    assert "illumination" not in result.groups


def test_only_mutual_matches_count(scene: tuple[Path, np.ndarray, np.ndarray]) -> None:
    folder, points, descriptors = scene
    doubled = np.r_[descriptors, descriptors[:50] * [[1.0] * 31 + [1.3]]]
    there = transferred(H, np.r_[points, points[:50] + 60])
    result = evaluate(folder, features(points, descriptors), features(there, doubled))
    assert result.groups["overall"]["matches"] == 100
    assert result.groups["overall"]["MMA@1"] == pytest.approx(1)


def test_no_matches_count_zero(scene: tuple[Path, np.ndarray, np.ndarray]) -> None:
    folder, points, descriptors = scene
    none = features(points[:0], descriptors[:0])
    result = evaluate(folder, features(points, descriptors), none)
    figures = result.groups["overall"]
    assert figures["MMA@10"] == figures["corner@5"] == 0


def test_the_budget_keeps_the_best(scene: tuple[Path, np.ndarray, np.ndarray]) -> None:
    folder, points, descriptors = scene
    there = transferred(H, points)
    there[30:] += 50
    a, b = features(points, descriptors), features(there, descriptors)
    figures = evaluate(folder, a, b, max_keypoints=30).groups["overall"]
    assert figures["features"] == 30
    assert figures["MMA@1"] == pytest.approx(1)


def test_twice_gives_identical_figures_and_extracts_once(
    scene: tuple[Path, np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    folder, points, descriptors = scene
    known = Known(
        {
            "v_one/1.ppm": features(points, descriptors),
            "v_one/2.ppm": features(transferred(H, points), descriptors),
        }
    )
    source = CachedSource(known, tmp_path / "cache")
    first = evaluate_homography(source, folder)
    second = evaluate_homography(source, folder)
    assert first.to_dict() == second.to_dict()
    assert known.calls == 2


def test_against_an_independent_implementation(tmp_path: Path) -> None:
    """Random features on several sequences, counted with plain loops."""
    folder = tmp_path / "data"
    rng = np.random.default_rng(1)
    by_name, expected = {}, []
    for sequence in ("i_a", "v_b"):
        write_sequence(folder, sequence, {2: H, 3: np.linalg.inv(H)})
        descriptors = rng.normal(size=(60, 16))
        points = rng.uniform(0, 150, (60, 2))
        by_name[f"{sequence}/1.ppm"] = features(points, descriptors)
        for k, matrix in ((2, H), (3, np.linalg.inv(H))):
            noisy = descriptors + rng.normal(size=descriptors.shape) * 0.8
            there = transferred(matrix, points) + rng.normal(size=points.shape) * 3
            by_name[f"{sequence}/{k}.ppm"] = features(there, noisy)
            a = descriptors / np.linalg.norm(descriptors, axis=1, keepdims=True)
            b = noisy / np.linalg.norm(noisy, axis=1, keepdims=True)
            right = total = 0
            for i in range(60):
                j = int(np.argmax(a[i] @ b.T))
                if int(np.argmax(a @ b[j])) == i:
                    total += 1
                    target = matrix @ np.append(points[i].astype(np.float32), 1)
                    distance = target[:2] / target[2] - there[j].astype(np.float32)
                    right += np.hypot(*distance) <= 3
            expected.append(right / total)
    source = CachedSource(Known(by_name), tmp_path / "cache")
    result = evaluate_homography(source, folder)
    assert [pair.figures["MMA@3"] for pair in result.pairs] == pytest.approx(expected)
    assert result.groups["overall"]["MMA@3"] == pytest.approx(np.mean(expected))
    assert result.groups["illumination"]["MMA@3"] == pytest.approx(np.mean(expected[:2]))


def test_features_are_counted_once_per_photo(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    write_sequence(folder, "v_one", {2: H, 3: H, 4: H})
    rng = np.random.default_rng(2)
    by_name = {
        f"v_one/{k}.ppm": features(rng.uniform(0, 99, (n, 2)), rng.normal(size=(n, 8)))
        for k, n in ((1, 10), (2, 20), (3, 30), (4, 40))
    }
    result = evaluate_homography(CachedSource(Known(by_name), tmp_path / "cache"), folder)
    assert result.groups["overall"]["features"] == result.groups["v_one"]["features"] == 25


def test_the_matches_of_the_matcher_are_refined(
    scene: tuple[Path, np.ndarray, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, points, _ = scene
    descriptors = np.random.default_rng(0).normal(size=(len(points), 192))  # as long as light's
    known = Known(
        {
            "v_one/1.ppm": features(points, descriptors),
            "v_one/2.ppm": features(transferred(H, points), descriptors),
        }
    )
    given: list[Matches] = []

    def refine(a: Features, b: Features, matches: Matches, *_: object, **__: object) -> Any:
        given.append(matches)
        return a, b

    monkeypatch.setattr(homography, "refine", refine)
    source = CachedSource(known, tmp_path / "cache", matcher="learned")
    evaluate_homography(source, folder, refined=True)
    assert given[0].confidence is not None and given[0].inliers is not None


def test_a_sequence_may_be_called_like_a_union(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    write_sequence(folder, "viewpoint", {2: H})
    rng = np.random.default_rng(2)
    one = features(rng.uniform(0, 99, (10, 2)), rng.normal(size=(10, 8)))
    by_name = {f"viewpoint/{k}.ppm": one for k in (1, 2)}
    result = evaluate_homography(CachedSource(Known(by_name), tmp_path / "cache"), folder)
    assert result.groups["viewpoint"]["matches"] == 10


def test_layouts_of_hpatches_and_oxford(tmp_path: Path) -> None:
    write_sequence(tmp_path, "i_x", {2: H, 10: H})
    (tmp_path / "graf").mkdir()
    for k in (1, 3):
        Image.new("L", (40, 30)).save(tmp_path / "graf" / f"img{k}.png")
    np.savetxt(tmp_path / "graf" / "H1to3p", H)
    found = [(p.group, p.photos[1].name) for p in find_pairs(tmp_path)]
    assert found == [("graf", "img3.png"), ("i_x", "2.ppm"), ("i_x", "10.ppm")]
    assert [p.group for p in find_pairs(tmp_path / "graf")] == ["graf"]


def test_hpatches_proper_leaves_eight_sequences_out(tmp_path: Path) -> None:
    names = [f"i_{n}" for n in range(100)] + ["v_talent", "i_dc", "v_other"]
    for name in names:
        (tmp_path / name).mkdir()
        for k in (1, 2):
            (tmp_path / name / f"{k}.ppm").touch()
        np.savetxt(tmp_path / name / "H_1_2", H)
    sequences = {pair.group for pair in find_pairs(tmp_path)}
    assert len(sequences) == 101
    assert not sequences & {"v_talent", "i_dc"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "needs one homography, H_1_2"),
        ("1 2 3", "3 x 3"),
        ("a b c d e f g h i", "3 x 3"),
        ("0 0 0 0 0 0 0 0 0", "rank 3"),
        ("nan 0 0 0 1 0 0 0 1", "finite"),
    ],
)
def test_broken_truth_is_one_sentence(tmp_path: Path, content: str | None, message: str) -> None:
    write_sequence(tmp_path, "v_one", {2: H})
    path = tmp_path / "v_one" / "H_1_2"
    path.unlink()
    if content is not None:
        path.write_text(content)
    with pytest.raises(FormatError, match=message):
        find_pairs(tmp_path)


def test_a_homography_without_its_photo_is_told(tmp_path: Path) -> None:
    write_sequence(tmp_path, "v_one", {2: H, 3: H})
    (tmp_path / "v_one" / "3.ppm").rename(tmp_path / "v_one" / "3.jp2")
    with pytest.raises(FormatError, match="H_1_3 is the homography of an image that"):
        find_pairs(tmp_path)


@pytest.mark.parametrize(
    ("copy", "of"),
    [("2.png", "2.ppm"), ("img2.ppm", "2.ppm"), ("01.ppm", "1.ppm"), ("H1to2p", "H_1_2")],
)
def test_two_files_of_one_number_are_told(tmp_path: Path, copy: str, of: str) -> None:
    write_sequence(tmp_path, "v_one", {2: H})
    shutil.copy(tmp_path / "v_one" / of, tmp_path / "v_one" / copy)
    with pytest.raises(FormatError) as error:
        find_pairs(tmp_path)
    assert copy in str(error.value)
    assert of in str(error.value)


def test_no_sequences(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no sequence"):
        find_pairs(tmp_path)


@pytest.mark.shared
@pytest.mark.slow
def test_rootsift_on_oxford(shared: Path, tmp_path: Path) -> None:
    """Measured elsewhere with OpenCV's RootSIFT and 8,000 features."""
    from d2net.evaluation.feature_sources import open_source

    source = CachedSource(open_source("rootsift"), tmp_path)
    figures = evaluate_homography(source, shared / "data" / "eval" / "oxford").groups["overall"]
    found = [figures[f"MMA@{t}"] for t in (1, 3, 5, 10)]
    np.testing.assert_allclose(found, [0.412, 0.533, 0.554, 0.573], atol=0.01)
