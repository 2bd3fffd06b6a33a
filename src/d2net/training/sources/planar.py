"""Photos related by a homography: one photo twice, or one view at two times or by two sensors.

The warp is known at every pixel, so both crops may be turned, scaled and seen askew at will (the
random homographies of DeTone, Malisiewicz and Rabinovich, "SuperPoint", CVPRW 2018), while the
light changes as `training/augment.py` makes it, or as it really did.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from d2net.errors import FormatError, InputError
from d2net.geometry import coordinates
from d2net.geometry.coordinates import Size
from d2net.geometry.homography import transfer
from d2net.io.image_lists import find_images, find_photo
from d2net.io.images import limited_size
from d2net.training.correspondences import dense
from d2net.training.sources.base import TrainingPair
from d2net.training.sources.making import Options, Side, make_pair
from d2net.training.sources.reading import stored_size
from d2net.training.views import (
    Array,
    Geometry,
    View,
    as_matrix,
    local_scale,
    random_point,
    random_view,
    widest_scale,
)

PAIRS_FILE, OFFSETS_FILE = "pairs.json", "offsets.json"


@dataclass(frozen=True)
class PhotosOptions(Options):
    """Options of single photos."""

    photometric: float = 1.0
    rotation: float = 30.0
    scale: float = 2.0
    perspective: float = 0.3


@dataclass(frozen=True)
class AlignedOptions(Options):
    """Options of aligned photos, whose light differs already."""

    photometric: float = 0.3
    rotation: float = 30.0
    scale: float = 2.0
    perspective: float = 0.3


@dataclass(frozen=True, eq=False)
class RelatedPhotos:
    """Two photos, the same one twice perhaps, and the homography between them."""

    a: Path
    b: Path
    b_from_a: Array

    def turned_around(self) -> RelatedPhotos:
        """The same pair, the second photo first."""
        return RelatedPhotos(self.b, self.a, _inverse(self.b_from_a))

    def reduced(self, sizes: tuple[Size, Size], max_edge: int) -> tuple[Array, tuple[Size, Size]]:
        """The homography between the photos as they are read, and their sizes."""
        small_a, small_b = (limited_size(size, max_edge, None) for size in sizes)
        to_a = as_matrix(coordinates.resize(small_a, sizes[0]))
        from_b = as_matrix(coordinates.resize(sizes[1], small_b))
        return from_b @ self.b_from_a @ to_a, (small_a, small_b)


class Planar:
    """Training pairs from photos related by homographies."""

    def __init__(
        self, name: str, photos: Sequence[RelatedPhotos], options: Options, crop: int
    ) -> None:
        self.name = name
        self._photos, self._options, self._crop = photos, options, crop

    def __len__(self) -> int:
        """Pairs of photos; either may come first."""
        return len(self._photos)

    def pair(self, index: int, rng: np.random.Generator) -> TrainingPair | None:
        """Two views, of which either may be the warped one."""
        photos = self._photos[index]
        if rng.random() < 0.5:
            photos = photos.turned_around()
        sizes = stored_size(photos.a, upright=True), stored_size(photos.b, upright=True)
        b_from_a, sizes = photos.reduced(sizes, self._options.max_edge)
        views = two_views(b_from_a, sizes, self._crop, self._options.geometry, rng)
        points = dense(*views, partial(transfer, b_from_a))
        a, b = Side(photos.a, views[0]), Side(photos.b, views[1])
        if rng.random() < 0.5:  # else the second crop would always be the distorted one
            a, b, points = b, a, dense(*views[::-1], partial(transfer, _inverse(b_from_a)))
        return make_pair(self.name, a, b, points, self._options, rng)


def _inverse(matrix: Array) -> Array:
    return np.asarray(np.linalg.inv(matrix), dtype=np.float64)


def two_views(
    b_from_a: Array,
    sizes: tuple[Size, Size],
    crop: int,
    geometry: Geometry,
    rng: np.random.Generator,
) -> tuple[View, View]:
    """Views of two photos related by a homography that show about the same part.

    The first is upright and shows a larger or smaller part of its photo, within `geometry.scale`;
    the second departs from it as `geometry` says.
    """
    size_a, size_b = sizes
    smallest = max(widest_scale(size_a, crop), 1 / geometry.scale)
    scale = float(np.exp(rng.uniform(np.log(min(1.0, smallest)), 0)))
    point = _common_point(b_from_a, sizes, rng)
    view_a = random_view(point, size_a, crop, scale, Geometry(), rng)
    middle = view_a.in_photo(np.full((1, 2), (crop - 1) / 2))
    scale_b = scale / local_scale(b_from_a, middle[0]) * geometry.ratio(rng)
    view_b = random_view(transfer(b_from_a, middle)[0], size_b, crop, scale_b, geometry, rng)
    return view_a, view_b


def _common_point(b_from_a: Array, sizes: tuple[Size, Size], rng: np.random.Generator) -> Array:
    """A point of photo a that photo b shows too, unless there are next to none."""
    for _ in range(20):
        point = random_point(sizes[0], rng)
        x, y = transfer(b_from_a, point[None])[0]
        if 0 <= x < sizes[1][0] and 0 <= y < sizes[1][1]:
            break
    return point


def open_photos(folder: Path, options: PhotosOptions, crop: int) -> Planar:
    """Single photos of a folder and of those below it.

    Raises:
        InputError: there are none.
    """
    found = [image.path for image in find_images([folder])]
    if not found:
        raise InputError(f"{folder} holds no photos, which a source of kind photos needs")
    same = np.eye(3)
    return _planar(folder, [RelatedPhotos(path, path, same) for path in found], options, crop)


def open_aligned(folder: Path, options: AlignedOptions, crop: int) -> Planar:
    """Aligned photos of a folder, in one of three layouts.

    - `pairs.json`: a list of {"a", "b", "H_a_to_b"}, names of photos in `images/` or beside the
      file, and the homography in pixels, pixel centres at integers.
    - `offsets.json`: {name: [ox, oy]} of photos of one view in `images/` or beside the file; the
      point (x, y) of photo i lies at (x + oj.x - oi.x, y + oj.y - oi.y) of photo j. Every two are
      a pair. Folders of such views are taken together.
    - two or more subfolders that hold photos of the same names (whatever their extensions), which
      lie on each other exactly.

    Raises:
        InputError: no such folder, or another layout.
        FormatError: a broken file, or one that names photos that are not there.
    """
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}")
    photos = _aligned_photos(folder)
    if not photos:
        raise InputError(
            f"{folder} holds no aligned photos: expected {PAIRS_FILE}, {OFFSETS_FILE} or subfolders"
            " with photos of the same names"
        )
    return _planar(folder, photos, options, crop)


def is_aligned(folder: Path) -> bool:
    """Whether a folder holds aligned photos in a layout that `open_aligned` knows."""
    try:
        return bool(_aligned_photos(folder))
    except FormatError:  # a broken list, or photos that share only their names
        return any((folder / name).is_file() for name in (PAIRS_FILE, OFFSETS_FILE))


def _aligned_photos(folder: Path) -> list[RelatedPhotos]:
    if (folder / PAIRS_FILE).is_file():
        return _listed_pairs(folder)
    views = sorted(path.parent for path in folder.rglob(OFFSETS_FILE))
    if views:
        return [pair for view in views for pair in _pairs_of_view(view)]
    return _same_names(folder)


def _planar(folder: Path, photos: list[RelatedPhotos], options: Options, crop: int) -> Planar:
    return Planar(options.name or folder.resolve().name, photos, options, crop)


def _listed_pairs(folder: Path) -> list[RelatedPhotos]:
    file = folder / PAIRS_FILE
    photos = []
    for number, entry in enumerate(_json(file, list), start=1):
        try:
            a, b = (_photo(file, str(entry[key])) for key in ("a", "b"))
            matrix = np.array(entry["H_a_to_b"], np.float64)
        except (KeyError, TypeError, ValueError) as error:
            raise FormatError(
                f"{file}, pair {number}: a, b and H_a_to_b (3 x 3 numbers) are expected"
            ) from error
        if matrix.shape != (3, 3) or not np.isfinite(matrix).all() or not np.linalg.det(matrix):
            raise FormatError(f"{file}, pair {number}: H_a_to_b is no homography of 3 x 3 numbers")
        photos.append(RelatedPhotos(a, b, matrix))
    return photos


def _pairs_of_view(folder: Path) -> list[RelatedPhotos]:
    file = folder / OFFSETS_FILE
    offsets = []
    for name, offset in _json(file, dict).items():
        try:
            x, y = map(float, offset)
        except (TypeError, ValueError) as error:
            raise FormatError(f"{file}: the offset of {name} is not two numbers") from error
        offsets.append((_photo(file, name), x, y))
    return [
        RelatedPhotos(a, b, np.array([[1, 0, bx - ax], [0, 1, by - ay], [0, 0, 1]]))
        for (a, ax, ay), (b, bx, by) in combinations(offsets, 2)
    ]


def _same_names(folder: Path) -> list[RelatedPhotos]:
    by_name: dict[str, list[Path]] = {}
    for sub in sorted(path for path in folder.iterdir() if path.is_dir()):
        for image in find_images([sub]):
            by_name.setdefault(str(Path(image.name).with_suffix("")), []).append(image.path)
    return [
        RelatedPhotos(a, b, np.eye(3))
        for paths in by_name.values()
        for a, b in combinations(paths, 2)
        if _same_size(a, b)
    ]


def _same_size(a: Path, b: Path) -> bool:
    if stored_size(a, upright=True) != stored_size(b, upright=True):
        raise FormatError(f"{a} and {b} are aligned photos by their names but differ in size")
    return True


def _photo(file: Path, name: str) -> Path:
    photo = find_photo((file.parent / "images", file.parent), name)
    if photo is None:
        raise FormatError(f"{file} names the photo {name}, which is not beside it nor in images/")
    return photo


def _json(file: Path, kind: type[Any]) -> Any:  # noqa: ANN401 (a list or dict of anything)
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FormatError(f"{file} cannot be read as JSON: {error}") from error
    if not isinstance(value, kind):
        raise FormatError(f"{file} holds a {type(value).__name__}, not a {kind.__name__}")
    return value
