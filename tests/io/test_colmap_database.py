"""COLMAP verifies and maps from what we write, and its points are where ours are."""

import sqlite3

import numpy as np
import pycolmap
import pytest
import torch

from d2net.errors import FormatError, OutputError
from d2net.features import Features, Matches
from d2net.io.colmap_database import write_database
from d2net.io.h5 import FeatureFile, FeatureWriter, MatchFile, MatchWriter

from . import workers
from .samples import make_features

WIDTH, HEIGHT = 1024, 768


@pytest.fixture(autouse=True)
def quiet():
    before = pycolmap.logging.minloglevel
    pycolmap.logging.minloglevel = pycolmap.logging.ERROR.value
    yield
    pycolmap.logging.minloglevel = before


@pytest.fixture(scope="module")
def scene():
    """Six photos of 200 points, seen without noise."""
    pycolmap.set_random_seed(0)
    options = pycolmap.SyntheticDatasetOptions(
        num_rigs=6,
        num_cameras_per_rig=1,
        num_frames_per_rig=1,
        num_points3D=200,
        camera_width=WIDTH,
        camera_height=HEIGHT,
    )
    return pycolmap.synthesize_dataset(options)


def observations(image):
    """N x 2 in COLMAP's pixels."""
    return np.array([point.xy for point in image.points2D], dtype=np.float32)


def write_scene(scene, folder):
    """Features and matches as if we had extracted and matched the scene's photos."""
    images = sorted(scene.images.values(), key=lambda image: image.name)
    with FeatureWriter(folder / "features.h5", {}) as features:
        for image in images:
            n = len(image.points2D)
            features.add(
                image.name,
                Features(
                    keypoints=torch.from_numpy(observations(image) - 0.5),
                    scores=torch.ones(n),
                    scales=torch.ones(n),
                    descriptors=torch.ones(n, 4) / 2,
                    image_size=(WIDTH, HEIGHT),
                    uncertainty=torch.ones(n),
                ),
            )
    with MatchWriter(folder / "matches.h5", {}) as matches:
        for i, first in enumerate(images):
            for second in images[i + 1 :]:
                tracks = {p.point3D_id: row for row, p in enumerate(second.points2D)}
                rows = [
                    (row, tracks[p.point3D_id])
                    for row, p in enumerate(first.points2D)
                    if p.has_point3D() and p.point3D_id in tracks
                ]
                matches.add(
                    first.name,
                    second.name,
                    Matches(torch.tensor(rows), torch.ones(len(rows))),
                    len(first.points2D),
                )
    return folder / "features.h5", folder / "matches.h5"


def test_colmap_verifies_and_maps_from_it(scene, tmp_path):
    features_path, matches_path = write_scene(scene, tmp_path)
    database = tmp_path / "database.db"
    with FeatureFile(features_path) as features, MatchFile(matches_path) as matches:
        write_database(database, features, matches)
    pycolmap.set_random_seed(0)
    pycolmap.geometric_verification(database)
    maps = pycolmap.incremental_mapping(database, tmp_path, tmp_path / "map")
    assert len(maps) == 1
    assert maps[0].num_reg_images() == 6
    assert maps[0].num_points3D() == 200
    assert maps[0].compute_mean_reprojection_error() < 0.01


def test_colmap_sees_the_very_points(scene, tmp_path):
    features_path, matches_path = write_scene(scene, tmp_path)
    with FeatureFile(features_path) as features, MatchFile(matches_path) as matches:
        write_database(tmp_path / "database.db", features, matches)
    with pycolmap.Database.open(tmp_path / "database.db") as database:
        images = {image.name: image for image in database.read_all_images()}
        assert len(images) == database.num_cameras() == database.num_frames() == 6
        for truth in scene.images.values():
            image = images[truth.name]
            keypoints = database.read_keypoints(image.image_id)
            assert np.abs(keypoints[:, :2] - observations(truth)).max() < 1e-4
            camera = database.read_camera(image.camera_id)
            assert (camera.width, camera.height) == (WIDTH, HEIGHT)
            assert camera.model_name == "SIMPLE_RADIAL"
            assert camera.mean_focal_length() == pytest.approx(1.2 * WIDTH)
            assert not camera.has_prior_focal_length
        assert database.num_matched_image_pairs() == 15
        assert database.num_verified_image_pairs() == 0


def test_the_first_pixels_centre_is_at_half_a_pixel(tmp_path):
    features = make_features(1)
    features.keypoints[:] = 0
    write_database(tmp_path / "database.db", {"ü \n.jpg": features, "zero": make_features(0)})
    with sqlite3.connect(tmp_path / "database.db") as connection:
        rows = dict(
            connection.execute("SELECT name, data FROM images JOIN keypoints USING (image_id)")
        )
    connection.close()
    assert set(rows) == {"ü \n.jpg", "zero"}
    assert np.frombuffer(rows["ü \n.jpg"], np.float32)[:2].tolist() == [0.5, 0.5]


def test_matches_of_another_run_are_refused(tmp_path):
    with MatchWriter(tmp_path / "m.h5", {}) as writer:
        writer.add("a", "b", Matches(torch.tensor([[0, 30]]), torch.ones(1)), 20)
        writer.add("a", "gone", Matches(torch.tensor([[0, 30]]), torch.ones(1)), 20)
    with MatchFile(tmp_path / "m.h5") as matches:
        photos = {"a": make_features(20), "b": make_features(20)}
        with pytest.raises(FormatError, match="not from the same run"):
            write_database(tmp_path / "database.db", photos, matches)
        photos["b"] = make_features(31)
        write_database(tmp_path / "database.db", photos, matches)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["database.db", "m.h5"]


def test_an_existing_database_is_replaced_only_on_demand(tmp_path):
    path = tmp_path / "database.db"
    write_database(path, {"a": make_features()})
    old = path.read_bytes()
    with pytest.raises(OutputError, match="exists already"):
        write_database(path, {"b": make_features()})
    assert path.read_bytes() == old
    # What a crashed program left would be replayed into the new database.
    (tmp_path / "database.db-wal").write_bytes(b"old")
    (tmp_path / "database.db.d2net-tmp-wal").write_bytes(b"old")
    write_database(path, {"b": make_features()}, overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["database.db"]
    with pycolmap.Database.open(path) as database:
        assert [image.name for image in database.read_all_images()] == ["b"]


def test_places_that_cannot_be_written(tmp_path):
    with pytest.raises(OutputError, match="does not exist"):
        write_database(tmp_path / "missing" / "database.db", {})


def test_what_sqlite_could_not_merge_is_an_error(tmp_path, processes):
    """SQLite closes without complaint when its log did not fit into the file any more.

    Here another process, which still reads the file, keeps it from merging.
    """
    ready = processes.Event()
    reader = processes.Process(
        target=workers.read_database, args=(tmp_path / "database.db.d2net-tmp", ready)
    )

    class Photos(dict):
        def __getitem__(self, name):
            reader.start()
            assert ready.wait(60)
            return super().__getitem__(name)

    with pytest.raises(OutputError, match="SQLite could not finish"):
        write_database(tmp_path / "database.db", Photos(a=make_features()))
    reader.kill()
    reader.join()
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_the_old_database(tmp_path, processes):
    path = tmp_path / "database.db"
    write_database(path, {"a": make_features(5000)})
    old = path.read_bytes()
    endings = []
    for limit in [0, 60_000, *range(300_000, 2_000_000, 300_000)]:
        receiver, sender = processes.Pipe(duplex=False)
        process = processes.Process(
            target=workers.with_file_size_limit,
            args=(limit, sender, workers.write_database_of, path, True),
        )
        process.start()
        process.join(60)
        assert process.exitcode == 0, "the process crashed"
        endings.append(receiver.recv())
        if endings[-1] == "done":
            break
        assert "is the disk full" in endings[-1] or "the disk is full" in endings[-1]
        assert path.read_bytes() == old
        assert [p.name for p in tmp_path.iterdir()] == ["database.db"]
    assert endings[-1] == "done"
    assert len(endings) > 3
    with pycolmap.Database.open(path) as database:
        assert database.num_keypoints() == 7 * 2000
