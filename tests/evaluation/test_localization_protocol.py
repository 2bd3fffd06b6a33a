import json

import numpy as np
import pycolmap
import pytest

from d2net.errors import FormatError, InputError
from d2net.evaluation.cache import CachedSource
from d2net.evaluation.localization import evaluate_localization
from d2net.evaluation.localization_dataset import LocalizationSettings
from d2net.io.poses import read_poses
from d2net.progress import no_progress

from .miniature import write_aachen
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
    cached = CachedSource(
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


def test_queries_of_one_file_name_need_their_folders_in_the_truth(folder):
    night = "query/night/nexus5x/c.jpg"
    twin = "query/day/nexus4/c.jpg"
    photos = folder / "images" / "images_upright"
    (photos / twin).write_bytes(twin.encode())
    lens = " ".join(map(str, (*SIZE, *LENS.params)))
    with (folder / "queries" / "day_time_queries_with_intrinsics.txt").open("a") as queries:
        queries.write(f"{twin} SIMPLE_RADIAL {lens}\n")
    with (folder / "pairs-query-netvlad50.txt").open("a") as pairs:
        pairs.writelines(f"{twin} {name}\n" for name in DATABASE)
    source = Known(KEYPOINTS | {twin: seen(pose(0.9, 1))})
    with pytest.raises(FormatError, match=rf"{night} \(2 of 4 queries\)|{twin} \(2 of 4 queries\)"):
        evaluate(folder, source, truth=folder / "truth.txt")
    truth = folder / "truth.txt"
    of_name = dict(line.split(" ", 1) for line in truth.read_text().splitlines(keepends=True))
    x, y, z, w = pose(0.9, 1).rotation.quat
    numbers = " ".join(map(str, (w, x, y, z, *pose(0.9, 1).translation)))
    of_name |= {night: of_name.pop("c.jpg"), twin: f"{numbers}\n"}
    truth.write_text("".join(f"{name} {line}" for name, line in of_name.items()))
    assert evaluate(folder, source, truth=truth).groups["overall"]["0.25 m, 2°"] == 100


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
        (no_pairs, "needs pairs-query.*a list of pairs"),
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


@pytest.mark.parametrize("threshold", [0, -1, float("nan"), float("inf")])
def test_an_impossible_threshold_is_refused_before_the_work(folder, threshold):
    with pytest.raises(InputError, match="threshold must be a positive number"):
        evaluate(folder, threshold=threshold)
    assert not (folder.parent / "cache").exists()


def test_a_model_without_points_is_told(folder):
    model = true_model()
    for i in list(model.points3D):
        model.delete_point3D(i)
    model.write_binary(folder / "3D-models/aachen_v_1_1")
    with pytest.raises(InputError, match="no two photos of the model"):
        evaluate(folder)
