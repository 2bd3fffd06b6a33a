"""Maps and localization with features whose truth is known."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pycolmap
import pytest
import torch
from PIL import Image

from d2net.errors import FormatError, InputError, MappingError, OutputError
from d2net.features import Features
from d2net.geometry.alignment import camera_errors
from d2net.io.colmap_model import read_model
from d2net.io.exif import Position
from d2net.io.h5 import FeatureFile, MatchFile
from d2net.io.pair_lists import read_pairs, write_pairs
from d2net.mapping import stages
from d2net.mapping.georeference import Georeference
from d2net.mapping.localize import Map
from d2net.mapping.map_folder import MapFolder
from d2net.mapping.reconstruct import add_photos, reconstruct
from d2net.mapping.settings import MappingOptions
from d2net.mapping.summary import NO_FEATURES, NO_MATCHES, MapSummary
from d2net.matching.pair_selection import PairChoice
from d2net.matching.retrieval import GlobalDescriptors
from d2net.networks.matcher import MatcherSettings, MatchingTransformer
from d2net.networks.weights import save_weights

from .made import LENS, SIZE, PreparedNetwork, camera, nothing, seen, write_photos

POSES = [camera(x, -4 * x) for x in (-2.5, -1.5, -0.5, 0.5, 1.5, 2.5)]
QUERY = camera(0.9, 6, z=1.0)
ROUGH = [seen(pose, 1.0, seed=i) for i, pose in enumerate(POSES)]


def network(features: Sequence[Features] | None = None) -> PreparedNetwork:
    return PreparedNetwork(features or [seen(pose) for pose in POSES])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A map of six photos; tests copy what they change."""
    root = tmp_path_factory.mktemp("made")
    photos = write_photos(root / "photos", range(6))
    reconstruct(photos, root / "map", model=network())
    return root


def interrupt(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def model_of(folder: Path) -> pycolmap.Reconstruction:
    return read_model(folder / "sparse" / "0")


def errors(model: pycolmap.Reconstruction) -> tuple[float, float]:
    """The largest position error in percent of the spread, and rotation error in degrees."""
    mine = {image.name: image.cam_from_world() for image in model.images.values()}
    true = {f"photo{i:02}.png": pose for i, pose in enumerate(POSES)}
    found = camera_errors(mine, true)
    assert found is not None
    return 100 * max(found.position.values()) / found.spread, max(found.rotation.values())


def test_all_photos_are_registered_where_they_were(made: Path) -> None:
    model = model_of(made / "map")
    assert model.num_reg_images() == 6
    assert model.num_points3D() > 100
    position, rotation = errors(model)
    assert position < 0.1
    assert rotation < 0.1


def test_a_learned_matcher_makes_a_map_and_localizes_in_it(made: Path, tmp_path: Path) -> None:
    query = seen(QUERY)
    torch.manual_seed(0)
    length = query.descriptors.shape[1]
    weights = MatchingTransformer(MatcherSettings(length, width=32, heads=2, layers=1))
    file = tmp_path / "m.safetensors"
    save_weights(file, weights, {"name": "m", "descriptor_id": network().descriptor_id()})
    reconstruct(made / "photos", tmp_path / "map", model=network(), matcher=str(file))
    assert model_of(tmp_path / "map").num_reg_images() == 6
    map_ = Map(MapFolder(tmp_path / "map"), PreparedNetwork([query]), str(file))
    answer = map_.localize(np.zeros((SIZE[1], SIZE[0], 3), np.uint8), camera=LENS)
    assert answer.verdict == "localized"


def test_outputs_are_what_other_programs_read(made: Path) -> None:
    names = [f"photo{i:02}.png" for i in range(6)]
    with FeatureFile(made / "map" / "features.h5") as features:
        assert list(features) == names
    with MatchFile(made / "map" / "matches.h5") as matches:
        assert len(matches) == 15
    assert len(read_pairs(made / "map" / "pairs.txt")) == 15
    with pycolmap.Database.open(made / "map" / "database.db") as database:
        assert database.num_images() == 6
        assert 12 <= database.num_verified_image_pairs() <= 14  # the outer ones share too little
    report = json.loads((made / "map" / "report.json").read_text())
    assert report["photos_registered"] == 6
    assert set(report["seconds"]) >= {"features", "matches", "verification", "mapping"}
    assert (made / "map" / "map.png").stat().st_size > 1000
    assert "photo03.png" in (made / "map" / "map.html").read_text()


def test_the_same_seed_gives_the_same_model_twice(made: Path, tmp_path: Path) -> None:
    reconstruct(made / "photos", tmp_path / "map", model=network())
    for name in ("cameras.bin", "images.bin", "points3D.bin"):
        first, second = (root / "map" / "sparse" / "0" / name for root in (made, tmp_path))
        assert first.read_bytes() == second.read_bytes()


def test_the_global_mapper_maps_too(made: Path, tmp_path: Path) -> None:
    reconstruct(made / "photos", tmp_path / "map", model=network(), mapper="global")
    model = model_of(tmp_path / "map")
    assert model.num_reg_images() == 6
    assert errors(model)[0] < 1


def test_started_again_it_does_nothing_twice(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(made / "map", tmp_path / "map")
    for name in ("run_mapper", "verify_pairs"):
        monkeypatch.setattr(stages, name, None)  # calling it would fail
    summary = reconstruct(made / "photos", tmp_path / "map", model=PreparedNetwork([]))
    assert summary.num_registered == 6


def test_other_settings_of_the_mapping_make_a_new_model(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "map", tmp_path / "map")
    options: MappingOptions = {"camera_model": "SIMPLE_PINHOLE", "camera_mode": "single"}
    reconstruct(made / "photos", tmp_path / "map", model=network(), **options)
    model = model_of(tmp_path / "map")
    assert len(model.cameras) == 1
    assert next(iter(model.cameras.values())).model_name == "SIMPLE_PINHOLE"


def _map_until_killed(photos: Path, output: Path, stage: str) -> None:
    def progress(now: str, done: int, total: int | None) -> None:
        if now.partition(":")[0] == stage:
            os.kill(os.getpid(), signal.SIGKILL)

    reconstruct(photos, output, model=network(), progress=progress)


@pytest.mark.parametrize("stage", ["matching", "mapping", "writing the report"])
def test_a_killed_run_goes_on_at_its_stage(
    made: Path, tmp_path: Path, stage: str, processes: multiprocessing.context.ForkServerContext
) -> None:
    process = processes.Process(
        target=_map_until_killed, args=(made / "photos", tmp_path / "map", stage)
    )
    process.start()
    process.join(120)
    assert process.exitcode == -9
    # Features are there: extracting again would fail.
    summary = reconstruct(made / "photos", tmp_path / "map", model=PreparedNetwork([]))
    assert summary.num_registered == 6
    for name in ("images.bin", "points3D.bin"):
        first, second = (root / "map" / "sparse" / "0" / name for root in (made, tmp_path))
        assert first.read_bytes() == second.read_bytes()


def test_photos_that_fail_have_reasons(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", range(8))
    (photos / "broken.png").write_bytes(b"no photo")
    features = [*(seen(pose) for pose in POSES), nothing(), seen(camera(0), other=True)]
    summary = reconstruct(photos, tmp_path / "map", model=network(features))
    assert summary.num_registered == 6
    reasons = {photo.name: photo.reason for photo in summary.failed}
    assert reasons["photo06.png"] == NO_FEATURES
    assert reasons["photo07.png"] == NO_MATCHES
    assert "broken.png" in reasons["broken.png"]
    # It stays in the report when photos are added, and leaves it when it can be read.
    new = write_photos(tmp_path / "new", [8])
    features += [seen(QUERY), seen(camera(-1.0, -3))]
    summary = add_photos(tmp_path / "map", new, model=network(features))
    assert (summary.num_registered, len(summary.failed)) == (7, 3)
    Image.new("RGB", SIZE, (9, 9, 9)).save(photos / "broken.png")
    summary = add_photos(tmp_path / "map", photos, model=network(features))
    assert (summary.num_registered, len(summary.failed)) == (8, 2)


def test_a_second_scene_is_a_map_of_its_own(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", range(10))
    elsewhere = [seen(pose, other=True) for pose in POSES[:4]]
    summary = reconstruct(
        photos,
        tmp_path / "map",
        model=network([*(seen(pose) for pose in POSES), *elsewhere]),
    )
    assert [len(part.photos) for part in summary.maps] == [6, 4]
    assert {part.verdict for part in summary.maps} == {"good"}
    assert not summary.failed
    query = seen(camera(0.9, 6, z=1.0), other=True)
    answer = Map(MapFolder(tmp_path / "map"), network([query])).localize(
        np.zeros((LENS.height, LENS.width, 3), np.uint8), camera=LENS
    )
    assert (answer.verdict, answer.map_number) == ("localized", 1)
    assert (tmp_path / "map" / "map1.html").exists()
    for number in range(6, 10):
        (photos / f"photo{number:02}.png").unlink()
    reconstruct(photos, tmp_path / "map", model=network())
    assert {path.name for path in (tmp_path / "map").glob("map*")} == {
        *("map.html", "map.json", "map.png")
    }


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ([seen(POSES[0]), seen(POSES[1], other=True)], "do not show the same scene"),
        ([seen(POSES[2])] * 4, "copies"),
        ([seen(camera(0, turn)) for turn in (-6, -3, 0, 3, 6)], "moves sideways"),
        ([seen(POSES[0]), nothing()], "1 of 2 have some"),
        ([seen(POSES[2]), seen(POSES[3])], "no model of 3 photos"),
    ],
    ids=["no overlap", "copies", "rotation only", "no features", "two photos"],
)
def test_no_map_says_why_and_keeps_what_there_is(
    tmp_path: Path, features: list[Features], message: str
) -> None:
    photos = write_photos(tmp_path / "photos", range(len(features)))
    with pytest.raises(MappingError, match=message):
        reconstruct(photos, tmp_path / "map", model=network(features))
    with FeatureFile(tmp_path / "map" / "features.h5") as kept:
        assert len(kept) == len(features)
    assert not (tmp_path / "map" / "sparse").exists()


@pytest.mark.parametrize(
    "name",
    ["database.db", "sparse/0/images.bin", "pairs.txt", "report.json", "map.png", "map1.html"],
)
def test_files_of_the_user_in_the_output_are_kept(made: Path, tmp_path: Path, name: str) -> None:
    shutil.copyfile(made / "map" / "features.h5", tmp_path / "features.h5")
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("mine")
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(OutputError, match="not seem to be of a map by d2net"):
        reconstruct(made / "photos", tmp_path, model=network())
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == before
    assert (tmp_path / name).read_text() == "mine"


@pytest.mark.parametrize(
    "name",
    ["sparse/aligned/images.bin", "sparse/0/notes.txt", "sparse/0/points3D_old.bin", "map1.png"],
)
def test_files_of_the_user_in_a_map_are_kept(made: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(made / "map", tmp_path / "map")
    mine = tmp_path / "map" / name
    mine.parent.mkdir(exist_ok=True)
    shutil.copyfile(made / "photos" / "photo00.png", mine)
    new = write_photos(tmp_path / "new", [6])
    both = network([*(seen(pose) for pose in POSES), seen(QUERY)])
    with pytest.raises(OutputError, match="not seem to be of a map by d2net"):
        add_photos(tmp_path / "map", new, model=both)
    assert mine.read_bytes() == (made / "photos" / "photo00.png").read_bytes()
    mine.unlink()
    if mine.parent.name == "aligned":
        mine.parent.rmdir()
    assert add_photos(tmp_path / "map", new, model=both).num_registered == 7


def test_a_map_json_of_another_program_is_kept(made: Path, tmp_path: Path) -> None:
    (tmp_path / "map.json").write_text('{"type": "FeatureCollection", "features": []}')
    with pytest.raises(FormatError, match="not written by d2net"):
        reconstruct(made / "photos", tmp_path, model=network())
    assert [path.name for path in tmp_path.iterdir()] == ["map.json"]


def test_a_map_does_not_replace_the_model_that_it_is_made_from(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "map", tmp_path / "map")
    for model in (tmp_path / "map", tmp_path / "map" / "sparse" / "0"):
        with pytest.raises(InputError, match="would replace the model"):
            reconstruct(made / "photos", tmp_path / "map", model=network(), poses=model)
        covisible = PairChoice("covisibility", model=model)
        with pytest.raises(InputError, match="would replace the model"):
            reconstruct(made / "photos", tmp_path / "map", model=network(), pairs=covisible)


@pytest.mark.parametrize("keep", [0, 6000])
def test_a_damaged_database_is_made_again(made: Path, tmp_path: Path, keep: int) -> None:
    shutil.copytree(made / "map", tmp_path / "map")
    database = tmp_path / "map" / "database.db"
    database.write_bytes(database.read_bytes()[:keep])
    new = write_photos(tmp_path / "new", [6])
    both = network([*(seen(pose) for pose in POSES), seen(QUERY)])
    with pytest.raises(InputError, match="damaged"):
        add_photos(tmp_path / "map", new, model=both)
    assert reconstruct(made / "photos", tmp_path / "map", model=network()).num_registered == 6
    assert add_photos(tmp_path / "map", new, model=both).num_registered == 7


def test_one_photo_is_no_map(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="at least two photos"):
        reconstruct(write_photos(tmp_path / "photos", [0]), tmp_path / "map", model=network())
    assert not (tmp_path / "map").exists()


def test_features_of_other_settings_are_not_mixed(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "map", tmp_path / "map")
    other = network()
    other.settings = other.settings.updated(max_keypoints=50)
    with pytest.raises(OutputError, match="other settings"):
        reconstruct(made / "photos", tmp_path / "map", model=other)
    assert model_of(tmp_path / "map").num_reg_images() == 6


def test_pairs_from_a_list_are_the_only_ones(made: Path, tmp_path: Path) -> None:
    chosen = [(f"photo{i:02}.png", f"photo{j:02}.png") for i, j in ((0, 1), (1, 2), (0, 2))]
    write_pairs(tmp_path / "pairs.txt", chosen)
    summary = reconstruct(
        made / "photos",
        tmp_path / "map",
        model=network(),
        pairs=PairChoice("list", file=tmp_path / "pairs.txt"),
    )
    assert summary.num_registered == 3
    assert [photo.reason for photo in summary.failed] == [NO_MATCHES] * 3


def true_model() -> pycolmap.Reconstruction:
    model = pycolmap.Reconstruction()
    lens = pycolmap.Camera(LENS.todict())
    lens.camera_id = 1
    model.add_camera_with_trivial_rig(lens)
    for i, pose in enumerate(POSES):
        points = seen(pose).keypoints.double().numpy() + 0.5
        image = pycolmap.Image(
            name=f"photo{i:02}.png", keypoints=points, camera_id=1, image_id=i + 1
        )
        model.add_image_with_trivial_frame(image, pose)
    return model


def map_of_truth(root: Path) -> Path:
    """Make a map in the frame of the truth, root/map; root/photos and root/poses beside it."""
    photos = write_photos(root / "photos", range(6))
    (root / "poses").mkdir()
    true_model().write_text(root / "poses")
    reconstruct(photos, root / "map", model=network(), poses=root / "poses")
    return root


def test_known_poses_stay(made: Path, tmp_path: Path) -> None:
    (tmp_path / "poses").mkdir()
    true_model().write_text(tmp_path / "poses")
    summary = reconstruct(
        made / "photos", tmp_path / "map", model=network(), poses=str(tmp_path / "poses")
    )
    model = model_of(tmp_path / "map")
    assert summary.points > 100
    for image in model.images.values():
        true = POSES[int(image.name[5:7])].matrix()
        np.testing.assert_allclose(image.cam_from_world().matrix(), true, atol=1e-6)


def test_a_photo_without_a_known_pose_is_named_as_such(made: Path, tmp_path: Path) -> None:
    model = true_model()
    model.deregister_frame(next(iter(model.images.values())).frame_id)
    (tmp_path / "poses").mkdir()
    model.write(tmp_path / "poses")
    summary = reconstruct(
        made / "photos", tmp_path / "map", model=network(), poses=tmp_path / "poses"
    )
    assert [photo.reason for photo in summary.failed] == [f"no pose in {tmp_path / 'poses'}"]


def test_known_poses_with_fewer_pairs_use_only_these(made: Path, tmp_path: Path) -> None:
    (tmp_path / "poses").mkdir()
    true_model().write_text(tmp_path / "poses")
    write_pairs(tmp_path / "pairs.txt", [("photo02.png", "photo03.png")])
    chosen = PairChoice("list", file=tmp_path / "pairs.txt")
    for pairs in (None, chosen):
        reconstruct(
            made / "photos",
            tmp_path / "map",
            model=network(),
            pairs=pairs,
            poses=tmp_path / "poses",
        )
    tracks = model_of(tmp_path / "map").points3D.values()
    assert {point.track.length() for point in tracks} == {2}


def test_names_may_have_another_unicode_form(tmp_path: Path) -> None:
    composed, decomposed = (unicodedata.normalize(form, "é.png") for form in ("NFC", "NFD"))
    photos = write_photos(tmp_path / "photos", range(6))
    (photos / "photo00.png").rename(photos / decomposed)
    known = true_model()
    known.images[1].name = composed
    (tmp_path / "poses").mkdir()
    known.write_text(tmp_path / "poses")
    summary = reconstruct(photos, tmp_path / "a", model=network(), poses=tmp_path / "poses")
    assert summary.num_registered == 6
    distance = (composed, "photo01.png", 7.0)
    reconstruct(photos, tmp_path / "b", model=network(), known_distance=distance)
    images = {image.name: image for image in model_of(tmp_path / "b").images.values()}
    ends = [images[name].projection_center() for name in (decomposed, "photo01.png")]
    assert np.linalg.norm(ends[0] - ends[1]) == pytest.approx(7)


def test_known_poses_that_give_no_points_are_an_error(made: Path, tmp_path: Path) -> None:
    wrong = true_model()
    for frame in wrong.frames.values():
        frame.rig_from_world = pycolmap.Rigid3d()
    (tmp_path / "poses").mkdir()
    wrong.write_text(tmp_path / "poses")
    with pytest.raises(MappingError, match="no matches agree"):
        reconstruct(made / "photos", tmp_path / "map", model=network(), poses=tmp_path / "poses")


def test_photos_are_added_to_a_map(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "map", tmp_path / "map")
    old = model_of(tmp_path / "map")
    before = {i.name: i.image_id for i in old.images.values()}
    record = tmp_path / "map" / "map.json"
    values = json.loads(record.read_text())
    values["seconds"]["mapping"] += 1000
    record.write_text(json.dumps(values))
    new = write_photos(tmp_path / "new", [6, 7])
    both = [*(seen(pose) for pose in POSES), seen(QUERY), seen(camera(-1.0, -3))]
    summary = add_photos(tmp_path / "map", new, model=network(both))
    assert summary.num_registered == 8
    assert 0 < summary.seconds["mapping"] < 1000  # of the addition only
    model = model_of(tmp_path / "map")
    assert {i.name: i.image_id for i in model.images.values()}.items() >= before.items()
    for number, image in old.images.items():  # the map's coordinates stay
        stayed = model.images[number].cam_from_world().matrix()
        np.testing.assert_allclose(stayed, image.cam_from_world().matrix(), atol=0.01)
    assert errors(model)[0] < 0.1
    opened = Map(MapFolder(tmp_path / "map"), network(both))
    assert "photo06.png" in opened.names


def test_added_photos_share_the_single_camera_of_a_map(made: Path, tmp_path: Path) -> None:
    reconstruct(made / "photos", tmp_path / "map", model=network(), camera_mode="single")
    both = [*(seen(pose) for pose in POSES), seen(QUERY), seen(camera(-1.0, -3))]
    for mode, cameras in (("single", 1), ("auto", 2)):
        new = write_photos(tmp_path / mode, [6 if mode == "single" else 7])
        add_photos(tmp_path / "map", new, model=network(both), camera_mode=mode)
        assert model_of(tmp_path / "map").num_cameras() == cameras
    assert errors(model_of(tmp_path / "map"))[0] < 0.1


@pytest.mark.parametrize("mode", ["auto", "single"])
def test_known_cameras_of_a_map_stay_when_photos_are_added(tmp_path: Path, mode: str) -> None:
    photos, given = write_photos(tmp_path / "photos", range(6)), (760.0, 320.0, 240.0, 0.01)
    both = [*ROUGH, seen(QUERY, 1.0), seen(camera(-1.0, -3), 1.0)]
    reconstruct(
        photos,
        tmp_path / "map",
        model=network(both),
        camera_mode="single",
        camera_params=np.array(given),  # as pycolmap's cameras have them
    )
    for number in (6, 7):
        new = write_photos(tmp_path / f"new{number}", [number])
        add_photos(tmp_path / "map", new, model=network(both), camera_mode=mode)
    model = model_of(tmp_path / "map")
    assert model.num_reg_images() == 8
    known = {i.camera_id for i in model.images.values() if mode == "single" or i.name < "photo06"}
    assert len(known) == 1
    assert tuple(model.cameras[known.pop()].params) == given


def test_known_cameras_of_added_photos_stay_when_others_are_added(tmp_path: Path) -> None:
    photos, given = write_photos(tmp_path / "photos", range(6)), (760.0, 320.0, 240.0, 0.01)
    both = [*ROUGH, seen(QUERY, 1.0), seen(camera(-1.0, -3), 1.0)]
    reconstruct(photos, tmp_path / "map", model=network(both))
    for number, parameters in ((6, given), (7, None)):
        new = write_photos(tmp_path / f"new{number}", [number])
        add_photos(tmp_path / "map", new, model=network(both), camera_params=parameters)
    model = model_of(tmp_path / "map")
    (added,) = (i for i in model.images.values() if i.name.startswith("photo06"))
    assert tuple(model.cameras[added.camera_id].params) == given
    assert all(tuple(c.params) != given for n, c in model.cameras.items() if n != added.camera_id)


def test_a_refused_matcher_changes_nothing(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "map", tmp_path / "map")
    weights = MatchingTransformer(MatcherSettings(64, width=32, heads=2, layers=1))
    about = {"name": "m", "descriptor_id": network().descriptor_id()}
    save_weights(tmp_path / "m.safetensors", weights, about)
    new = write_photos(tmp_path / "new", [6, 7])
    both = network([*(seen(pose) for pose in POSES), seen(QUERY), nothing()])
    for run in (
        add_photos,
        lambda folder, _, **options: reconstruct(made / "photos", folder, **options),
    ):
        with pytest.raises(OutputError, match="matcher was 'nearest'"):
            run(tmp_path / "map", new, model=both, matcher=str(tmp_path / "m.safetensors"))
    for name in ("features.h5", "pairs.txt", "retrieval.h5", "matches.h5", "sparse/0/images.bin"):
        assert (tmp_path / "map" / name).read_bytes() == (made / "map" / name).read_bytes()


PLACES = [*(seen(pose) for pose in POSES), *(seen(pose, other=True) for pose in POSES)]


def frames_of(folder: Path) -> list[dict[str, pycolmap.Rigid3d]]:
    """The poses of each of a map's models, by photo."""
    models = [read_model(path) for path in sorted((folder / "sparse").iterdir())]
    return [{image.name: image.cam_from_world() for image in m.images.values()} for m in models]


def check_frames(old: list[dict[str, pycolmap.Rigid3d]], folder: Path) -> None:
    """The old photos are where they were, in the same models."""
    new = frames_of(folder)
    names = [name for frame in new for name in frame]
    assert len(names) == len(set(names))
    for before, after in zip(old, new, strict=False):
        for name, pose in before.items():
            np.testing.assert_allclose(after[name].matrix(), pose.matrix(), atol=1e-6)


def test_a_map_of_three_photos_grows_where_it_is(tmp_path: Path) -> None:
    """COLMAP scales and shifts it."""
    photos, new = write_photos(tmp_path / "photos", range(3)), tmp_path / "new"
    distance = ("photo00.png", "photo02.png", 5.0)
    reconstruct(photos, tmp_path / "map", model=network(), known_distance=distance)
    old = frames_of(tmp_path / "map")
    add_photos(tmp_path / "map", write_photos(new, range(3, 6)), model=network())
    assert len(frames_of(tmp_path / "map")[0]) == 6
    check_frames(old, tmp_path / "map")


def test_both_places_of_a_map_grow_where_they_are(tmp_path: Path) -> None:
    first = write_photos(tmp_path / "photos", [0, 1, 2, 3, 4, 6, 7, 8, 9])
    reconstruct(first, tmp_path / "map", model=network(PLACES))
    old = frames_of(tmp_path / "map")
    new = write_photos(tmp_path / "new", [5, 10, 11])
    summary = add_photos(tmp_path / "map", new, model=network(PLACES))
    assert [len(part.photos) for part in summary.maps] == [6, 6]
    check_frames(old, tmp_path / "map")


def test_pairs_of_an_extended_map_are_listed_and_counted_once(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", [0, 1, 2, 6, 7, 8])
    before = reconstruct(photos, tmp_path / "map", model=network(PLACES))
    new = write_photos(tmp_path / "new", [3, 4, 9])
    after = add_photos(tmp_path / "map", new, model=network(PLACES))
    assert after.insignificant_pairs >= before.insignificant_pairs > 0
    pairs = read_pairs(tmp_path / "map" / "pairs.txt")
    assert len({frozenset(pair) for pair in pairs}) == len(pairs)


def test_a_model_that_was_deleted_is_missed_until_it_is_made_again(tmp_path: Path) -> None:
    """A number that the folder does not have would tell the frame of a pose wrongly."""
    photos = write_photos(tmp_path / "photos", [0, 1, 2, 3, 4, 6, 7, 8, 9])
    reconstruct(photos, tmp_path / "map", model=network(PLACES))
    shutil.rmtree(tmp_path / "map" / "sparse" / "0")
    with pytest.raises(InputError, match="sparse/0 is missing"):
        add_photos(tmp_path / "map", write_photos(tmp_path / "new", [5]), model=network(PLACES))
    with pytest.raises(InputError, match="sparse/0 is missing"):
        Map(MapFolder(tmp_path / "map"), network(PLACES))
    summary = reconstruct(photos, tmp_path / "map", model=network(PLACES))
    assert [len(part.photos) for part in summary.maps] == [5, 4]
    assert len(MapFolder(tmp_path / "map").read_models()) == 2
    shutil.rmtree(tmp_path / "map" / "sparse" / "1")  # no number is missing
    assert reconstruct(photos, tmp_path / "map", model=network(PLACES)).num_registered == 9
    (tmp_path / "map" / "sparse" / "1" / "images.bin").write_bytes(b"damaged")
    assert reconstruct(photos, tmp_path / "map", model=network(PLACES)).num_registered == 9


def test_a_larger_new_place_does_not_take_the_old_one_s_number(tmp_path: Path) -> None:
    reconstruct(write_photos(tmp_path / "photos", range(4)), tmp_path / "map", model=network())
    old = frames_of(tmp_path / "map")
    place = Georeference(48.0, 11.0, 500.0, 4, 4, 1.0, 10.0)
    place.write(tmp_path / "map" / "sparse" / "0")
    new = write_photos(tmp_path / "new", range(6, 12))
    summary = add_photos(tmp_path / "map", new, model=network(PLACES))
    assert [len(part.photos) for part in summary.maps] == [4, 6]
    check_frames(old, tmp_path / "map")
    assert [found for _, found in MapFolder(tmp_path / "map").read_models()] == [place, None]


def test_masks_of_added_photos_are_used(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", range(6))
    masks = write_photos(tmp_path / "masks", range(7))
    Image.new("L", SIZE, "white").save(masks / "photo00.png")  # the others are not black either
    reconstruct(photos, tmp_path / "map", model=network(), masks=masks)
    new = write_photos(tmp_path / "new", [6])
    both = network([*(seen(pose) for pose in POSES), seen(QUERY)])
    with pytest.raises(InputError, match="no mask"):
        add_photos(tmp_path / "map", new, model=both, masks=tmp_path / "missing")
    assert add_photos(tmp_path / "map", new, model=both, masks=masks).num_registered == 7


def test_a_known_distance_to_a_photo_that_is_in_no_map_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    photos = write_photos(tmp_path / "photos", [0, 1, 2, 3, 6])
    ends = "photo00.png", "photo06.png", 2.0
    reconstruct(photos, tmp_path / "map", model=network(PLACES), known_distance=ends)
    assert "photo06.png" in caplog.text


def test_gps_positions_that_contradict_a_known_distance_are_mentioned(
    made: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    metre = 1 / 111_000  # in degrees
    places = {f"photo{i:02}.png": Position(0, (8 + 20 * i) * metre) for i in range(6)}
    monkeypatch.setattr("d2net.mapping.reconstruct.gps_positions", lambda _: places)
    for metres, is_placed in ((23.0, True), (3.0, False)):
        ends, folder = ("photo00.png", "photo01.png", metres), tmp_path / f"{metres:g}"
        reconstruct(made / "photos", folder, model=network(), known_distance=ends)
        assert (Georeference.read(folder / "sparse" / "0") is not None) is is_placed
        assert ("too few GPS positions agree" in caplog.text) is not is_placed


@pytest.mark.parametrize("metres", [0, -1, 1e300, float("nan")])
def test_absurd_distances_are_refused_before_any_work(
    made: Path, tmp_path: Path, metres: float
) -> None:
    ends = "photo00.png", "photo01.png", metres
    with pytest.raises(InputError, match="1,000,000 metres"):
        reconstruct(made / "photos", tmp_path / "map", known_distance=ends)


def test_another_photo_of_a_known_name_is_not_taken_for_the_map_s(
    made: Path, tmp_path: Path
) -> None:
    shutil.copytree(made / "map", tmp_path / "map")
    new = write_photos(tmp_path / "new", [2, 6])
    (new / "photo06.png").replace(new / "photo02.png")
    with pytest.raises(InputError, match="another photo of the map"):
        add_photos(tmp_path / "map", new, model=network())


def copied(made: Path, folder: Path) -> Path:
    """A copy of the map, and its photos in the same folder."""
    shutil.copytree(made, folder, dirs_exist_ok=True)
    record = folder / "map" / "map.json"
    record.write_text(record.read_text().replace(str(made / "photos"), str(folder / "photos")))
    return folder / "photos"


def test_a_map_is_not_used_with_newer_features(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = copied(made, tmp_path)
    with (photos / "photo03.png").open("ab") as changed:
        changed.write(b"as if saved by another program")
    with monkeypatch.context() as stopped, pytest.raises(KeyboardInterrupt):
        stopped.setattr(stages, "match_pairs", interrupt)
        reconstruct(photos, tmp_path / "map", model=network())
    with pytest.raises(InputError, match="run the stopped d2net reconstruct again"):
        Map(MapFolder(tmp_path / "map"), network())
    with pytest.raises(InputError, match="run the stopped d2net reconstruct again"):
        add_photos(tmp_path / "map", write_photos(tmp_path / "new", [6]), model=network())
    reconstruct(photos, tmp_path / "map", model=network())
    assert len(Map(MapFolder(tmp_path / "map"), network()).names) == 6


@pytest.mark.parametrize("name", ["features.h5", "matches.h5", "retrieval.h5", "map.json"])
def test_a_file_of_the_map_that_was_deleted_is_made_again(
    made: Path, tmp_path: Path, name: str
) -> None:
    shutil.copytree(made / "map", tmp_path / "map")
    (tmp_path / "map" / name).unlink()
    reconstruct(made / "photos", tmp_path / "map", model=network())
    assert len(Map(MapFolder(tmp_path / "map"), network()).names) == 6


def test_a_map_made_anew_reads_the_photos_that_were_given(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "map", tmp_path / "map")
    new = write_photos(tmp_path / "new", range(6))
    reconstruct(new, tmp_path / "map", model=network())
    assert MapFolder(tmp_path / "map").photo("photo00.png") == new / "photo00.png"


def test_a_map_made_anew_does_not_lose_photos_that_were_added(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "map", tmp_path / "map")
    new = write_photos(tmp_path / "new", [6])
    both = network([*(seen(pose) for pose in POSES), seen(QUERY)])
    add_photos(tmp_path / "map", new, model=both)
    with pytest.raises(OutputError, match=r"photo06\.png .*--into"):
        reconstruct(made / "photos", tmp_path / "map", model=both)
    assert "photo06.png" in MapFolder(tmp_path / "map").finished


@pytest.mark.parametrize("names", [range(6, 9), range(5)])
def test_a_map_of_other_photos_is_not_replaced(
    made: Path, tmp_path: Path, names: Sequence[int]
) -> None:
    shutil.copytree(made / "map", tmp_path / "map")
    other = write_photos(tmp_path / "other", names)
    with pytest.raises(OutputError, match=r"map of photo0\d\.png.* choose another output"):
        reconstruct(other, tmp_path / "map", model=network())
    assert len(MapFolder(tmp_path / "map").finished) == 6


@pytest.mark.parametrize("is_gone", [False, True])
def test_a_memory_card_with_other_photos_does_not_replace_a_map(
    made: Path, tmp_path: Path, is_gone: bool
) -> None:
    photos = copied(made, tmp_path)
    shutil.rmtree(photos)
    card = write_photos(tmp_path / "new" if is_gone else photos, range(6, 9))
    if is_gone:  # names may be equal
        for number, photo in enumerate(sorted(card.iterdir())):
            photo.rename(card / f"photo{number:02}.png")
    with pytest.raises(OutputError, match=r"map of photo00\.png.* choose another output"):
        reconstruct(card, tmp_path / "map", model=network())
    assert len(MapFolder(tmp_path / "map").finished) == 6


def test_a_photo_that_cannot_be_read_any_more_is_left_out(made: Path, tmp_path: Path) -> None:
    photos = copied(made, tmp_path)
    (photos / "photo02.png").write_bytes(b"damaged")
    summary = reconstruct(photos, tmp_path / "map", model=network())
    assert summary.num_registered == 5
    assert "photo02.png" in {photo.name for photo in summary.failed}


def test_global_descriptors_are_rebuilt_when_photos_are_added(made: Path, tmp_path: Path) -> None:
    """A codebook of the old photos alone does not tell the new ones apart."""
    shutil.copytree(made / "map", tmp_path / "map")
    elsewhere = [seen(pose, other=True) for pose in POSES]
    both = network([*(seen(pose) for pose in POSES), *elsewhere])
    add_photos(tmp_path / "map", write_photos(tmp_path / "new", range(6, 12)), model=both)
    with FeatureFile(tmp_path / "map" / "features.h5") as features:
        anew = GlobalDescriptors.build(features)
    kept = GlobalDescriptors.open(tmp_path / "map" / "retrieval.h5")
    assert kept.names == anew.names
    assert (kept.vectors == anew.vectors).all()


def _add_until_killed(into: Path, photos: Path, stage: str) -> None:
    def progress(now: str, done: int, total: int | None) -> None:
        if now.partition(":")[0] == stage:
            os.kill(os.getpid(), signal.SIGKILL)

    add_photos(
        into,
        photos,
        model=network([*(seen(pose) for pose in POSES), seen(QUERY)]),
        progress=progress,
    )


@pytest.mark.parametrize("stage", ["matching", "verifying", "writing the report"])
def test_an_addition_that_was_killed_goes_on(
    made: Path, tmp_path: Path, stage: str, processes: multiprocessing.context.ForkServerContext
) -> None:
    shutil.copytree(made / "map", tmp_path / "map")
    new = write_photos(tmp_path / "new", [6])
    process = processes.Process(target=_add_until_killed, args=(tmp_path / "map", new, stage))
    process.start()
    process.join(120)
    assert process.exitcode == -9
    both = [*(seen(pose) for pose in POSES), seen(QUERY)]
    summary = add_photos(tmp_path / "map", new, model=network(both))
    assert summary.num_registered == 7


def test_an_addition_that_was_killed_may_be_given_up(
    made: Path, tmp_path: Path, processes: multiprocessing.context.ForkServerContext
) -> None:
    shutil.copytree(made / "map", tmp_path / "map")
    given_up = write_photos(tmp_path / "given up", [6])
    process = processes.Process(
        target=_add_until_killed, args=(tmp_path / "map", given_up, "verifying")
    )
    process.start()
    process.join(120)
    shutil.rmtree(given_up)
    both = [*(seen(pose) for pose in POSES), seen(QUERY), seen(camera(-1.0, -3))]
    summary = add_photos(tmp_path / "map", write_photos(tmp_path / "new", [7]), model=network(both))
    assert summary.num_registered == 7


def test_a_photo_that_was_taken_out_and_edited_can_be_added(made: Path, tmp_path: Path) -> None:
    photos = copied(made, tmp_path)
    (tmp_path / "bad").mkdir()
    edited = (photos / "photo02.png").rename(tmp_path / "bad" / "photo02.png")
    reconstruct(photos, tmp_path / "map", model=network())
    edited.write_bytes(edited.read_bytes() + b"edited")
    assert len(Map(MapFolder(tmp_path / "map"), network()).names) == 5
    assert add_photos(tmp_path / "map", edited.parent, model=network()).num_registered == 6


def test_masks_of_the_map_s_photos_are_not_added(made: Path, tmp_path: Path) -> None:
    photos = copied(made, tmp_path)
    (photos / "masks").mkdir()
    for number in range(7):
        Image.new("L", SIZE, 255).save(photos / "masks" / f"photo{number:02}.png")
    reconstruct(photos, tmp_path / "masked", model=network(), masks=photos / "masks")
    write_photos(photos, [6])
    both = network([*(seen(pose) for pose in POSES), seen(QUERY)])
    add_photos(tmp_path / "masked", photos, model=both, masks=photos / "masks")
    assert MapFolder(tmp_path / "masked").finished == {f"photo{n:02}.png" for n in range(7)}


def test_a_photo_is_found_behind_another_one_of_its_name(made: Path, tmp_path: Path) -> None:
    photos = copied(made, tmp_path)
    both = network([*(seen(pose) for pose in POSES), seen(QUERY)])
    add_photos(tmp_path / "map", write_photos(tmp_path / "new", [6]), model=both)
    Image.new("RGB", SIZE, (99, 0, 0)).save(photos / "photo06.png")
    assert MapFolder(tmp_path / "map").photo("photo06.png") == tmp_path / "new" / "photo06.png"


@pytest.mark.parametrize("orientation", [1, 3])
def test_points_take_their_colours_from_photos_as_they_were_extracted(
    tmp_path: Path, orientation: int
) -> None:
    photos = write_photos(tmp_path / "photos", range(6))
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = np.zeros((SIZE[1], SIZE[0], 3), np.uint8)
    pixels[:, SIZE[0] // 2 :] = 200
    Image.fromarray(pixels).save(photos / "photo00.png", exif=exif)
    model = network()
    model.settings = model.settings.updated(upright=False)
    reconstruct(photos, tmp_path / "map", model=model)
    assert (MapFolder(tmp_path / "map").read_photo("photo00.png") == pixels).all()


def test_an_addition_that_was_stopped_leaves_no_cameras_behind(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The user notices a wrong option, stops the run, and starts it again."""
    copied(made, tmp_path)
    new = write_photos(tmp_path / "new", [6])
    both = network([*(seen(pose) for pose in POSES), seen(QUERY)])
    database = tmp_path / "map" / "database.db"
    before = MapFolder(tmp_path / "map").database_photos()
    with monkeypatch.context() as stopped, pytest.raises(KeyboardInterrupt):
        stopped.setattr(stages, "run_mapper", interrupt)
        add_photos(tmp_path / "map", new, model=both)
    camera = {"camera_model": "SIMPLE_PINHOLE", "camera_params": (400.0, 160.0, 120.0)}
    add_photos(tmp_path / "map", new, model=both, **camera)
    with pycolmap.Database.open(database) as content:
        images = {image.name: image for image in content.read_all_images()}
        assert content.num_cameras() == content.num_rigs() == len(before) + 1
        params = content.read_camera(images["photo06.png"].camera_id).params.tolist()
    assert params == [400.0, 160.0, 120.0]
    assert {name: images[name].image_id for name in before.values()} == {
        name: number for number, name in before.items()
    }


STAGES = ["match_pairs", "write_database", "verify_pairs", "run_mapper", "write_report"]


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("run", ["other camera", "fewer photos", "more photos", "added photos"])
def test_a_stopped_run_leaves_the_map_as_it_was(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, run: str
) -> None:
    photos, output = copied(made, tmp_path), tmp_path / "map"
    both = network([*(seen(pose) for pose in POSES), seen(QUERY), seen(camera(-1.0, -3))])
    new, other = write_photos(tmp_path / "new", [6]), write_photos(tmp_path / "other", [7])
    finished = shutil.copytree(output, tmp_path / "copy")
    before = contents(output)
    options: MappingOptions = {"camera_mode": "single"} if run == "other camera" else {}
    if run == "fewer photos":
        (photos / "photo02.png").unlink()
    elif run == "more photos":
        write_photos(photos, [6])
    with monkeypatch.context() as stopped, pytest.raises(KeyboardInterrupt):
        stopped.setattr(stages, stage, interrupt)
        if run == "added photos":
            add_photos(output, new, model=both)
        else:
            reconstruct(photos, output, model=both, **options)
    assert contents(output) == before
    assert len(Map(MapFolder(output), both).names) == 6
    for map_folder in (output, finished):
        assert add_photos(map_folder, other, model=both).num_registered == 7
    stayed, fresh = (contents(folder) for folder in (output, finished))
    assert {n: c for n, c in stayed.items() if "sparse" in n} == {
        n: c for n, c in fresh.items() if "sparse" in n
    }


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a map, except HDF5 files, locks and the copies of stopped runs."""
    files = (path for path in folder.rglob("*") if path.is_file())
    names = {path.relative_to(folder).as_posix(): path for path in files}
    kept = {n: path for n, path in names.items() if ".d2net-tmp" not in n and "lock" not in n}
    ends = (".h5", "-shm", "-wal")
    return {n: path.read_bytes() for n, path in kept.items() if not n.endswith(ends)}


def test_a_map_that_cannot_be_made_again_stays(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = copied(made, tmp_path)
    before = contents(tmp_path / "map")
    monkeypatch.setattr(stages, "run_mapper", lambda *_, **__: [])
    with pytest.raises(MappingError):
        reconstruct(photos, tmp_path / "map", model=network(), camera_mode="single")
    assert contents(tmp_path / "map") == before
    assert len(Map(MapFolder(tmp_path / "map"), network()).names) == 6


@pytest.mark.parametrize("moved", range(8))
@pytest.mark.parametrize("adding", [False, True])
def test_a_kill_between_two_files_of_the_new_map_is_made_good(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moved: int, adding: bool
) -> None:
    photos, output = copied(made, tmp_path), tmp_path / "map"
    both = network([*(seen(pose) for pose in POSES), seen(QUERY), seen(camera(-1.0, -3))])
    new, other = write_photos(tmp_path / "new", [6]), write_photos(tmp_path / "other", [7])

    def run() -> MapSummary:
        if adding:
            return add_photos(output, new, model=both)
        return reconstruct(photos, output, model=both, camera_mode="single")

    move, calls = shutil.move, iter(range(100))

    def move_some(source: Path, target: Path) -> object:
        if next(calls) == moved:
            raise KeyboardInterrupt
        return move(source, target)

    with monkeypatch.context() as stopped, pytest.raises(KeyboardInterrupt):
        stopped.setattr(shutil, "move", move_some)
        run()
    with pytest.raises(InputError, match=r"was stopped while it replaced the map .* run it"):
        Map(MapFolder(output), both)
    if moved % 2 and adding:  # the same run again, or another one
        with pytest.raises(InputError, match="was given all photos"):
            run()
    elif moved % 2:
        assert run().num_registered == 6
    assert add_photos(output, other, model=both).num_registered == 7 + adding
    assert len(Map(MapFolder(output), both).names) == 7 + adding


def test_a_run_that_is_refused_leaves_no_copy(made: Path, tmp_path: Path) -> None:
    photos, new = copied(made, tmp_path), write_photos(tmp_path / "new", [6])
    before = sorted((tmp_path / "map").iterdir())
    other = network()
    other.settings = other.settings.updated(max_keypoints=9)
    with pytest.raises(OutputError, match="max_keypoints"):
        reconstruct(photos, tmp_path / "map", model=other)
    with pytest.raises(OutputError, match="max_keypoints"):
        add_photos(tmp_path / "map", new, model=other)
    assert not [path for path in (tmp_path / "map").glob("*tmp*") if path not in before]


def test_a_refused_run_keeps_the_finished_stages_of_a_stopped_one(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos, output = copied(made, tmp_path), tmp_path / "map"
    other = network()
    other.settings = other.settings.updated(max_keypoints=9)
    with monkeypatch.context() as stopped, pytest.raises(KeyboardInterrupt):
        stopped.setattr(stages, "write_report", interrupt)
        reconstruct(photos, output, model=network(), camera_mode="single")
    with pytest.raises(OutputError, match="max_keypoints"):
        reconstruct(photos, output, model=other, camera_mode="single")
    with pytest.raises(OutputError, match="max_keypoints"):
        add_photos(output, write_photos(tmp_path / "new", [6]), model=other)
    monkeypatch.setattr(stages, "verify_pairs", None)  # calling it would fail
    assert reconstruct(photos, output, model=network(), camera_mode="single").num_registered == 6


def test_changes_by_the_user_since_a_stopped_run_stay(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos, output = copied(made, tmp_path), tmp_path / "map"
    with monkeypatch.context() as stopped, pytest.raises(KeyboardInterrupt):
        stopped.setattr(stages, "run_mapper", interrupt)
        reconstruct(photos, output, model=network(), camera_mode="single")
    scaled = model_of(output)
    scaled.transform(pycolmap.Sim3d(2.0, pycolmap.Rotation3d(), np.zeros(3)))
    scaled.write_binary(output / "sparse" / "0")
    before = (output / "sparse" / "0" / "images.bin").read_bytes()
    reconstruct(photos, output, model=network())
    assert (output / "sparse" / "0" / "images.bin").read_bytes() == before


def test_new_features_of_a_photo_that_is_not_registered_are_noticed(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = write_photos(tmp_path / "photos", range(7))
    both = [*(seen(pose) for pose in POSES), seen(QUERY, other=True), seen(QUERY)[:40]]
    reconstruct(photos, tmp_path / "map", model=network(both))
    assert "photo06.png" not in Map(MapFolder(tmp_path / "map"), network(both)).names
    (write_photos(tmp_path / "edited", [7]) / "photo07.png").replace(photos / "photo06.png")
    with monkeypatch.context() as stopped, pytest.raises(KeyboardInterrupt):
        stopped.setattr(stages, "match_pairs", interrupt)
        reconstruct(photos, tmp_path / "map", model=network(both))
    with pytest.raises(InputError, match=r"new features of photo06\.png"):
        add_photos(tmp_path / "map", write_photos(tmp_path / "new", [7]), model=network(both))


def test_a_map_without_its_record_takes_no_photos(made: Path, tmp_path: Path) -> None:
    copied(made, tmp_path)
    (tmp_path / "map" / "map.json").unlink()
    new = write_photos(tmp_path / "new", [6, 7])
    with pytest.raises(InputError, match="no usable database"):
        add_photos(tmp_path / "map", new, model=network())


def test_an_unfinished_first_map_takes_no_photos(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as stopped, pytest.raises(KeyboardInterrupt):
        stopped.setattr(stages, "write_report", interrupt)
        reconstruct(made / "photos", tmp_path / "map", model=network())
    with pytest.raises(InputError, match="is not a finished map"):
        add_photos(tmp_path / "map", write_photos(tmp_path / "new", [6]), model=network())
    assert reconstruct(made / "photos", tmp_path / "map", model=network()).num_registered == 6


def test_links_in_a_map_stay(made: Path, tmp_path: Path) -> None:
    photos, output = copied(made, tmp_path), tmp_path / "map"
    (tmp_path / "drive").mkdir()
    for name in ("database.db", "map.png"):
        (output / name).rename(tmp_path / "drive" / name)
        (output / name).symlink_to(tmp_path / "drive" / name)
    reconstruct(photos, output, model=network(), camera_mode="single")
    assert all((output / name).is_symlink() for name in ("database.db", "map.png"))
    with pycolmap.Database.open(tmp_path / "drive" / "database.db") as database:
        assert database.num_cameras() == 1


def test_a_write_protected_report_is_not_replaced(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = copied(made, tmp_path)
    before = contents(tmp_path / "map")
    access = os.access
    monkeypatch.setattr(  # tests may run as root, who may write anything
        os, "access", lambda path, mode: Path(path).name != "report.json" and access(path, mode)
    )
    with pytest.raises(OutputError, match=r"report\.json is write-protected"):
        reconstruct(photos, tmp_path / "map", model=network(), camera_mode="single")
    assert contents(tmp_path / "map") == before


def test_a_folder_without_photos_is_not_added(made: Path, tmp_path: Path) -> None:
    copied(made, tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no photos to add"):
        add_photos(tmp_path / "map", tmp_path / "empty", model=network())
    assert MapFolder(tmp_path / "map").photo_folders == [tmp_path / "photos"]


def test_the_map_s_own_photos_may_be_gone_when_others_are_added(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "map", tmp_path / "map")
    record = tmp_path / "map" / "map.json"
    record.write_text(record.read_text().replace(str(made / "photos"), str(tmp_path / "gone")))
    both = [*(seen(pose) for pose in POSES), seen(QUERY)]
    summary = add_photos(tmp_path / "map", write_photos(tmp_path / "new", [6]), model=network(both))
    assert summary.num_registered == 7


@pytest.mark.parametrize("upright", [True, False])
def test_cameras_of_photos_as_stored_are_not_those_of_upright_photos(
    made: Path, tmp_path: Path, upright: bool
) -> None:
    (tmp_path / "poses").mkdir()
    true_model().write_text(tmp_path / "poses")
    photos = shutil.copytree(made / "photos", tmp_path / "photos")
    exif = Image.Exif()
    exif[0x0112] = 6
    for path in photos.iterdir():
        Image.open(path).save(path, exif=exif)
    extractor = network()
    extractor.settings = extractor.resolve(upright=upright)
    if upright:
        with pytest.raises(InputError, match="they must be the same"):
            reconstruct(photos, tmp_path / "map", model=extractor, poses=tmp_path / "poses")
        assert not (tmp_path / "map").exists()
    else:
        reconstruct(photos, tmp_path / "map", model=extractor, poses=tmp_path / "poses")


def test_cameras_are_compared_after_extraction_if_the_header_gives_no_size(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The size of HEIC photos is known once their pixels are read."""
    (tmp_path / "poses").mkdir()
    model = true_model()
    for lens in model.cameras.values():
        lens.width, lens.height = lens.height, lens.width
    model.write_text(tmp_path / "poses")
    monkeypatch.setattr("d2net.io.exif.photo_size", lambda *_, **__: None)
    with pytest.raises(InputError, match="they must be the same"):
        reconstruct(made / "photos", tmp_path / "map", model=network(), poses=tmp_path / "poses")


def test_known_poses_do_not_pass_for_a_mapping(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "map", tmp_path / "map")
    (tmp_path / "poses").mkdir()
    true_model().write_text(tmp_path / "poses")
    for poses in (tmp_path / "poses", None):
        reconstruct(made / "photos", tmp_path / "map", model=network(), poses=poses)
    first, second = (root / "map" / "sparse" / "0" / "images.bin" for root in (made, tmp_path))
    assert first.read_bytes() == second.read_bytes()


def test_nothing_new_is_reported(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "map", tmp_path / "map")
    with pytest.raises(InputError, match="was given all photos"):
        add_photos(tmp_path / "map", made / "photos", model=network())
    with pytest.raises(InputError, match=r"is not a map: features\.h5 is missing"):
        add_photos(tmp_path, made / "photos", model=network())


def test_photos_of_a_moved_map_are_found_where_they_are_now(made: Path, tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    shutil.copytree(made, old)
    both = network([*(seen(pose) for pose in POSES), seen(QUERY)])
    reconstruct(old / "photos", old / "map", model=both)
    before = add_photos(old / "map", write_photos(old / "added", [6]), model=both, seed=1)
    old.rename(new)
    with pytest.raises(FormatError, match=r"photo06\.png.* d2net reconstruct FOLDER --into "):
        MapFolder(new / "map").photo("photo06.png")
    for folder in ("added", "photos"):
        summary = add_photos(new / "map", new / folder)
        assert (summary.photos, summary.settings) == (before.photos, before.settings)
    folder = MapFolder(new / "map")
    assert folder.photo_folders == [new / "added", new / "photos"]
    assert folder.photo("photo06.png") == new / "added" / "photo06.png"
    with pytest.raises(OutputError, match="--into"):  # the added photos are still known as such
        reconstruct(new / "photos", new / "map", model=both)


def test_a_photo_that_was_replaced_under_its_name_is_not_used(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "map", tmp_path / "map")
    photos = shutil.copytree(made / "photos", tmp_path / "photos")
    reconstruct(photos, tmp_path / "map", model=network())
    folder = MapFolder(tmp_path / "map")
    assert folder.photo("photo00.png") == photos / "photo00.png"
    (photos / "photo01.png").replace(photos / "photo00.png")
    with pytest.raises(FormatError, match=r"photo00\.png has changed since the map"):
        folder.photo("photo00.png")
    both = network([*(seen(pose) for pose in POSES), seen(QUERY)])
    add_photos(tmp_path / "map", write_photos(tmp_path / "new", [6]), model=both)
    page = (tmp_path / "map" / "map.html").read_text()
    assert page.count("data:image/jpeg") == 5  # without photo00.png, and photo01.png is gone
