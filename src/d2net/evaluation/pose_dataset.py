"""Pairs of photos with known cameras: from COLMAP models and from SuperGlue's pair files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from d2net.errors import FormatError, InputError
from d2net.evaluation.pair_protocol import PhotoPair
from d2net.geometry.cameras import pinhole
from d2net.geometry.coordinates import Array
from d2net.io.colmap_model import find_model, read_model
from d2net.io.image_lists import named_photo, photos_folder
from d2net.io.pair_lists import read_pairs
from d2net.io.text_lists import as_known, finite_numbers, read_lines

if TYPE_CHECKING:
    import pycolmap

_NUMBERS = 2 + 9 + 9 + 16  # in a line of SuperGlue's files: rot0 rot1, K0, K1, T_0to1


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


def find_pairs(
    folder: Path, model: Path | None = None, pairs: Path | None = None
) -> list[PosedPair]:
    """Pairs with ground truth in a scene, or in a folder of scenes.

    Photos are in `images` or anywhere in the scene. `model` is a COLMAP model of the true cameras;
    None for the one that `find_model` finds. The file `pairs` has two names a line, relative to the
    folder of photos; None for all pairs. A file in SuperGlue's format (MegaDepth-1500,
    ScanNet-1500) holds the ground truth itself: `name0 name1 rot0 rot1 K0 K1 T_0to1`, matrices row
    by row, pixel centres at integers.
    """
    if pairs is not None and pairs.is_fifo():
        raise InputError(f"{pairs} is a pipe, which cannot be read twice: save the pairs in a file")
    # SuperGlue's lines have numbers after the names.
    _, first_line = next(read_lines(pairs, "pairs"), (0, "")) if pairs else (0, "")
    if pairs is not None and len(first_line.split()) > 10:
        posed_pairs = _read_superglue(pairs, folder)
    else:
        scenes = [folder]
        if model is None and find_model(folder) is None:
            scenes = [p for p in sorted(folder.iterdir()) if p.is_dir() and find_model(p)]
        if not scenes:
            raise InputError(
                f"{folder} holds no COLMAP model (cameras and images as .txt or .bin, in the "
                "folder or in model, sparse or sparse/0); give the folder of the model"
            )
        if pairs is not None and len(scenes) > 1:
            raise InputError(f"{folder} holds {len(scenes)} scenes; a list of pairs is for one")
        posed_pairs = [pair for scene in scenes for pair in _pairs_of(scene, model, pairs)]
    if not posed_pairs:
        raise InputError(f"{pairs or folder} holds no pair of photos with known cameras")
    for pair in posed_pairs:
        if pair.photos[0] == pair.photos[1]:
            raise FormatError(f"{pairs} pairs {pair.photos[0]} with itself; remove that line")
    return posed_pairs


def _pairs_of(scene: Path, model: Path | None, pair_list: Path | None) -> Iterator[PosedPair]:
    path, photos = model or find_model(scene) or scene, photos_folder(scene)
    known = read_model(path)
    images = {image.name: image for image in known.images.values() if image.has_pose}
    for listed in read_pairs(pair_list) if pair_list else combinations(sorted(images), 2):
        pair = [as_known(name, images) for name in listed]
        for name in pair:
            if name not in images:
                raise FormatError(f"the model {path} has no pose of the photo {name}")
        a, b = (images[name] for name in pair)
        b_from_a = b.cam_from_world() * a.cam_from_world().inverse()
        yield PosedPair(
            group=scene.resolve().name,
            photos=(named_photo([photos], a.name, path), named_photo([photos], b.name, path)),
            cameras=(known.cameras[a.camera_id], known.cameras[b.camera_id]),
            rotation=np.asarray(b_from_a.rotation.matrix(), dtype=np.float64),
            translation=np.asarray(b_from_a.translation, dtype=np.float64),
        )


def _read_superglue(path: Path, folder: Path) -> list[PosedPair]:
    pairs = []
    known: dict[tuple[Path, Path], Array] = {}
    for number, line in read_lines(path, "pairs with poses"):
        words, where = line.split(), f"{path}, line {number}"
        values = finite_numbers(words[2:], _NUMBERS)
        if values is None:
            raise FormatError(
                f"{where}: needs 2 names and {_NUMBERS} numbers: name0 name1 rot0 rot1 K0 K1 T_0to1"
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
        a, b = (named_photo([folder], name, path) for name in words[:2])
        if (known.setdefault((a, b), values) != values).any():
            raise FormatError(f"{where}: the pair {words[0]} {words[1]} repeats with other numbers")
        pairs.append(PosedPair(folder.resolve().name, (a, b), cameras, rotation, pose[:3, 3]))
    return pairs
