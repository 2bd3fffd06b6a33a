"""COLMAP's database of cameras, photos, keypoints and matches, written with pycolmap.

COLMAP puts the centre of the top-left pixel at (0.5, 0.5); the half pixel is added here.
Descriptors are left out: pycolmap 4.2 accepts only those of COLMAP's own features.
"""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from pathlib import Path
from typing import Protocol

import pycolmap

from d2net.errors import OutputError
from d2net.features import Features, Matches
from d2net.geometry.cameras import quiet_colmap
from d2net.geometry.coordinates import COLMAP_FROM_PIXELS
from d2net.io.arrays import as_numpy
from d2net.io.atomic import locked, replacing

_FOCAL_LENGTH_FACTOR = 1.2
"""COLMAP's guess of the focal length in units of the longer side
(ImageReaderOptions.default_focal_length_factor)."""


class MatchedPairs(Protocol):
    """Matches of pairs of photos, for example a `MatchFile`."""

    def among(self, num_keypoints: Mapping[str, int]) -> Iterable[tuple[str, str, Matches]]:
        """The pairs whose photos are both in `num_keypoints`, each once; rows are checked."""


def write_database(
    path: Path,
    features: Mapping[str, Features],
    matches: MatchedPairs | None = None,
    *,
    cameras: Mapping[str, pycolmap.Camera] | None = None,
    overwrite: bool = False,
    extend: bool = False,
) -> None:
    """Write a database that COLMAP can verify and map.

    Matches are written as raw matches: run pycolmap's `geometric_verification`, or `colmap
    geometric_verifier`, before mapping.

    Args:
        path: the database.
        features: by photo. COLMAP numbers the photos in this order, from 1.
        matches: the pairs whose photos are both in `features` are written.
        cameras: the camera of each photo; photos may share a camera object. Without cameras, each
            photo gets its own SIMPLE_RADIAL camera with COLMAP's guess of the focal length, which
            mapping refines. A camera with a number of the database to extend is that camera.
        overwrite: replace an existing database.
        extend: add new photos and pairs to an existing database, whose numbers stay.
    """
    with locked(path):
        if path.exists() and not (overwrite or extend):
            raise OutputError(f"{path} exists already; delete it or choose another name.")
        with replacing(path, lock=False) as temporary:
            with _sqlite(temporary, path):
                if extend:
                    shutil.copyfile(path, temporary)
                with pycolmap.Database.open(temporary) as database:
                    _write_photos(database, features, cameras)
                    if matches is not None:
                        _write_matches(database, matches)
            remove_side_files(path)  # SQLite would replay an old journal into the new database


def _write_photos(
    database: pycolmap.Database,
    features: Mapping[str, Features],
    cameras: Mapping[str, pycolmap.Camera] | None,
) -> None:
    written: dict[int, tuple[int, int]] = {}
    known = {image.name for image in database.read_all_images()}
    rigs = {rig.ref_sensor_id.id: rig.rig_id for rig in database.read_all_rigs()}
    for name in features:
        if name in known:
            continue
        photo = features[name]
        camera = guessed_camera(photo.image_size) if cameras is None else cameras[name]
        if camera.camera_id in rigs:
            written[id(camera)] = camera.camera_id, rigs[camera.camera_id]
        elif cameras is None or id(camera) not in written:
            numbered = copy(camera)
            numbered.camera_id = database.write_camera(camera)
            rig = pycolmap.Rig()  # since COLMAP 3.12 cameras belong to rigs, and photos to frames
            rig.add_ref_sensor(numbered.sensor_id)
            written[id(camera)] = numbered.camera_id, database.write_rig(rig)
        camera_id, rig_id = written[id(camera)]
        image = pycolmap.Image(name=name, camera_id=camera_id)
        image.image_id = database.write_image(image)
        frame = pycolmap.Frame()
        frame.rig_id = rig_id
        frame.add_data_id(image.data_id)
        database.write_frame(frame)
        database.write_keypoints(image.image_id, as_numpy(COLMAP_FROM_PIXELS(photo.keypoints)))


def _write_matches(database: pycolmap.Database, matches: MatchedPairs) -> None:
    images = {image.name: image.image_id for image in database.read_all_images()}
    num_keypoints = {
        name: database.num_keypoints_for_image(number) for name, number in images.items()
    }
    for first, second, pair in matches.among(num_keypoints):
        if not database.exists_matches(images[first], images[second]):
            rows = as_numpy(pair.indices).astype("uint32")
            database.write_matches(images[first], images[second], rows)


def guessed_camera(
    size: tuple[int, int], model: str = "SIMPLE_RADIAL", focal_length: float | None = None
) -> pycolmap.Camera:
    """A camera without distortion whose principal point is the centre of the photo.

    `focal_length` is in pixels, None for COLMAP's guess.
    """
    focal, number = focal_length or _FOCAL_LENGTH_FACTOR * max(size), pycolmap.INVALID_CAMERA_ID
    camera = pycolmap.Camera.create_from_model_name(number, model, focal, *size)
    camera.has_prior_focal_length = focal_length is not None
    return camera


@contextmanager
def _sqlite(temporary: Path, path: Path) -> Iterator[None]:
    """Report SQLite's failures while `temporary` is written, and remove its side files.

    One transaction would be faster, but pycolmap 4.2 aborts the process when one fails.
    """
    remove_side_files(temporary)
    try:
        with quiet_colmap():
            yield
        unfinished = any(file.exists() for file in _side_files(temporary))
    except (RuntimeError, sqlite3.Error) as error:
        reason = " ".join(str(error).split())
        raise OutputError(
            f"{path} cannot be written ({reason}): the disk is full, or its drive lacks file "
            "locks; free some space, or write to another drive"
        ) from error
    finally:
        remove_side_files(temporary)
    if unfinished:
        raise OutputError(f"{path} cannot be written: SQLite could not finish; is the disk full?")


def _side_files(database: Path) -> list[Path]:
    return [database.with_name(database.name + end) for end in ("-journal", "-wal", "-shm")]


def remove_side_files(database: Path) -> None:
    """Remove SQLite's journals of a database that is replaced."""
    for file in _side_files(database):
        file.unlink(missing_ok=True)
