"""Pairs of photos with known cameras: from COLMAP models and from SuperGlue's pair files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
from d2net.io.image_lists import find_images, photos_folder
from d2net.io.pairs import read_pairs
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
        if choice.model is not None:
            raise InputError(
                f"{choice.pairs} contains the true poses; leave the model {choice.model} out"
            )
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
        posed_pairs = [pair for scene in scenes for pair in _Scene(scene, choice).pairs()]
    if not posed_pairs:
        raise InputError(
            f"no pair of photos is left in {choice.pairs or folder}; a scene needs two photos with "
            "known cameras, and some pair must be within the limits of overlap and angle"
        )
    return posed_pairs


class _Scene:
    """Photos and their COLMAP model."""

    def __init__(self, folder: Path, choice: PairFilter) -> None:
        self._choice = choice
        self._name = folder.resolve().name
        self._photos = photos_folder(folder)
        self._path = choice.model or find_model(folder) or folder
        self._model = read_model(self._path)
        self._images: Mapping[str, pycolmap.Image] = {
            image.name: image for image in self._model.images.values()
        }

    def pairs(self) -> list[PosedPair]:
        """The listed pairs, or all that meet the limits."""
        if self._choice.pairs is not None:
            return [self._posed(*pair) for pair in read_pairs(self._choice.pairs)]
        self._check_complete()
        overlaps, near = self._overlap_test(), self._angle_test()
        pairs = combinations(sorted(self._images), 2)
        return [self._posed(*pair) for pair in pairs if overlaps(*pair) and near(*pair)]

    def _check_complete(self) -> None:
        """All photos of the folder must be in the model, unless pairs are listed."""
        names = [photo.name for photo in find_images([self._photos])]
        missing = [name for name in names if name not in self._images]
        if missing:
            raise FormatError(
                f"the model {self._path} lacks {len(missing)} photos of {self._photos}, such as "
                f"{missing[0]}; give a list of pairs of photos that it has"
            )

    def _overlap_test(self) -> Callable[[str, str], bool]:
        min_overlap = self._choice.min_overlap
        if min_overlap is None:
            return lambda a, b: True
        seen = {
            name: {p.point3D_id for p in image.get_observation_points2D()}
            for name, image in self._images.items()
        }
        if not any(seen.values()):
            raise InputError(
                f"the model {self._path} has no points, by which overlap is measured; choose "
                "pairs by angle or give a list"
            )

        def overlaps(a: str, b: str) -> bool:
            fewer = min(len(seen[a]), len(seen[b]))
            return fewer > 0 and len(seen[a] & seen[b]) >= min_overlap * fewer

        return overlaps

    def _angle_test(self) -> Callable[[str, str], bool]:
        max_angle = self._choice.max_angle
        if max_angle is None:
            return lambda a, b: True
        axes = {name: image.viewing_direction() for name, image in self._images.items()}
        min_cosine = np.cos(np.radians(min(max_angle, 180)))
        return lambda a, b: bool(axes[a] @ axes[b] >= min_cosine)

    def _posed(self, first: str, second: str) -> PosedPair:
        a, b = self._image(first), self._image(second)
        b_from_a = b.cam_from_world() * a.cam_from_world().inverse()
        return PosedPair(
            group=self._name,
            photos=(_photo(self._photos, first), _photo(self._photos, second)),
            cameras=(self._model.cameras[a.camera_id], self._model.cameras[b.camera_id]),
            rotation=np.asarray(b_from_a.rotation.matrix(), dtype=np.float64),
            translation=np.asarray(b_from_a.translation, dtype=np.float64),
        )

    def _image(self, name: str) -> pycolmap.Image:
        image = self._images.get(name)
        if image is None or not image.has_pose:
            raise FormatError(f"the model {self._path} has no pose of the photo {name}")
        return image


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
