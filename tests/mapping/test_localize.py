"""Photos localized in a map whose truth is known, and photos of other scenes."""

from __future__ import annotations

import copy
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pycolmap
import pytest
import torch

from d2net import D2Net
from d2net.errors import InputError
from d2net.features import Features, Matches
from d2net.geometry.absolute_pose import AbsolutePoseOptions
from d2net.geometry.alignment import rotation_angle
from d2net.io.colmap_database import guessed_camera
from d2net.mapping.localize import Map
from d2net.mapping.map_folder import MapFolder
from d2net.mapping.query_pose import Correspondences, covisible_groups, estimate_query_pose
from d2net.mapping.reconstruct import reconstruct

from ..tiny import default_type
from .made import LENS, SIZE, PreparedNetwork, camera, nothing, seen, write_photos
from .test_reconstruct import POSES, map_of_truth, network, true_model

QUERY = camera(0.9, 6, z=1.0)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A map in the frame of the truth."""
    return map_of_truth(tmp_path_factory.mktemp("localize"))


def opened(root: Path, *queries: Features) -> Map:
    """The map, with a network that knows queries by the shades 0, 1, ..."""
    return Map(MapFolder(root / "map"), PreparedNetwork(queries))


def photo(shade: int) -> np.ndarray:
    return np.full((SIZE[1], SIZE[0], 3), shade, np.uint8)


def test_a_query_is_localized_where_it_was_taken(root: Path) -> None:
    answer = opened(root, seen(QUERY)).localize(photo(0), camera=LENS)
    assert answer.verdict == "localized"
    assert answer.cam_from_world is not None
    np.testing.assert_allclose(answer.cam_from_world.matrix(), QUERY.matrix(), atol=1e-3)
    assert answer.num_inliers == len(np.unique(answer.correspondences.rows)) > 50
    assert answer.best_photo in {f"photo{i:02}.png" for i in range(6)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_matches_with_one_photo(root: Path, dtype: torch.dtype) -> None:
    answer = opened(root, seen(QUERY)).localize(photo(0), num_retrieved=1)
    assert answer.best_photo is not None
    with default_type(dtype):
        assert len(answer.matches(answer.best_photo)) == len(answer.correspondences)
    other = "photo00.png" if answer.best_photo == "photo05.png" else "photo05.png"
    with pytest.raises(InputError, match=f"'{other}' gave no correspondences"):
        answer.matches(other)


def test_an_unknown_focal_length_is_estimated(root: Path) -> None:
    answer = opened(root, seen(QUERY)).localize(photo(0))
    assert answer.pose is not None
    assert not answer.known_camera
    assert answer.pose.camera.mean_focal_length() == pytest.approx(768, rel=1e-3)
    np.testing.assert_allclose(answer.pose.cam_from_world.matrix(), QUERY.matrix(), atol=1e-2)


@pytest.mark.parametrize("factor", [0.7, 1.0, 1.4])
def test_a_wrong_focal_length_in_exif_is_not_trusted(root: Path, factor: float) -> None:
    """A part cut out of a photo keeps the EXIF data of the whole photo."""
    query = seen(QUERY, 0.5)
    lens = guessed_camera(SIZE, focal_length=768 * factor)
    answer = opened(root, query).localize_features(query, lens, from_exif=True)
    assert answer.verdict == "localized"
    assert answer.pose is not None
    assert json.loads(json.dumps(answer.to_dict()))["camera"]["known"] is (factor == 1.0)
    assert answer.pose.camera.mean_focal_length() == pytest.approx(768, rel=1e-2)
    np.testing.assert_allclose(answer.pose.cam_from_world.matrix(), QUERY.matrix(), atol=0.1)


def test_noise_shows_in_the_uncertainty(root: Path) -> None:
    queries = [seen(QUERY, noise) for noise in (0.5, 4.0)]
    map_ = opened(root, *queries)
    sharp, blurred = (map_.localize(photo(i), camera=LENS) for i in (0, 1))
    assert sharp.pose is not None
    assert blurred.pose is not None
    assert blurred.pose.rotation_deviation > 3 * sharp.pose.rotation_deviation
    turned = rotation_angle(
        np.asarray(blurred.pose.cam_from_world.rotation.matrix()),
        np.asarray(QUERY.rotation.matrix()),
    )
    assert turned < 4 * blurred.pose.rotation_deviation


@pytest.mark.parametrize(
    ("query", "reason"),
    [(seen(QUERY, other=True), "correspondences"), (nothing(), "no keypoints")],
    ids=["another scene", "no keypoints"],
)
def test_other_photos_are_lost(root: Path, query: Features, reason: str) -> None:
    answer = opened(root, query).localize(photo(0), camera=LENS)
    assert answer.verdict == "lost"
    assert reason in answer.reason


def test_few_points_are_doubtful(root: Path) -> None:
    answer = opened(root, seen(QUERY)[:6]).localize(photo(0), camera=LENS)
    assert answer.verdict == "doubtful"
    assert 0 < answer.significance < 10
    assert answer.pose is not None


def test_the_same_query_gives_the_same_answer_twice(root: Path) -> None:
    map_ = opened(root, seen(QUERY, 2.0))
    first, second = (map_.localize(photo(0), camera=LENS, seed=3) for _ in range(2))
    assert first.to_dict() == second.to_dict()


def test_a_camera_of_another_size_is_refused(root: Path) -> None:
    small = pycolmap.Camera(model="SIMPLE_RADIAL", width=64, height=48, params=[77, 32, 24, 0.0])
    with pytest.raises(InputError, match="must be the same"):
        opened(root, seen(QUERY)).localize(photo(0), camera=small)


@pytest.mark.parametrize("focal_length", [-500.0, 0.0, math.nan, math.inf])
def test_an_impossible_camera_is_refused(root: Path, focal_length: float) -> None:
    lens = copy.deepcopy(LENS)
    lens.params = [focal_length, *LENS.params[1:]]
    with pytest.raises(InputError, match="positive focal length"):
        opened(root, seen(QUERY)).localize(photo(0), camera=lens)


@pytest.mark.parametrize(
    ("model", "params", "reason"),
    [("PINHOLE", [300.0, 160, 120], "not 3 numbers"), ("EQUIRECTANGULAR", [], "panoramas")],
)
def test_features_with_an_impossible_camera_are_refused(
    root: Path, model: str, params: list[float], reason: str
) -> None:
    lens = pycolmap.Camera(model=model, width=LENS.width, height=LENS.height, params=params)
    map_ = opened(root, seen(QUERY))
    with pytest.raises(InputError, match=reason):
        map_.localize_features(map_.model.extract(photo(0)), lens)


def test_a_camera_without_a_size_has_that_of_the_photo(root: Path) -> None:
    map_, lens = opened(root, seen(QUERY)), copy.deepcopy(LENS)
    features = map_.model.extract(photo(0))
    lens.width = lens.height = 0
    without, expected = (map_.localize_features(features, c).to_dict() for c in (lens, LENS))
    assert without == expected


def test_photos_of_two_scenes_are_not_mixed(tmp_path: Path) -> None:
    """One model of two scenes without matches in between: half the correspondences are wrong."""
    photos = write_photos(tmp_path / "photos", range(12))
    model = true_model()
    elsewhere = [seen(pose, other=True) for pose in POSES]
    for i, (pose, features) in enumerate(zip(POSES, elsewhere, strict=True), start=6):
        points = features.keypoints.double().numpy() + 0.5
        image = pycolmap.Image(
            name=f"photo{i:02}.png", keypoints=points, camera_id=1, image_id=i + 1
        )
        model.add_image_with_trivial_frame(image, pose)
    (tmp_path / "poses").mkdir()
    model.write_text(tmp_path / "poses")
    both = network([*(seen(pose) for pose in POSES), *elsewhere])
    reconstruct(photos, tmp_path / "map", model=both, poses=tmp_path / "poses")
    answer = opened(tmp_path, seen(QUERY)).localize(photo(0), camera=LENS)
    assert answer.verdict == "localized"
    assert set(answer.photos) == {f"photo{i:02}.png" for i in range(6)}


def test_opening_needs_a_finished_map_and_its_weights(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match="not a map"):
        Map.open(tmp_path)
    shutil.copy(root / "map" / "matches.h5", tmp_path / "features.h5")
    with pytest.raises(InputError, match="no features of a map"):
        Map.open(tmp_path)
    with pytest.raises(InputError, match=r"with the weights untrained .* give their file"):
        Map.open(root / "map")
    stranger = network()
    stranger.weights = {"name": "others", "sha256": "f" * 64}
    monkeypatch.setattr(D2Net, "from_pretrained", lambda *_, **__: stranger)
    with pytest.raises(InputError, match="not with others"):
        Map.open(root / "map", weights="others")
    stranger.weights = network().weights
    (root / "map" / "sparse" / ".DS_Store").touch()  # macOS leaves it in every folder
    assert len(Map.open(root / "map", weights="untrained").names) == 6
    stranger.weights = {**network().weights, "name": "renamed"}
    opened = Map.open(root / "map", weights="renamed")
    assert opened.model.weights == network().weights


def test_equal_correspondences_count_once() -> None:
    matches = Matches(torch.tensor([[0, 0], [1, 1], [2, 2]]), torch.ones(3))
    points = np.array([[0.0, 0, 1], [1, 1, 1], [np.nan] * 3])
    others = points.copy()
    others[1] = [5, 5, 5]
    found = Correspondences.from_matches([(matches, points), (replace(matches), others)])
    assert found.rows.tolist() == [0, 1, 1]
    assert found.photos.tolist() == [0, 0, 1]
    assert found.map_rows.tolist() == [0, 1, 1]
    assert len(Correspondences.from_matches([])) == 0


def test_a_significant_pose_goes_before_one_with_more_inliers() -> None:
    """With many photos all inliers may be accidental, while a few photos determine the pose."""
    rng = np.random.default_rng(0)
    world = rng.uniform([-3, -3, 4], [3, 3, 9], (3000, 3))
    pixels = LENS.img_from_cam(world) - 0.5
    pixels[12:] = rng.uniform([0, 0], SIZE, (2988, 2))
    keypoints, ones = torch.from_numpy(pixels).float(), torch.ones(3000)
    features = Features(keypoints, ones, ones, torch.ones(3000, 1), SIZE, ones)
    rows = {"few": np.arange(14), "many": np.arange(12, 3000)}

    def match(name: str) -> Matches:
        indices = torch.from_numpy(rows[name])[:, None].expand(-1, 2)
        return Matches(indices, torch.ones(len(indices)))

    for groups in ((("few",), ("many",)), (("many",), ("few",))):
        options = AbsolutePoseOptions(threshold=12.0)
        found = estimate_query_pose(features, LENS, options, groups, match, lambda _: world)
        assert found.photos == ("few",)


def test_the_photos_of_a_group_are_sorted_by_similarity() -> None:
    points = {"a": range(20), "b": range(40, 60), "c": range(10, 50)}
    groups = covisible_groups("abc", lambda name: frozenset(points[name]))
    assert groups == [("a", "b", "c")]
