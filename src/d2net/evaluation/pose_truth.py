"""Pairs of photos with known cameras: from COLMAP models and from SuperGlue's pair files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from d2net.errors import FormatError, InputError
from d2net.geometry.cameras import pinhole
from d2net.io.colmap_model import find_model, read_model
from d2net.io.image_lists import find_images, photos_folder
from d2net.io.pairs import read_pairs
from d2net.io.text import word_lines

if TYPE_CHECKING:
    import pycolmap

Array = NDArray[np.float64]


@dataclass(frozen=True)
class PosedPair:
    """Two photos and the pose between their cameras.

    Attributes:
        group: the scene.
        photos: both files.
        cameras: COLMAP's cameras; width and height 0 where the truth does not tell them.
        rotation: 3 x 3 `b_from_a`.
        translation: 3, `b_from_a`, of any scale.
    """

    group: str
    photos: tuple[Path, Path]
    cameras: tuple[pycolmap.Camera, pycolmap.Camera]
    rotation: Array
    translation: Array


def find_pairs(
    folder: Path,
    *,
    model: Path | None = None,
    pairs: Path | None = None,
    min_overlap: float | None = None,
    max_angle: float | None = None,
) -> list[PosedPair]:
    """Pairs with truth.

    The folder is a scene: photos in `images` (or anywhere in it) and a COLMAP model, text or
    binary, in `model`, `sparse`, `sparse/0` or the folder itself. Or its folders are scenes. Or
    `pairs` is a file of SuperGlue's, as those of MegaDepth-1500 and ScanNet-1500, which holds the
    truth itself.

    Args:
        folder: see above.
        model: the folder of the model, if it is elsewhere.
        pairs: names of two photos a line, relative to the photos' folder; or with truth,
            `name0 name1 rot0 rot1 K0 K1 T_0to1` (row by row, 2 + 9 + 9 + 16 numbers; the
            intrinsics are taken for pixel centres at integers, as SuperGlue does). Without it all
            pairs of the photos in the model, less what the next two leave out.
        min_overlap: only pairs of which both see at least this share of the model's points that
            the one with fewer sees.
        max_angle: only pairs whose optical axes differ by at most so many degrees.

    Raises:
        InputError: no such folder, no pairs, or arguments that do not go together.
        FormatError: a model or a file of pairs is broken, or does not belong to the photos.
    """
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}")
    if pairs is not None and (min_overlap is not None or max_angle is not None):
        raise InputError("pairs are given or chosen by overlap and angle, not both")
    if pairs is not None and _holds_truth(pairs):
        if model is not None:
            raise InputError(f"{pairs} holds the truth itself, so a model cannot be given too")
        found = _superglue(pairs, folder)
    else:
        scenes = [_Scene(path, model) for path in _scene_folders(folder, model)]
        if pairs is not None and len(scenes) > 1:
            raise InputError(f"{folder} holds {len(scenes)} scenes; a list of pairs is for one")
        choice = _Choice(pairs, min_overlap, max_angle)
        found = [pair for scene in scenes for pair in scene.pairs(choice)]
    if not found:
        raise InputError(
            f"no pair of photos is left of {pairs or folder}; a scene needs two photos with known "
            "cameras, and limits of overlap and angle that some pair meets"
        )
    return found


def _scene_folders(folder: Path, model: Path | None) -> list[Path]:
    if model is not None or find_model(folder) is not None:
        return [folder]
    scenes = [path for path in sorted(folder.iterdir()) if path.is_dir() and find_model(path)]
    if not scenes:
        raise InputError(
            f"{folder} holds no COLMAP model (cameras and images as .txt or .bin, in the folder or "
            "in model, sparse or sparse/0); give the folder of the model"
        )
    return scenes


@dataclass(frozen=True)
class _Choice:
    """Which pairs: those of a list, or all that meet the limits."""

    file: Path | None
    min_overlap: float | None
    max_angle: float | None


class _Scene:
    """Photos and their COLMAP model."""

    def __init__(self, folder: Path, model: Path | None) -> None:
        self._folder = folder
        self._photos = photos_folder(folder)
        self._path = model or find_model(folder) or folder
        self._model = read_model(self._path)
        self._images: dict[str, pycolmap.Image] = {
            image.name: image for image in self._model.images.values()
        }

    def pairs(self, choice: _Choice) -> list[PosedPair]:
        """The pairs of the scene that are chosen."""
        if choice.file is not None:
            names = read_pairs(choice.file)
        else:
            self._check_complete()
            allowed = self._limits(choice)
            names = [pair for pair in combinations(sorted(self._images), 2) if allowed(*pair)]
        return [self._pair(*pair) for pair in names]

    def _check_complete(self) -> None:
        """All photos of the folder are in the model, which a list of pairs need not ask for."""
        unknown = [
            found.name for found in find_images([self._photos]) if found.name not in self._images
        ]
        if unknown:
            raise FormatError(
                f"the model {self._path} lacks {len(unknown)} photos of {self._photos}, as "
                f"{unknown[0]}; give a list of pairs of those that it has"
            )

    def _limits(self, choice: _Choice) -> Callable[[str, str], bool]:
        seen: dict[str, set[int]] = {}
        if choice.min_overlap is not None:
            seen = {
                name: {p.point3D_id for p in image.get_observation_points2D()}
                for name, image in self._images.items()
            }
            if not any(seen.values()):
                raise InputError(
                    f"the model {self._path} has no points, by which overlap is measured; choose "
                    "pairs by angle or give a list"
                )
        axes = {name: image.viewing_direction() for name, image in self._images.items()}

        def allowed(a: str, b: str) -> bool:
            if choice.max_angle is not None:
                cosine = np.clip(axes[a] @ axes[b], -1, 1)
                if np.degrees(np.arccos(cosine)) > choice.max_angle:
                    return False
            if choice.min_overlap is None:
                return True
            fewer = min(len(seen[a]), len(seen[b]))
            return fewer > 0 and len(seen[a] & seen[b]) >= choice.min_overlap * fewer

        return allowed

    def _pair(self, first: str, second: str) -> PosedPair:
        a, b = (self._image(name) for name in (first, second))
        b_from_a = b.cam_from_world() * a.cam_from_world().inverse()
        return PosedPair(
            group=self._folder.resolve().name,
            photos=(_photo(self._photos, first), _photo(self._photos, second)),
            cameras=(self._model.cameras[a.camera_id], self._model.cameras[b.camera_id]),
            rotation=np.asarray(b_from_a.rotation.matrix(), dtype=np.float64),
            translation=np.asarray(b_from_a.translation, dtype=np.float64),
        )

    def _image(self, name: str) -> pycolmap.Image:
        image: pycolmap.Image | None = self._images.get(name)
        if image is None or not image.has_pose:
            raise FormatError(f"the model {self._path} has no pose of the photo {name}")
        return image


def _photo(folder: Path, name: str) -> Path:
    path = folder / name
    if not path.is_file():
        raise FormatError(f"the ground truth names the photo {name}, which is not in {folder}")
    return path


_NUMBERS = 2 + 9 + 9 + 16


def _holds_truth(path: Path) -> bool:
    """Whether a file of pairs is SuperGlue's: then its first line has numbers after the names."""
    _, words = next(word_lines(path, "pairs"), (0, []))
    return len(words) > 10


def _superglue(path: Path, folder: Path) -> list[PosedPair]:
    pairs = []
    for number, words in word_lines(path, "pairs with truth"):
        try:
            values = np.array(words[2:], dtype=np.float64)
        except ValueError:
            values = np.empty(0)
        if len(values) != _NUMBERS or not np.isfinite(values).all():
            raise FormatError(
                f"{path}, line {number}: two names and {_NUMBERS} numbers are expected, "
                "name0 name1 rot0 rot1 K0 K1 T_0to1"
            )
        if values[:2].any():
            raise FormatError(
                f"{path}, line {number}: asks to turn photos (rot0, rot1), which is not supported; "
                "those of MegaDepth-1500 and ScanNet-1500 are upright"
            )
        try:
            cameras = pinhole(values[2:11].reshape(3, 3)), pinhole(values[11:20].reshape(3, 3))
        except InputError as error:
            raise FormatError(f"{path}, line {number}: {error}") from error
        pose = values[20:].reshape(4, 4)
        _check_rotation(pose[:3, :3], path, number)
        photos = _photo(folder, words[0]), _photo(folder, words[1])
        pairs.append(PosedPair(folder.resolve().name, photos, cameras, pose[:3, :3], pose[:3, 3]))
    return pairs


def _check_rotation(rotation: Array, path: Path, number: int) -> None:
    # ScanNet's poses are good to a few digits.
    wrong = np.abs(rotation @ rotation.T - np.eye(3)).max() > 1e-2 or np.linalg.det(rotation) < 0
    if wrong:
        raise FormatError(f"{path}, line {number}: T_0to1 does not begin with a rotation")
