import json

import numpy as np
import pycolmap
import pytest

from d2net.errors import FormatError, InputError
from d2net.evaluation.cache import CachedFeatures
from d2net.evaluation.localization import LocalizationSettings, evaluate_localization
from d2net.io.poses import read_poses
from d2net.progress import no_progress

from .miniature import write_aachen, write_inloc
from .scene import SIZE, Known

LENS = pycolmap.Camera(
    model="SIMPLE_RADIAL", width=SIZE[0], height=SIZE[1], params=[700, 400, 300, 0.1]
)
N = 150
POINTS = np.random.default_rng(0).uniform([-3, -2, 6], [3, 2, 12], (N, 3))


def pose(x, turn):
    """A camera at (x, 0, 0), turned about the vertical by so many degrees."""
    c, s = np.cos(np.radians(turn)), np.sin(np.radians(turn))
    rotation = np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])
    return pycolmap.Rigid3d(pycolmap.Rotation3d(rotation), -rotation @ [x, 0.1 * x, 0])


DATABASE = {f"db/{i}.jpg": pose(x, -3 * x) for i, x in enumerate((-2.0, -1.0, 1.0, 2.0))}
QUERIES = {
    "query/day/nexus4/a.jpg": pose(0.3, 2),
    "query/day/nexus4/b.jpg": pose(-0.7, 5),
    "query/night/nexus5x/c.jpg": pose(1.4, -8),
}
EVERYONE = DATABASE | QUERIES


def seen(cam_from_world, lens=LENS):
    """Pixels of all points, centres at integers."""
    return lens.img_from_cam(np.array([cam_from_world * p for p in POINTS])) - 0.5


KEYPOINTS = {name: seen(place) for name, place in EVERYONE.items()}


def true_model():
    """The database with every third point, as a model of other features would have them."""
    model = pycolmap.Reconstruction()
    for i, (name, place) in enumerate(DATABASE.items(), start=1):
        camera = pycolmap.Camera(LENS.todict())
        camera.camera_id = i
        model.add_camera_with_trivial_rig(camera)
        image = pycolmap.Image(
            name=name, keypoints=KEYPOINTS[name][::3] + 0.5, camera_id=i, image_id=i
        )
        model.add_image_with_trivial_frame(image, place)
    for row, point in enumerate(POINTS[::3]):
        elements = [pycolmap.TrackElement(i, row) for i in range(1, 5)]
        model.add_point3D(point, pycolmap.Track(elements))
    return model


@pytest.fixture
def folder(tmp_path):
    write_aachen(
        tmp_path / "aachen",
        true_model(),
        {name: (LENS, place) for name, place in QUERIES.items()},
        {name: name.encode() for name in EVERYONE},  # the fake source reads no pixels
    )
    return tmp_path / "aachen"


def evaluate(
    folder, source=None, *, submission=None, progress=None, max_keypoints=None, **settings
):
    cached = CachedFeatures(
        source or Known(KEYPOINTS), folder.parent / "cache", max_keypoints=max_keypoints
    )
    return evaluate_localization(
        cached,
        folder,
        LocalizationSettings(**settings),
        submission=submission,
        progress=no_progress if progress is None else progress,
    )


def test_exact_keypoints_give_exact_poses(folder):
    result = evaluate(folder, truth=folder / "truth.txt", submission=folder / "poses.txt")
    assert [pair.group for pair in result.pairs] == ["day", "day", "night"]
    assert list(result.groups) == ["day", "night", "overall"]
    for group in result.groups.values():
        assert group["0.25 m, 2°"] == group["10 m, 25°"] == group["localized"] == 100
        assert group["median position error"] < 1e-3
        assert group["median rotation error"] < 1e-2
        assert group["inliers"] == group["2D-3D matches"] > 140  # each point once, for 4 photos
    assert {metric.name for metric in result.headline} <= set(result.groups["overall"])
    poses = read_poses(folder / "poses.txt")
    assert list(poses) == ["a.jpg", "b.jpg", "c.jpg"]
    np.testing.assert_allclose(
        poses["c.jpg"].matrix(), QUERIES["query/night/nexus5x/c.jpg"].matrix(), atol=1e-3
    )
    first = result.pairs[0]
    assert first.photos[0] == "images/images_upright/query/day/nexus4/a.jpg"
    assert first.photos[1].startswith("images/images_upright/db/")
    assert first.drawing.correct.all()
    assert len(first.drawing.points_a) > 0


def test_a_wrong_truth_counts_by_the_limits_that_it_misses(folder):
    moved = QUERIES | {
        "query/day/nexus4/b.jpg": pose(-0.7, 8),  # turned by 3 degrees, in the same place
        "query/night/nexus5x/c.jpg": pose(1.4 + 0.4 / np.hypot(1, 0.1), -8),  # 0.4 m away
    }
    from .miniature import write_truth

    write_truth(folder / "moved.txt", moved)
    result = evaluate(folder, truth=folder / "moved.txt")
    a, b, c = (pair.figures for pair in result.pairs)
    assert (b["position error"], b["rotation error"]) == pytest.approx((0, 3), abs=0.01)
    assert (c["position error"], c["rotation error"]) == pytest.approx((0.4, 0), abs=0.01)
    names = ("0.25 m, 2°", "0.5 m, 5°", "0.5 m, 2°", "1 m, 5°")
    assert [a[name] for name in names] == [100, 100, 100, 100]
    assert [b[name] for name in names] == [0, 100, 0, 100]
    assert [c[name] for name in names] == [0, 100, 100, 100]
    assert result.groups["day"]["0.25 m, 2°"] == 50
    assert result.groups["overall"]["0.5 m, 2°"] == pytest.approx(200 / 3)


def test_a_query_that_matches_nothing_has_no_pose_and_counts_as_wrong(folder):
    rng = np.random.default_rng(1)
    night = "query/night/nexus5x/c.jpg"
    for keypoints in (np.empty((0, 2)), rng.uniform([0, 0], SIZE, (4, 2))):
        source = Known(KEYPOINTS | {night: keypoints})
        result = evaluate(folder, source, truth=folder / "truth.txt", submission=folder / "s.txt")
        figures = result.groups["night"]
        assert figures["localized"] == figures["10 m, 25°"] == figures["inliers"] == 0
        assert "median position error" not in figures
        assert result.groups["overall"]["0.25 m, 2°"] == pytest.approx(200 / 3)
        assert list(read_poses(folder / "s.txt")) == ["a.jpg", "b.jpg"]
        json.dumps(result.to_dict(), allow_nan=False)


def test_noise_and_wrong_matches(folder):
    rng = np.random.default_rng(2)
    noisy = {name: p + rng.normal(0, 1, p.shape) for name, p in KEYPOINTS.items()}
    for name in QUERIES:
        noisy[name][:60] = rng.uniform([0, 0], SIZE, (60, 2))
    result = evaluate(folder, Known(noisy), truth=folder / "truth.txt")
    assert result.groups["overall"]["0.25 m, 2°"] == 100
    for pair in result.pairs:
        assert 70 < pair.figures["inliers"] < pair.figures["2D-3D matches"]
        assert not pair.drawing.correct.all()


def test_without_truth_nothing_is_judged(folder):
    result = evaluate(folder)
    names = [metric.name for metric in result.headline]
    assert names == ["localized", "inliers", "2D-3D matches", "features"]
    assert set(result.groups["overall"]) == set(names)
    assert result.pairs[0].drawing.correct.all()  # by the pose that was found


class Counting(Known):
    """Counts extractions, and stops after some."""

    def __init__(self, points, stop_after=None):
        super().__init__(points)
        self.extracted = []
        self.stop_after = stop_after

    def extract(self, photo, name):
        if self.stop_after is not None and len(self.extracted) >= self.stop_after:
            raise KeyboardInterrupt
        self.extracted.append(name)
        return super().extract(photo, name)


def test_a_stopped_run_goes_on_and_a_second_one_repeats_nothing(folder):
    with pytest.raises(KeyboardInterrupt):
        evaluate(folder, Counting(KEYPOINTS, stop_after=5))
    source = Counting(KEYPOINTS)
    result = evaluate(folder, source, truth=folder / "truth.txt")
    assert len(source.extracted) == 2
    source, matched = Counting(KEYPOINTS), set()
    again = evaluate(
        folder,
        source,
        truth=folder / "truth.txt",
        progress=lambda stage, done, total: matched.add(total) if stage == "matching" else None,
    )
    assert source.extracted == []
    assert matched == {0}
    assert again.to_dict() == result.to_dict()


def test_a_changed_model_gives_another_map(folder):
    evaluate(folder, truth=folder / "truth.txt")
    model = true_model()
    model.transform(pycolmap.Sim3d(1, pycolmap.Rotation3d(), np.array([1.0, 0, 0])))
    model.write_binary(folder / "3D-models/aachen_v_1_1")
    moved = evaluate(folder, truth=folder / "truth.txt")
    assert moved.groups["overall"]["median position error"] == pytest.approx(1, abs=1e-3)


def test_a_changed_photo_is_extracted_and_matched_anew(folder):
    evaluate(folder)
    night = "query/night/nexus5x/c.jpg"
    (folder / "images/images_upright" / night).write_bytes(b"another")
    source = Known(KEYPOINTS | {night: np.empty((0, 2))})
    source.provenance = Known(KEYPOINTS).provenance
    assert evaluate(folder, source).groups["night"]["2D-3D matches"] == 0


def test_lists_can_be_given(folder):
    """Only the night's queries, as in the local feature challenge."""
    (folder / "pairs-query-netvlad50.txt").rename(folder / "night.txt")
    (folder / "queries").rename(folder / "lists")
    (folder / "3D-models").rename(folder / "models")
    result = evaluate(
        folder,
        pairs=(folder / "night.txt",),
        queries=(folder / "lists/night_time_queries_with_intrinsics.txt",),
        model=folder / "models/aachen_v_1_1",
        truth=folder / "truth.txt",
        max_keypoints=100,
    )
    assert [pair.group for pair in result.pairs] == ["night"]
    assert result.pairs[0].figures["features"] == 100
    assert result.groups["night"]["0.25 m, 2°"] == 100


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def no_model(folder):
    (folder / "3D-models").rename(folder / "models")


def no_pairs(folder):
    (folder / "pairs-query-netvlad50.txt").unlink()


def no_partner(folder):
    edit(folder / "pairs-query-netvlad50.txt", "query/night/nexus5x/c.jpg", "query/night/d.jpg")


def not_in_model(folder):
    edit(folder / "pairs-query-netvlad50.txt", "db/2.jpg", "db/22.jpg")


def no_photo(folder):
    (folder / "images/images_upright/db/3.jpg").unlink()


def no_photos(folder):
    (folder / "images").rename(folder / "pictures")


def other_size(folder):
    path = folder / "queries/night_time_queries_with_intrinsics.txt"
    edit(path, "SIMPLE_RADIAL 800 600", "SIMPLE_RADIAL 600 800")


def empty_truth(folder):
    (folder / "truth.txt").write_text("")


def other_truth(folder):
    edit(folder / "truth.txt", "b.jpg", "x.jpg")


def no_queries(folder):
    for path in (folder / "queries").iterdir():
        path.unlink()


def empty_queries(folder):
    (folder / "queries/day_time_queries_with_intrinsics.txt").write_text("")


@pytest.mark.parametrize(
    ("breaking", "message"),
    [
        (no_model, "holds no COLMAP models"),
        (no_pairs, "holds no list of pairs"),
        (no_partner, r"no photo of the map for the query query/night/nexus5x/c\.jpg"),
        (not_in_model, r"paired with db/22\.jpg, but the model .* has no pose"),
        (no_photo, r"lacks the photo db/3\.jpg"),
        (no_photos, "has no photos"),
        (other_size, "c.jpg has 800 x 600 pixels, but its camera 600 x 800"),
        (empty_truth, r"truth\.txt is empty"),
        (other_truth, r"lacks the pose of query/day/nexus4/b\.jpg \(1 of 3 queries\)"),
        (no_queries, "neither in Aachen Day-Night's layout"),
        (empty_queries, r"day_time_queries_with_intrinsics\.txt is empty"),
    ],
)
def test_broken_datasets_are_told(folder, breaking, message):
    breaking(folder)
    with pytest.raises((FormatError, InputError), match=message) as error:
        evaluate(folder, truth=folder / "truth.txt")
    assert "\n" not in str(error.value)


def test_a_model_without_points_is_told(folder):
    model = true_model()
    for i in list(model.points3D):
        model.delete_point3D(i)
    model.write_binary(folder / "3D-models/aachen_v_1_1")
    with pytest.raises(InputError, match="no points that two photos see"):
        evaluate(folder)


# InLoc: two cutouts of a slanted wall, and telephones before it.

SMALL = (160, 120)
CUTOUT_LENS = pycolmap.Camera(model="PINHOLE", width=160, height=120, params=[150, 150, 80, 60])
TELEPHONE = pycolmap.Camera(
    model="SIMPLE_PINHOLE", width=160, height=120, params=[160 * 28 / 36, 80, 60]
)
WALLS = np.array([[0.3, 0.1, 1.0, -5.0], [-0.6, 0.2, 1.0, -6.0]])  # n x + d = 0; the nearer is seen
SCANS = {"DUC1/024": pose(-0.5, 3), "DUC2/031": pose(0.6, -4)}
ALIGNMENTS = {"DUC1/024": pose(3.0, 40), "DUC2/031": pose(-5.0, 170)}  # floor_from_scan
PHONES = {"IMG_0731.JPG": pose(0.1, 1), "IMG_0732.JPG": pose(-0.3, -2)}


def on_walls(rays, cam_from_room):
    """Where rays (N x 3, of a camera) meet the walls, in the room."""
    room_from_cam = cam_from_room.inverse()
    origin = room_from_cam.translation
    directions = rays @ room_from_cam.rotation.matrix().T
    distance = -(WALLS[:, :3] @ origin + WALLS[:, 3]) / (directions @ WALLS[:, :3].T)
    return origin + directions * distance.min(axis=1)[:, None]


def inloc(tmp_path):
    """In the room, which is the floor's frame, scans stand at SCANS, turned as ALIGNMENTS say."""
    x, y = np.meshgrid(np.arange(160), np.arange(120))
    rays = np.c_[CUTOUT_LENS.cam_from_img(np.c_[x.ravel(), y.ravel()] + 0.5), np.ones(160 * 120)]
    cutouts, keypoints = {}, {}
    rng = np.random.default_rng(3)
    places = on_walls(np.c_[rng.uniform(-0.3, 0.3, (120, 2)), np.ones(120)], pose(0, 0))
    for name, cam_from_room in SCANS.items():
        scan_from_floor = ALIGNMENTS[name].inverse()
        scan = scan_from_floor * on_walls(rays, cam_from_room)
        scan[rng.random(len(scan)) < 0.02] = np.nan
        path = f"{name}/DUC_cutout_{name[-3:]}_0_0.jpg"
        cutouts[path] = path.encode(), scan.reshape(120, 160, 3)
        in_camera = np.array([cam_from_room * p for p in places])
        keypoints[f"database/cutouts/{path}"] = CUTOUT_LENS.img_from_cam(in_camera) - 0.5
    for name, place in PHONES.items():
        in_camera = np.array([place * p for p in places])
        keypoints[f"query/iphone7/{name}"] = TELEPHONE.img_from_cam(in_camera) - 0.5
    write_inloc(
        tmp_path / "inloc",
        cutouts,
        {name: np.vstack([a.matrix(), [0, 0, 0, 1]]) for name, a in ALIGNMENTS.items()},
        {name: (name.encode(), place) for name, place in PHONES.items()},
    )
    return tmp_path / "inloc", Known(keypoints, size=SMALL)


def test_pixels_of_scans_place_telephones(tmp_path):
    folder, source = inloc(tmp_path)
    result = evaluate(
        folder,
        source,
        truth=folder / "truth.txt",
        submission=folder / "poses.txt",
        threshold=2,  # these photos are small
    )
    overall = result.groups["overall"]
    assert overall["0.25 m"] == overall["1 m"] == overall["localized"] == 100
    assert overall["median position error"] < 0.05
    assert overall["median rotation error"] < 0.5
    assert overall["inliers"] > 200  # of both cutouts
    assert list(read_poses(folder / "poses.txt")) == list(PHONES)
    assert result.dataset == "inloc"
    assert {pair.group for pair in result.pairs} == {"DUC1"}


def test_queries_are_grouped_by_the_floor_of_most_of_their_cutouts(tmp_path):
    folder, source = inloc(tmp_path)
    pairs = (folder / "pairs-query-netvlad40.txt").read_text().splitlines()
    kept = [line for line in pairs if "0731" not in line or "DUC2" in line]
    (folder / "pairs-query-netvlad40.txt").write_text("\n".join(kept))
    result = evaluate(folder, source, threshold=2)
    assert [pair.group for pair in result.pairs] == ["DUC2", "DUC1"]
    assert result.groups["DUC2"]["localized"] == 100


def other_scan(folder):
    from scipy.io import savemat

    (path,) = (folder / "database/cutouts/DUC1").rglob("*.mat")
    savemat(path, {"XYZcut": np.zeros((160, 120, 3))})


def broken_scan(folder):
    (path,) = (folder / "database/cutouts/DUC1").rglob("*.mat")
    path.write_bytes(b"MATLAB 5.0 MAT-file, no more")


def no_scan(folder):
    (path,) = (folder / "database/cutouts/DUC1").rglob("*.mat")
    path.unlink()


def no_alignment(folder):
    (folder / "database/alignments/DUC1/transformations/DUC_trans_024.txt").unlink()


def broken_alignment(folder):
    path = folder / "database/alignments/DUC1/transformations/DUC_trans_024.txt"
    path.write_text(path.read_text().replace("P_after_GICP:\n", ""))


@pytest.mark.parametrize(
    ("breaking", "message"),
    [
        (other_scan, "XYZcut is 160 x 120 x 3, but its photo has 160 x 120 pixels"),
        (broken_scan, "not a MATLAB file with XYZcut"),
        (no_scan, r"DUC_cutout_024_0_0\.jpg\.mat is missing"),
        (no_alignment, r"DUC_trans_024\.txt is missing"),
        (broken_alignment, "lines 8 to 11"),
    ],
)
def test_broken_scans_are_told(tmp_path, breaking, message):
    folder, source = inloc(tmp_path)
    breaking(folder)
    with pytest.raises(FormatError, match=message) as error:
        evaluate(folder, source)
    assert "\n" not in str(error.value)
