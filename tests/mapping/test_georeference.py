"""Maps on the earth: models of known cameras in an arbitrary frame, and their GPS positions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pycolmap
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy.spatial.transform import Rotation

from d2net.errors import FormatError
from d2net.geometry.alignment import rotation_angle
from d2net.io.exif import Position
from d2net.mapping.georeference import Georeference, georeference
from d2net.mapping.localize import Map
from d2net.mapping.map_folder import MapFolder
from d2net.mapping.reconstruct import reconstruct

from .made import LENS, PreparedNetwork, camera, seen, write_photos

Array = NDArray[np.float64]
PLACE = (48.8584, 2.2945, 35.0)
OUTLIERS = (3, 11)


def walk(n: int = 20, seed: int = 0) -> tuple[Array, Array]:
    """Cameras (centres, cam_from_world) around a park of 900 m, held level to some degrees."""
    chance = np.random.default_rng(seed)
    angle = np.linspace(0, 2 * np.pi, n, endpoint=False)
    centres = np.column_stack([450 * np.cos(angle), 360 * np.sin(angle), 0 * angle])
    return centres, looking(angle + np.pi, chance.normal(0, [3, 8], (n, 2)))


def looking(heading: Array, roll_and_pitch: Array) -> Array:
    """Rotations cam_from_world of cameras that look in directions from the east, in radians."""
    level = np.array([[0, -1, 0], [0, 0, -1], [1, 0, 0]])  # looks east
    turns = Rotation.from_euler("z", -heading[:, None]).as_matrix()
    held = Rotation.from_euler("zx", roll_and_pitch, degrees=True).as_matrix()
    return np.asarray(held @ level @ turns)


def model_of(centres: Array, rotations: Array) -> pycolmap.Reconstruction:
    """The cameras in an arbitrary frame."""
    model = pycolmap.Reconstruction()
    camera = pycolmap.Camera(model="PINHOLE", width=640, height=480, params=[500, 500, 320, 240])
    camera.camera_id = 1
    model.add_camera_with_trivial_rig(camera)
    for number, (centre, rotation) in enumerate(zip(centres, rotations, strict=True), 1):
        image = pycolmap.Image(name=f"{number - 1}.jpg", camera_id=1, image_id=number)
        pose = pycolmap.Rigid3d(pycolmap.Rotation3d(rotation), -rotation @ centre)
        model.add_image_with_trivial_frame(image, pose)
    turn = pycolmap.Rotation3d(Rotation.from_rotvec([0.7, -1.1, 2.0]).as_quat())
    model.transform(pycolmap.Sim3d(0.013, turn, [3.0, -4.0, 5.0]))
    return model


def fixes(
    centres: Array,
    noise: float,
    outliers: Sequence[int] = (),
    seed: int = 1,
    origin: Sequence[float] = PLACE,
) -> dict[str, Position]:
    """GPS positions of the cameras with noise in metres; those of outliers are 200 m off."""
    measured = centres + np.random.default_rng(seed).normal(0, noise, centres.shape)
    measured[list(outliers), :2] += 200
    on_earth = pycolmap.GPSTransform().enu_to_ellipsoid(measured, *origin)
    return {f"{i}.jpg": Position(*map(float, place)) for i, place in enumerate(on_earth)}


def poses(model: pycolmap.Reconstruction) -> tuple[Array, Array]:
    images = sorted(model.images.values(), key=lambda image: int(image.name.split(".")[0]))
    found = [image.cam_from_world() for image in images]
    return (
        np.array([pose.inverse().translation for pose in found]),
        np.array([pose.rotation.matrix() for pose in found]),
    )


def check(
    model: pycolmap.Reconstruction,
    place: Georeference | None,
    centres: Array,
    rotations: Array,
    origin: Sequence[float] = PLACE,
) -> None:
    """Metric to one percent, and north and up to one degree."""
    assert place is not None
    mine, turned = poses(model)
    spread = np.linalg.norm(centres - centres.mean(axis=0), axis=1).mean()
    found = np.linalg.norm(mine - mine.mean(axis=0), axis=1).mean()
    assert found == pytest.approx(spread, rel=0.01)
    for estimated, true in zip(turned, rotations, strict=True):
        assert rotation_angle(estimated, true) < 1
    for point, true in zip(mine, centres, strict=True):
        position = place.position(point)
        east, north, _ = pycolmap.GPSTransform().ellipsoid_to_enu(
            np.array([[position.latitude, position.longitude, position.altitude]]), *origin
        )[0]
        assert np.hypot(east - true[0], north - true[1]) < 4 * place.deviation(point)


def test_photos_with_gps_make_a_map_that_localizes_on_the_earth(tmp_path: Path) -> None:
    """The made scene in units of 200 m; its y axis points down and its z axis north."""
    to_east_north_up = 200 * np.array([[1, 0, 0], [0, 0, 1], [0, -1, 0]])
    poses_ = [camera(x, -4 * x) for x in np.linspace(-2.5, 2.5, 20)]
    centres = np.array([pose.inverse().translation for pose in poses_]) @ to_east_north_up.T
    photos = write_photos(tmp_path / "photos", range(20))
    for number, fix in enumerate(fixes(centres, 5.0, OUTLIERS).values()):
        assert fix.altitude is not None
        path = photos / f"photo{number:02}.png"
        exif = Image.Exif()
        exif[0x8825] = {
            1: "N",
            2: (fix.latitude, 0.0, 0.0),
            3: "E",
            4: (fix.longitude, 0.0, 0.0),
            5: bytes([fix.altitude < 0]),
            6: abs(fix.altitude),
        }
        with Image.open(path) as photo:
            photo.save(path, exif=exif.tobytes())
    network = PreparedNetwork([seen(pose) for pose in poses_])
    summary = reconstruct(photos, tmp_path / "map", model=network)
    assert summary.georeference is not None
    assert 16 <= summary.georeference.num_agreeing <= 18
    again = reconstruct(photos, tmp_path / "map", model=network)
    assert again.georeference == summary.georeference

    query = camera(0.9, 6, z=1.0)
    map_ = Map(MapFolder(tmp_path / "map"), PreparedNetwork([seen(query)]))
    answer = map_.localize(np.zeros((480, 640, 3), np.uint8), camera=LENS)
    values = answer.to_dict()
    east, north, _ = pycolmap.GPSTransform().ellipsoid_to_enu(
        np.array([[values["latitude"], values["longitude"], PLACE[2]]]), *PLACE
    )[0]
    true = to_east_north_up @ query.inverse().translation
    assert 0.5 < values["earth_deviation_m"] < 5
    assert np.hypot(east - true[0], north - true[1]) < 3 * values["earth_deviation_m"]
    assert answer.pose is not None
    north_up = Rotation.from_matrix(to_east_north_up / 200)
    expected = query.rotation.matrix() @ north_up.inv().as_matrix()
    assert rotation_angle(answer.pose.cam_from_world.rotation.matrix(), expected) < 2


@pytest.mark.parametrize("seed", range(3))
def test_noise_and_wrong_fixes_do_not_matter(seed: int) -> None:
    centres, rotations = walk(seed=seed)
    model = model_of(centres, rotations)
    place = georeference(model, fixes(centres, 5.0, OUTLIERS, seed))
    check(model, place, centres, rotations)
    assert place is not None
    assert (place.num_positions, place.num_agreeing) == (20, 18)
    assert 3 < place.error < 7


@pytest.mark.parametrize("latitude", [-16.8, 65.0])
def test_the_antimeridian_is_a_place_like_others(latitude: float) -> None:
    origin = latitude, 180.0, 20.0
    centres, rotations = walk(18)
    positions = fixes(centres, 2.0, origin=origin)
    assert np.count_nonzero([fix.longitude > 0 for fix in positions.values()]) == 9
    model = model_of(centres, rotations)
    check(model, georeference(model, positions), centres, rotations, origin)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "georeference.json").write_text('{"latitude": 48.8')
    with pytest.raises(FormatError, match=r"georeference\.json is damaged"):
        Georeference.read(tmp_path)


def test_a_street_without_altitudes_is_upright() -> None:
    """Positions along a line leave a turn about it open; the cameras' up determines it."""
    n = 20
    centres = np.column_stack([np.linspace(-400, 400, n), np.zeros(n), np.full(n, 1.6)])
    held = np.random.default_rng(2).normal(0, [2, 6], (n, 2))
    rotations = looking(np.linspace(0, 2, n), held)
    model = model_of(centres, rotations)
    positions = {name: Position(*fix[:2]) for name, fix in fixes(centres, 3.0).items()}
    assert georeference(model, positions) is not None
    _, turned = poses(model)
    assert max(map(rotation_angle, turned, rotations)) < 3


def test_photos_without_an_altitude_leave_the_others_theirs() -> None:
    centres, rotations = walk()
    positions = fixes(centres, 0.1)
    expected = georeference(model_of(centres, rotations), positions)
    first = next(iter(positions))
    positions[first] = positions[first]._replace(altitude=None)
    found = georeference(model_of(centres, rotations), positions)
    assert expected is not None
    assert found is not None
    assert abs(found.altitude - expected.altitude) < 1.0


def test_a_drone_that_looks_down_is_aligned_by_its_positions() -> None:
    x, y = (part.ravel() for part in np.meshgrid(np.arange(5) * 60.0, np.arange(4) * 60.0))
    centres = np.column_stack([x, y, 80 + 5 * np.sin(x)])
    rotations = looking(np.full(20, 0.3), np.tile([0.0, 90.0], (20, 1)))
    model = model_of(centres, rotations)
    check(model, georeference(model, fixes(centres, 1.0)), centres, rotations)


@pytest.mark.parametrize("pitch", [30.0, 45.0, 60.0, 75.0, 90.0])
@pytest.mark.parametrize("step", [15.0, 50.0])
@pytest.mark.parametrize("turning", [False, True])
def test_a_drone_may_tilt_its_camera_by_any_angle(pitch: float, step: float, turning: bool) -> None:
    """In an area of 60 m a tilted map agrees with all positions within the errors of GPS."""
    y, x = (part.ravel() for part in np.meshgrid(np.arange(5) * step, np.arange(5) * step))
    centres = np.column_stack([x, y, np.full(25, 80.0)])
    chance = np.random.default_rng(4)
    heading = np.pi / 2 + np.repeat([0, np.pi * turning, 0, np.pi * turning, 0], 5)
    held = np.column_stack([chance.normal(0, 1, 25), pitch + chance.normal(0, 1, 25)])
    rotations = looking(heading + chance.normal(0, 0.03, 25), held)
    model = model_of(centres, rotations)
    assert georeference(model, fixes(centres, 0.05)) is not None
    _, turned = poses(model)
    assert max(map(rotation_angle, turned, rotations)) < 5


@pytest.mark.parametrize("length", [20.0, 40.0, 80.0])
def test_drifting_altitudes_do_not_tilt_a_walk(length: float) -> None:
    """Altitudes of phones drift by 10 m; the cameras know better what is level."""
    centres = np.column_stack([np.linspace(0, length, 20), np.zeros(20), np.full(20, 1.6)])
    held = np.random.default_rng(3).normal(0, [2, 3], (20, 2))
    rotations = looking(np.linspace(0, 0.1, 20), held)
    model = model_of(centres, rotations)
    drifting = centres + np.outer(np.linspace(0, 10, 20), [0, 0, 1])
    assert georeference(model, fixes(drifting, 0.3)) is not None
    _, turned = poses(model)
    assert max(map(rotation_angle, turned, rotations)) < 8


@pytest.mark.parametrize("distance", [8.0, 15.0])
def test_two_walks_whose_altitudes_differ_do_not_tilt_a_facade(distance: float) -> None:
    """A phone's altitudes are wrong by metres, and differently on each walk."""
    chance = np.random.default_rng(0)
    x = np.r_[np.linspace(0, 50, 40), np.linspace(50, 0, 40)]
    centres = np.column_stack([x, np.repeat([0.0, -distance], 40), np.full(80, 1.6)])
    held = chance.normal([0, -8], [2, 5], (80, 2))
    rotations = looking(np.pi / 2 + chance.normal(0, 0.15, 80), held)
    model = model_of(centres, rotations)
    georeference(model, fixes(centres + np.repeat([[0, 0, 9.0], [0, 0, -9.0]], 40, axis=0), 1.5))
    for estimated, true in zip(poses(model)[1], rotations, strict=True):
        assert (estimated.T @ true)[2, 2] > np.cos(np.radians(20))


def test_a_known_distance_sets_the_scale() -> None:
    centres, rotations = walk()
    model = model_of(centres, rotations)
    metres = float(np.linalg.norm(centres[0] - centres[7]))
    assert georeference(model, {}, ("0.jpg", "7.jpg", metres)) is None
    mine, turned = poses(model)
    assert np.linalg.norm(mine[0] - mine[7]) == pytest.approx(metres, rel=1e-6)
    for estimated, true in zip(turned, rotations, strict=True):
        up = estimated.T @ true @ [0, 0, 1]
        assert up[2] > np.cos(np.radians(3))


def test_positions_within_a_few_metres_do_not_tell_the_scale() -> None:
    centres, rotations = walk()
    model = model_of(centres / 150, rotations)
    assert georeference(model, fixes(centres / 150, 5.0)) is None
