"""Photos related by a homography: one photo twice, or one view at two times or by two sensors.

The warp is known at every pixel, so both crops may be warped at will (random homographies as in
DeTone, Malisiewicz and Rabinovich, "SuperPoint", CVPRW 2018). The light changes by augmentation
(`training/augment.py`), or the photos were taken in different light.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from d2net.errors import FormatError, InputError
from d2net.geometry import coordinates
from d2net.geometry.coordinates import Array, Size
from d2net.geometry.homography import transfer
from d2net.io.image_lists import find_images, named_photo
from d2net.io.images import limited_size
from d2net.training.correspondences import dense_correspondences
from d2net.training.crops import Crop, Warp, as_matrix, local_scale, random_crop
from d2net.training.sources.base import PhotoCrop, SourceOptions, TrainingPair, make_pair
from d2net.training.sources.reading import size_of

PAIRS_FILE, OFFSETS_FILE = "pairs.json", "offsets.json"

_MAX_CONDITION = 1e15  # of a homography; others cannot be inverted
_POINT_ATTEMPTS = 20  # random points that are tried before one outside photo b is accepted


@dataclass(frozen=True)
class PhotosOptions(SourceOptions):
    """Options of single photos."""

    photometric: float = 1.0
    rotation: float = 30.0
    scale: float = 2.0
    perspective: float = 0.3


@dataclass(frozen=True)
class AlignedOptions(PhotosOptions):
    """Options of aligned photos, whose light differs already."""

    photometric: float = 0.3


class RelatedPhotos(NamedTuple):
    """Two photos, possibly the same one, and the homography between them in their pixels."""

    a: Path
    b: Path
    b_from_a: Array

    def swapped(self) -> RelatedPhotos:
        """The same pair, the second photo first."""
        return RelatedPhotos(self.b, self.a, _inverse(self.b_from_a))

    def reduced(self, max_edge: int) -> tuple[Array, Size, Size]:
        """The homography between the photos as they are read, and their sizes (width, height)."""
        sizes = [size_of(path, upright=True) for path in (self.a, self.b)]
        small_a, small_b = (limited_size(size, max_edge, None) for size in sizes)
        a_from_small = as_matrix(coordinates.resize(small_a, sizes[0]))
        small_from_b = as_matrix(coordinates.resize(sizes[1], small_b))
        return small_from_b @ self.b_from_a @ a_from_small, small_a, small_b


class PlanarPairs:
    """A source of training pairs from photos related by homographies."""

    def __init__(
        self, name: str, photos: Sequence[RelatedPhotos], options: SourceOptions, crop: int
    ) -> None:
        self.name = name
        self._photos, self._options, self._crop = photos, options, crop

    def __len__(self) -> int:
        return len(self._photos)

    def pair(self, index: int, rng: np.random.Generator) -> TrainingPair | None:
        """Make two crops, either of which may be the warped one; see `Source.pair`."""
        photos, options = self._photos[index], self._options
        if rng.random() < 0.5:
            photos = photos.swapped()
        b_from_a, size_a, size_b = photos.reduced(options.max_edge)
        crop_a, crop_b = random_crops(b_from_a, size_a, size_b, self._crop, options, rng)
        a, b = PhotoCrop(photos.a, crop_a), PhotoCrop(photos.b, crop_b)
        if rng.random() < 0.5:  # otherwise the second crop would always be the warped one
            a, b, b_from_a = b, a, _inverse(b_from_a)
        points = dense_correspondences(a.crop, b.crop, partial(transfer, b_from_a))
        return make_pair(self.name, a, b, points, options, rng)


def _inverse(matrix: Array) -> Array:
    return np.asarray(np.linalg.inv(matrix), dtype=np.float64)


def random_crops(
    b_from_a: Array, size_a: Size, size_b: Size, edge: int, warp: Warp, rng: np.random.Generator
) -> tuple[Crop, Crop]:
    """Crops of two photos that show about the same part of the scene.

    The first crop is upright and covers a random share of its photo, up to the shorter side or
    `warp.scale` times its own edge. The second is warped against it within the limits of `warp`.
    """
    smallest = max(edge / min(size_a), 1 / warp.scale)
    scale = float(np.exp(rng.uniform(np.log(min(1.0, smallest)), 0)))
    for _ in range(_POINT_ATTEMPTS):
        point = rng.uniform((-0.5, -0.5), np.array(size_a) - 0.5)
        x, y = transfer(b_from_a, point[None])[0]
        if 0 <= x < size_b[0] and 0 <= y < size_b[1]:
            break
    crop_a = random_crop(point, size_a, edge, scale, Warp(), rng)
    centre = crop_a.to_photo(np.full((1, 2), (edge - 1) / 2))
    scale_b = scale / local_scale(b_from_a, centre[0]) * warp.random_ratio(rng)
    return crop_a, random_crop(transfer(b_from_a, centre)[0], size_b, edge, scale_b, warp, rng)


def open_photos(folder: Path, options: PhotosOptions, crop: int) -> PlanarPairs:
    """Open the photos of a folder and its subfolders, each one a pair with itself."""
    photos = [RelatedPhotos(found.path, found.path, np.eye(3)) for found in find_images([folder])]
    if not photos:
        raise InputError(f"{folder} holds no photos, which a source of kind photos needs")
    return PlanarPairs(folder.resolve().name, photos, options, crop)


def open_aligned(folder: Path, options: AlignedOptions, crop: int) -> PlanarPairs:
    """Open a folder of aligned photos in one of three layouts.

    - `pairs.json`: a list of {"a", "b", "H_a_to_b"}: names of photos in `images/` or beside the
      file, and the homography in pixels, pixel centres at integers.
    - `offsets.json`: {name: [ox, oy]} of photos of one view in `images/` or beside the file. The
      point (x, y) of photo i lies at (x + oj.x - oi.x, y + oj.y - oi.y) of photo j. All pairs of
      photos are used, also the pairs of all such views below the folder.
    - two or more subfolders of aligned photos with the same names (extensions may differ).
    """
    photos = aligned_photos(folder) if folder.is_dir() else []
    if not photos:
        raise InputError(
            f"{folder} is not a folder of aligned photos: expected {PAIRS_FILE}, {OFFSETS_FILE} or "
            "subfolders with photos of the same names"
        )
    return PlanarPairs(folder.resolve().name, photos, options, crop)


def is_aligned(folder: Path) -> bool:
    """Whether a folder holds aligned photos in a layout that `open_aligned` knows."""
    try:
        return bool(aligned_photos(folder))
    except FormatError:  # a broken list, or unrelated photos that share their names
        return has_list(folder)


def has_list(folder: Path) -> bool:
    """Whether a list, and not only equal names, says which photos are aligned."""
    return (folder / PAIRS_FILE).is_file() or any(folder.rglob(OFFSETS_FILE))


def aligned_photos(folder: Path) -> list[RelatedPhotos]:
    """The pairs of a folder of aligned photos; none if it has none of the layouts."""
    pairs = []
    file = folder / PAIRS_FILE
    if file.is_file():
        folders = [folder / "images", folder]
        for number, entry in enumerate(_read_json(file, list), start=1):
            try:
                a, b = (named_photo(folders, str(entry[key]), file) for key in ("a", "b"))
                matrix = np.array(entry["H_a_to_b"], np.float64).reshape(3, 3)
                if not np.linalg.cond(matrix) < _MAX_CONDITION:
                    raise ValueError  # noqa: TRY301
            except (KeyError, TypeError, ValueError, np.linalg.LinAlgError) as error:
                raise FormatError(
                    f"{file}, pair {number}: expected a, b and an invertible 3 x 3 H_a_to_b"
                ) from error
            pairs.append(RelatedPhotos(a, b, matrix))
        return pairs
    views = sorted(folder.rglob(OFFSETS_FILE))
    for file in views:
        offsets: list[tuple[Path, float, float]] = []
        folders = [file.parent / "images", file.parent]
        for name, offset in _read_json(file, dict).items():
            try:
                x, y = np.asarray_chkfinite(offset, np.float64)
            except (TypeError, ValueError) as error:
                raise FormatError(f"{file}: the offset of {name} is not two numbers") from error
            offsets.append((named_photo(folders, name, file), x, y))
        for (a, ax, ay), (b, bx, by) in combinations(offsets, 2):
            shift = np.array([[1, 0, bx - ax], [0, 1, by - ay], [0, 0, 1]])
            pairs.append(RelatedPhotos(a, b, shift))
    if views:
        return pairs
    by_name: dict[str, list[Path]] = {}
    for subfolder in sorted(path for path in folder.iterdir() if path.is_dir()):
        for image in find_images([subfolder]):
            by_name.setdefault(str(Path(image.name).with_suffix("")), []).append(image.path)
    for a, b in (pair for paths in by_name.values() for pair in combinations(paths, 2)):
        if size_of(a, upright=True) != size_of(b, upright=True):
            raise FormatError(
                f"{a} and {b} have the same name but differ in size, so they are not aligned"
            )
        pairs.append(RelatedPhotos(a, b, np.eye(3)))
    return pairs


def _read_json(file: Path, kind: type) -> Any:  # noqa: ANN401 (a list or dict of anything)
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FormatError(f"{file} cannot be read as JSON: {error}") from error
    if not isinstance(content, kind):
        brackets = "[...]" if kind is list else "{...}"
        raise FormatError(f"{file} must contain {brackets}, not {json.dumps(content)[:60]}")
    return content
