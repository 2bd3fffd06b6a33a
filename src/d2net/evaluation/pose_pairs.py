"""Pairs of photos with known cameras: from COLMAP models and from SuperGlue's pair files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from d2net.errors import FormatError, InputError
from d2net.evaluation.pairs import PhotoPair
from d2net.evaluation.results import Array
from d2net.geometry.cameras import pinhole
from d2net.io.colmap_model import find_model, read_model
from d2net.io.image_lists import photos_folder
from d2net.io.pairs import Pair, read_pairs
from d2net.io.text import word_lines

if TYPE_CHECKING:
    import pycolmap

_NUMBERS = 2 + 9 + 9 + 16
"""In a line of SuperGlue's files: rot0 rot1, K0, K1, T_0to1."""


@dataclass(frozen=True)
class PosedPair(PhotoPair):
    """Two photos and the pose between their cameras.

    Attributes:
        cameras: COLMAP's cameras; width and height are 0 where the ground truth does not have them.
        rotation: 3 x 3 `b_from_a`.
        translation: 3, `b_from_a`, of any scale.
    """

    cameras: tuple[pycolmap.Camera, pycolmap.Camera]
    rotation: Array
    translation: Array


@dataclass(frozen=True)
class PairFilter:
    """Which pairs of a folder are evaluated.

    Attributes:
        model: folder of the COLMAP model; None to find it.
        pairs: file of pairs; see `find_pairs`.
        min_overlap: both photos see at least this share of the points that the photo with fewer
            points sees.
        max_angle: largest angle between the optical axes in degrees.
    """

    model: Path | None = None
    pairs: Path | None = None
    min_overlap: float | None = None
    max_angle: float | None = None

    def __post_init__(self) -> None:
        if self.pairs is not None and (self.min_overlap is not None or self.max_angle is not None):
            raise InputError(
                "give a list of pairs, or choose pairs by overlap and angle, but not both"
            )


def find_pairs(folder: Path, choice: PairFilter | None = None) -> list[PosedPair]:
    """Pairs with ground truth.

    The folder is a scene: photos in `images` (or anywhere in it) and a COLMAP model, text or
    binary, in `model`, `sparse`, `sparse/0` or the folder itself. Or its subfolders are scenes.

    The file `choice.pairs` has two names a line, relative to the folder of photos. Or it is one of
    SuperGlue's, like those of MegaDepth-1500 and ScanNet-1500, which hold the ground truth:
    `name0 name1 rot0 rot1 K0 K1 T_0to1` (row by row, 2 + 9 + 9 + 16 numbers; as in SuperGlue, pixel
    centres are at integers). Without a file all pairs of the model's photos are taken.

    Raises:
        InputError: no such folder, no pairs, or arguments that do not go together.
        FormatError: a model or a file of pairs is broken, or does not belong to the photos.
    """
    choice = choice or PairFilter()
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}")
    if choice.pairs is not None and _has_ground_truth(choice.pairs):
        posed_pairs = _read_superglue(choice.pairs, folder)
    else:
        scenes = [folder]
        if choice.model is None and find_model(folder) is None:
            scenes = [p for p in sorted(folder.iterdir()) if p.is_dir() and find_model(p)]
        if not scenes:
            raise InputError(
                f"{folder} holds no COLMAP model (cameras and images as .txt or .bin, in the "
                "folder or in model, sparse or sparse/0); give the folder of the model"
            )
        if choice.pairs is not None and len(scenes) > 1:
            raise InputError(f"{folder} holds {len(scenes)} scenes; a list of pairs is for one")
        posed_pairs = [pair for scene in scenes for pair in _pairs_of(scene, choice)]
    if not posed_pairs:
        raise InputError(
            f"no pair of photos is left in {choice.pairs or folder}; a scene needs two photos with "
            "known cameras, and some pair must be within the limits of overlap and angle"
        )
    return posed_pairs


def _pairs_of(scene: Path, choice: PairFilter) -> Iterator[PosedPair]:
    """The listed pairs of a scene, or all that meet the limits."""
    path, photos = choice.model or find_model(scene) or scene, photos_folder(scene)
    model = read_model(path)
    images = {image.name: image for image in model.images.values() if image.has_pose}
    if choice.pairs is not None:
        pairs: Iterable[Pair] = read_pairs(choice.pairs)
    else:
        pairs = _within_limits(images, choice, path)
    for pair in pairs:
        for name in pair:
            if name not in images:
                raise FormatError(f"the model {path} has no pose of the photo {name}")
        a, b = (images[name] for name in pair)
        b_from_a = b.cam_from_world() * a.cam_from_world().inverse()
        yield PosedPair(
            group=scene.resolve().name,
            photos=(_photo(photos, a.name), _photo(photos, b.name)),
            cameras=(model.cameras[a.camera_id], model.cameras[b.camera_id]),
            rotation=np.asarray(b_from_a.rotation.matrix(), dtype=np.float64),
            translation=np.asarray(b_from_a.translation, dtype=np.float64),
        )


def _within_limits(
    images: Mapping[str, pycolmap.Image], choice: PairFilter, path: Path
) -> Iterator[Pair]:
    seen: dict[str, set[int]] = {}
    if choice.min_overlap is not None:
        for name, image in images.items():
            seen[name] = {point.point3D_id for point in image.get_observation_points2D()}
        if not any(seen.values()):
            raise InputError(
                f"the model {path} has no points, by which overlap is measured; choose pairs by "
                "angle or give a list"
            )
    largest = 180.0 if choice.max_angle is None else min(choice.max_angle, 180)
    min_cosine = np.cos(np.radians(largest)) - 1e-9
    for a, b in combinations(sorted(images), 2):
        if choice.min_overlap is not None:
            fewer = min(len(seen[a]), len(seen[b]))
            if fewer == 0 or len(seen[a] & seen[b]) < choice.min_overlap * fewer:
                continue
        if images[a].viewing_direction() @ images[b].viewing_direction() >= min_cosine:
            yield a, b


def _photo(folder: Path, name: str) -> Path:
    path = folder / name
    if not path.is_file():
        raise FormatError(f"the ground truth names the photo {name}, which is not in {folder}")
    return path


def _has_ground_truth(path: Path) -> bool:
    """Whether a file of pairs is SuperGlue's: then its first line has numbers after the names."""
    _, words = next(word_lines(path, "pairs"), (0, []))
    return len(words) > 10


def _read_superglue(path: Path, folder: Path) -> list[PosedPair]:
    pairs = []
    for number, words in word_lines(path, "pairs with poses"):
        where = f"{path}, line {number}"
        try:
            values = np.array(words[2:], dtype=np.float64)
        except ValueError:
            values = np.empty(0)
        if len(values) != _NUMBERS or not np.isfinite(values).all():
            raise FormatError(
                f"{where}: two names and {_NUMBERS} numbers are expected, "
                "name0 name1 rot0 rot1 K0 K1 T_0to1"
            )
        if values[:2].any():
            raise FormatError(
                f"{where}: asks to rotate photos (rot0, rot1), which is not supported; "
                "MegaDepth-1500 and ScanNet-1500 do not need it"
            )
        try:
            cameras = pinhole(values[2:11].reshape(3, 3)), pinhole(values[11:20].reshape(3, 3))
        except InputError as error:
            raise FormatError(f"{where}: {error}") from error
        pose = values[20:].reshape(4, 4)
        rotation = pose[:3, :3]
        # ScanNet's poses are accurate to a few digits only.
        if np.abs(rotation @ rotation.T - np.eye(3)).max() > 1e-2 or np.linalg.det(rotation) < 0:
            raise FormatError(f"{where}: T_0to1 does not begin with a rotation")
        photos = _photo(folder, words[0]), _photo(folder, words[1])
        pairs.append(PosedPair(folder.resolve().name, photos, cameras, rotation, pose[:3, 3]))
    return pairs
