import sys

import numpy as np
import pycolmap
import pytest
from numpy.testing import assert_allclose
from PIL import Image

from d2net.errors import FormatError, InputError, MissingPackageError
from d2net.evaluation.cache import CachedSource
from d2net.evaluation.pose import evaluate_pose, line_angle, rotation_angle
from d2net.evaluation.pose_dataset import find_pairs
from d2net.geometry.cameras import pinhole, rays

from .scene import SIZE, K, Known, R, T, views

PINHOLE = "PINHOLE 800 600 700 700 400.5 300.5"  # COLMAP's half pixel


def quaternion(rotation):
    x, y, z, w = pycolmap.Rotation3d(rotation).quat
    return f"{w} {x} {y} {z}"


def put_model(folder, poses, camera=PINHOLE):
    """A COLMAP text model without points: name -> (R, t)."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cameras.txt").write_text(f"1 {camera}\n")
    (folder / "points3D.txt").write_text("")
    lines = [
        f"{i} {quaternion(r)} {' '.join(map(str, t))} 1 {name}\n\n"
        for i, (name, (r, t)) in enumerate(poses.items(), start=1)
    ]
    (folder / "images.txt").write_text("".join(lines))


def put_photos(folder, names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(str(folder / name).encode())  # the fake source reads no pixels


POSES = {"a.jpg": (np.eye(3), np.zeros(3)), "b.jpg": (R, T)}


@pytest.fixture
def folder(tmp_path):
    put_model(tmp_path / "scene/model", POSES)
    put_photos(tmp_path / "scene/images", POSES)
    return tmp_path / "scene"


def known(a, b, **options):
    return Known({"images/a.jpg": a, "images/b.jpg": b}, **options)


def evaluate(source, folder, **options):
    return evaluate_pose(CachedSource(source, folder.parent / "cache"), folder, **options)


@pytest.mark.parametrize("solver", ["poselib", "magsac"])
def test_projections_of_a_scene_give_the_true_pose(folder, solver):
    result = evaluate(known(*views(120, seed=0)), folder, solver=solver)
    (pair,) = result.pairs
    assert (pair.group, pair.photos) == ("scene", ("images/a.jpg", "images/b.jpg"))
    overall = result.groups["overall"]
    for t in (1, 2):
        assert pair.figures[f"error t={t}"] < 0.02  # degrees
        assert overall[f"AUC@1 t={t}"] > 0.99
        assert overall[f"AUC@20 t={t}"] > 0.999
        assert overall[f"inliers t={t}"] == 1
    assert overall["precision@1"] == 1
    assert overall["matches"] == 120
    assert pair.drawing.correct.all()
    assert {metric.name for metric in result.headline} <= set(overall)
    assert {result.curve.metric(t).name for t in result.curve.thresholds} <= set(overall)


def test_lens_distortion_is_undone(folder):
    camera = pycolmap.Camera(
        model="SIMPLE_RADIAL", width=800, height=600, params=[700, 400.5, 300.5, 0.2]
    )
    put_model(folder / "model", POSES, camera="SIMPLE_RADIAL 800 600 700 400.5 300.5 0.2")
    straight = [(points - K[:2, 2]) / 700 for points in views(120, seed=0)]
    bent = [camera.img_from_cam(np.hstack([x, np.ones((120, 1))])) - 0.5 for x in straight]
    assert_allclose(rays(camera, bent[0]), straight[0], atol=1e-9)
    assert np.abs(bent[0] - views(120, seed=0)[0]).max() > 5
    overall = evaluate(known(*bent), folder).groups["overall"]
    assert overall["AUC@1 t=1"] > 0.99
    assert overall["precision@1"] == 1


def test_wrong_geometry_and_no_features_score_nothing(folder):
    a, _ = views(120, seed=0)
    elsewhere = np.random.default_rng(5).uniform([0, 0], SIZE, (120, 2))
    wrong = evaluate(known(a, elsewhere), folder).groups["overall"]
    assert wrong["AUC@5 t=1"] == 0
    assert wrong["precision@1"] < 0.05
    nothing = evaluate(known(a, np.empty((0, 2))), folder)
    figures = nothing.groups["overall"]
    assert figures["AUC@20 t=1"] == figures["precision@10"] == figures["inliers t=2"] == 0
    assert nothing.pairs[0].figures["error t=1"] == figures["median error t=1"] == 180


def test_a_right_solution_of_a_wrong_model_has_its_error(folder):
    turn = np.radians(4)
    about_z = np.array(
        [[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]]
    )
    put_model(folder / "model", {"a.jpg": POSES["a.jpg"], "b.jpg": (about_z @ R, about_z @ T)})
    result = evaluate(known(*views(120, seed=0)), folder)
    # Rotation is 4 degrees off, the direction of translation at most as much.
    assert result.pairs[0].figures["error t=1"] == pytest.approx(4, abs=0.02)
    overall = result.groups["overall"]
    assert overall["AUC@1 t=1"] == 0
    assert overall["AUC@5 t=1"] == pytest.approx((4 / 2 + 1) / 5, abs=0.01)
    assert overall["AUC@10 t=1"] == pytest.approx((4 / 2 + 6) / 10, abs=0.01)


def test_scenes_are_groups_and_overall_is_over_all_their_pairs(folder):
    other = folder.parent / "other"
    put_model(other / "model", POSES)
    put_photos(other / "images", POSES)
    a, b = views(120, seed=0)
    points = {"scene/images/a.jpg": a, "scene/images/b.jpg": b}
    points |= {"other/images/a.jpg": a, "other/images/b.jpg": np.empty((0, 2))}
    result = evaluate(Known(points), folder.parent)
    assert list(result.groups) == ["other", "scene", "overall"]
    assert result.groups["other"]["AUC@10 t=1"] == 0
    assert result.groups["scene"]["AUC@10 t=1"] > 0.99
    # Recall rises to one half at the small error and stays there.
    assert result.groups["overall"]["AUC@10 t=1"] == pytest.approx(0.5, abs=0.01)


def test_twice_gives_the_same(folder):
    rng = np.random.default_rng(1)
    a, b = views(120, seed=0)
    b = b + rng.normal(0, 2, b.shape)
    b[:60] = rng.uniform([0, 0], SIZE, (60, 2))
    first, second = (evaluate(known(a, b), folder).to_dict() for _ in range(2))
    assert first == second


def superglue_line(rotation=R, rot0=0, intrinsics=K):
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = rotation, T
    numbers = [rot0, 0, *intrinsics.ravel(), *K.ravel(), *pose.ravel()]
    return "images/a.jpg images/b.jpg " + " ".join(map(str, numbers)) + "\n"


def test_superglue_pairs_need_no_model(folder):
    for path in (folder / "model").iterdir():
        path.unlink()
    (folder.parent / "pairs.txt").write_text(superglue_line())
    result = evaluate(known(*views(120, seed=0)), folder, pairs=folder.parent / "pairs.txt")
    assert result.groups["overall"]["AUC@1 t=1"] > 0.99
    assert result.groups["overall"]["precision@1"] == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (superglue_line().rpartition(" ")[0], "needs 2 names and 36 numbers"),
        (superglue_line().replace("700.0", "nan"), "needs 2 names and 36 numbers"),
        (superglue_line(rot0=1), "asks to rotate photos"),
        (superglue_line(rotation=2 * R), "does not begin with a rotation"),
        (superglue_line(intrinsics=np.eye(3) - 2 * K), "camera matrix"),
        (superglue_line().replace("a.jpg", "c.jpg"), "photo images/c.jpg, which is not in"),
        (superglue_line() + superglue_line(R.T), r"line 2: .*a\.jpg images/b\.jpg repeats"),
        (superglue_line().replace("b.jpg", "a.jpg"), r"pairs\.txt pairs .*a\.jpg with itself"),
    ],
)
def test_broken_superglue_pairs_are_told(folder, line, message):
    (folder.parent / "pairs.txt").write_text(line)
    with pytest.raises(FormatError, match=message) as error:
        find_pairs(folder, pairs=folder.parent / "pairs.txt")
    assert "\n" not in str(error.value)


def test_a_listed_photo_without_a_pose_is_told(folder):
    put_model(folder / "model", {"a.jpg": POSES["a.jpg"]})
    (folder / "pairs.txt").write_text("a.jpg b.jpg\n")
    with pytest.raises(FormatError, match=r"has no pose of the photo b\.jpg"):
        find_pairs(folder, pairs=folder / "pairs.txt")


def test_a_photo_paired_with_itself_is_told(folder):
    (folder / "pairs.txt").write_text("a.jpg b.jpg\nb.jpg b.jpg\n")
    with pytest.raises(FormatError, match=r"pairs\.txt pairs .*b\.jpg with itself"):
        find_pairs(folder, pairs=folder / "pairs.txt")


def test_a_photo_that_only_the_model_has_is_told(folder):
    (folder / "images/b.jpg").unlink()
    with pytest.raises(FormatError, match=r"names the photo b\.jpg, which is not in"):
        find_pairs(folder)


@pytest.mark.parametrize(("orientation", "size"), [(3, (800, 600)), (6, (800, 800))])
def test_rotations_that_keep_the_size_are_named(folder, caplog, orientation, size):
    exif = Image.Exif()
    exif[274] = orientation
    Image.new("RGB", size).save(folder / "images/b.jpg", exif=exif)
    put_model(folder / "model", POSES, f"PINHOLE {size[0]} {size[1]} 500 500 400 300")
    evaluate(known(*views(120, seed=0), size=size), folder)
    (record,) = caplog.records
    assert "b.jpg" in record.getMessage()
    assert "upright" in record.getMessage()


def test_swapped_sizes_are_told(folder):
    source = known(*views(120, seed=0), size=(600, 800))
    with pytest.raises(InputError, match=r"600 x 800 pixels, but its camera 800 x 600"):
        evaluate(source, folder)


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("cameras.txt", "1 PINHOLE 800 600 700\n"),
        ("images.txt", "x\n"),
        ("images.txt", "1 1 0 0\n"),
    ],
)
def test_a_broken_model_is_told(folder, file, text):
    (folder / "model" / file).write_text(text)
    with pytest.raises(FormatError, match="cannot be read") as error:
        find_pairs(folder)
    assert "\n" not in str(error.value)


def test_folders_without_pairs_are_told(folder):
    with pytest.raises(InputError, match="holds no COLMAP model"):
        find_pairs(folder / "images")
    with pytest.raises(InputError, match="holds no COLMAP model"):
        find_pairs(folder, model=folder / "images")
    (folder / "pairs.txt").write_text("\n")
    with pytest.raises(InputError, match="holds no pair of photos"):
        find_pairs(folder, pairs=folder / "pairs.txt")


def test_magsac_needs_no_further_package(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "poselib", None)
    source = known(*views(120, seed=0))
    assert evaluate(source, folder, solver="magsac").groups["overall"]["AUC@1 t=1"] > 0.99
    with pytest.raises(MissingPackageError, match="choose magsac"):
        evaluate(source, folder)


def test_angles():
    assert rotation_angle(R, np.eye(3)) == pytest.approx(np.degrees(np.arccos(0.96)))
    assert rotation_angle(R, R) == 0
    assert rotation_angle(np.diag([1.0, -1, -1]), np.eye(3)) == pytest.approx(180)
    x, y = np.eye(3)[:2]
    assert line_angle(x, y) == 90
    assert line_angle(x + y, x) == pytest.approx(45)
    assert line_angle(-x, x) == 0  # a line has no sign
    assert line_angle(x, 0 * x) == 0


def test_a_pinhole_has_its_half_pixel():
    camera = pinhole(K)
    assert_allclose(rays(camera, np.array([[400.0, 300], [1100, 300]])), [[0, 0], [1, 0]])
    assert rays(camera, np.empty((0, 2))).shape == (0, 2)
    with pytest.raises(InputError, match="camera matrix"):
        pinhole(np.diag([1.0, 0, 1]))


@pytest.mark.shared
@pytest.mark.parametrize(("scene", "pairs"), [("strecha", 55 + 28), ("reichstag", 45)])
def test_real_scenes_are_read(shared, scene, pairs):
    assert len(find_pairs(shared / "data/eval" / scene)) == pairs
