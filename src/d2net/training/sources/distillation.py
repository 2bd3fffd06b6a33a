"""Pairs for distillation: two warped crops of a photo, and the teachers' outputs for it.

Either crop may be cut from another photo of the same view instead, such as one at night. The
teachers' keypoints and descriptors stay those of the first photo.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from d2net.errors import InputError
from d2net.geometry import coordinates
from d2net.geometry.coordinates import Array
from d2net.geometry.homography import transfer
from d2net.io.image_lists import find_images
from d2net.networks.light import SCORE_CELL
from d2net.settings import Settings
from d2net.training.augment import augment, remove_detail
from d2net.training.crops import RGB, Warp, as_matrix, crop_from_corners
from d2net.training.settings import DistillationSettings, SourceSettings
from d2net.training.sources.planar import RelatedPhotos, aligned_photos
from d2net.training.sources.reading import read_photo
from d2net.training.teachers import StoredTargets

_MIN_KEYPOINTS = 16  # that both crops show
_MAX_KEYPOINTS = 900  # of a crop
_BORDER = 3.5  # pixels at the border of a crop without points
_SHARES = 0.3, 1.1  # limits of a crop's edge, as a share of the photo's shorter edge
_TURNS, _TURN_SHARES = (20.0, 60.0, 180.0), (0.6, 0.3, 0.1)  # maximum rotations, and how often
_PERSPECTIVE = 0.2
_BLURRED = 0.35  # share of the crops with little detail
_AUGMENTED = 0.85  # share of the crops with photometric augmentation
_AUGMENTATION, _AUGMENTATION_OF_OTHERS = (0.1, 1.0), (0.1, 0.5)  # limits of its strength


@dataclass(frozen=True)
class DistillationSourceOptions(Settings):
    """Options of the sources of a distillation. Patterns are for paths relative to the source."""

    taught: Sequence[str] = ("*",)
    """Patterns of the photos that the teachers see."""

    left_out: Sequence[str] = ()
    """Patterns of photos that are not used."""

    clearest: int = 0
    """Maximum number of photos of a view that the teachers see, the clearest first. 0: all."""


@dataclass(frozen=True, eq=False)
class TeacherPhoto:
    """A photo that the teachers see, and how other photos of its view are related to it."""

    path: Path
    others: list[RelatedPhotos] = field(default_factory=list)


def find_teacher_photos(source: SourceSettings, data: Path) -> list[TeacherPhoto]:
    """The photos of a source that the teachers see."""
    folder, options = data / source.path, DistillationSourceOptions.from_dict(source.options)
    if source.kind not in ("photos", "aligned"):
        raise InputError(
            f"{source.path}: distillation needs the kind photos or aligned, not {source.kind!r}"
        )

    def matches(path: Path, patterns: Sequence[str]) -> bool:
        name = path.relative_to(folder).as_posix()
        return any(fnmatch(name, pattern) for pattern in patterns)

    found: dict[Path, TeacherPhoto] = {}
    if source.kind == "photos":
        found = {image.path: TeacherPhoto(image.path) for image in find_images([folder])}
    elif folder.is_dir():
        for pair in aligned_photos(folder):
            for related in (pair, pair.swapped()):
                photo = found.setdefault(related.a, TeacherPhoto(related.a))
                if not matches(related.b, options.left_out):
                    photo.others.append(related)
    kept = [
        photo
        for path, photo in sorted(found.items())
        if matches(path, options.taught) and not matches(path, options.left_out)
    ]
    if options.clearest:
        kept = _clearest(kept, options.clearest)
    if not kept:
        raise InputError(f"{folder} has no photos of kind {source.kind} for the teachers")
    return kept


def _clearest(photos: Sequence[TeacherPhoto], count: int) -> list[TeacherPhoto]:
    """At most `count` photos of each view."""

    def grey(photo: TeacherPhoto) -> NDArray[np.float32]:
        pixels = cv2.cvtColor(read_photo(photo.path, 640), cv2.COLOR_RGB2GRAY)
        return np.asarray(cv2.GaussianBlur(pixels, (5, 5), 0), np.float32)  # without noise

    def detail(photo: TeacherPhoto) -> float:
        return float(sum(np.abs(np.diff(grey(photo), axis=axis)).mean() for axis in (0, 1)))

    views: dict[Path, list[TeacherPhoto]] = {}
    for photo in photos:
        views.setdefault(min([photo.path, *(r.b for r in photo.others)]), []).append(photo)
    kept = []
    for view in views.values():
        view.sort(key=lambda photo: -float(grey(photo).mean()))
        brighter = view[: (len(view) + 1) // 2]
        kept += sorted(brighter, key=detail, reverse=True)[:count]
    return kept


class StudentPair(NamedTuple):
    """Two crops of one view, and the teachers' output for them; a batch adds a first dimension.

    Positions are (x, y) in pixels of the crops unless said otherwise.

    Attributes:
        images: 2 x E x E x 3 uint8.
        shown: 2 x E/4 x E/4 bool, the cells of the score that lie on the photo.
        points: 2 x P x 2, points that both crops show.
        places: P x 2, the same points in pixels of the photo.
        targets: P x D float16, their descriptors.
        valid: P bool, which of the P points there are.
        keypoints: 2 x K x 2, the keypoints of each crop.
        scores: 2 x K, their target scores; 0 where there is no keypoint.
        rows: 2 x K int64, the keypoint's row in `points`, -1 if the other crop does not show it.
    """

    images: Tensor
    shown: Tensor
    points: Tensor
    places: Tensor
    targets: Tensor
    valid: Tensor
    keypoints: Tensor
    scores: Tensor
    rows: Tensor


def stack(pairs: Sequence[StudentPair]) -> StudentPair:
    """Make a batch of pairs."""
    return StudentPair(*map(torch.stack, zip(*pairs, strict=True)))


class DistillationPairs:
    """A source of pairs for distillation, of kind photos or aligned."""

    def __init__(
        self,
        source: SourceSettings,
        settings: DistillationSettings,
        data: Path,
        targets: StoredTargets,
    ) -> None:
        self.name = source.path
        self._settings, self._targets = settings, targets
        self._photos = find_teacher_photos(source, data)

    def __len__(self) -> int:
        return len(self._photos)

    def pair(self, index: int, rng: np.random.Generator) -> StudentPair | None:
        """See `PairSource.pair`; None if both crops show fewer than 16 keypoints."""
        s, entry = self._settings, self._photos[index]
        targets, photo = self._targets.read(entry.path), read_photo(entry.path, s.photo_edge)
        centre = rng.uniform(0.3, 0.7, 2) * (photo.shape[1], photo.shape[0])
        crops = [self._crop(entry.others, photo, centre, rng) for _ in range(2)]
        places = [transfer(matrix, targets.positions.astype(np.float64)) for _, matrix, _ in crops]
        visible = [((p > _BORDER) & (p < s.crop - 1 - _BORDER)).all(axis=1) for p in places]
        is_keypoint = targets.scores > 0
        both = np.flatnonzero(visible[0] & visible[1])
        if is_keypoint[both].sum() < _MIN_KEYPOINTS:
            return None
        order = rng.random(len(both)) - 0.5 * is_keypoint[both]  # keypoints more often than others
        both = both[np.argsort(order)[: s.points]]
        rows = np.full(len(is_keypoint), -1)
        rows[both] = np.arange(len(both))
        of_crops = [np.flatnonzero(v & is_keypoint)[:_MAX_KEYPOINTS] for v in visible]
        scores = np.sqrt(targets.scores)
        return StudentPair(
            images=torch.from_numpy(np.stack([image for image, _, _ in crops])),
            shown=torch.from_numpy(np.stack([shown for _, _, shown in crops])),
            points=torch.stack([_padded(p[both], s.points) for p in places]).float(),
            places=_padded(targets.positions[both], s.points),
            targets=_padded(targets.descriptors[both], s.points),
            valid=torch.arange(s.points) < len(both),
            keypoints=torch.stack(
                [_padded(p[k], _MAX_KEYPOINTS) for p, k in zip(places, of_crops, strict=True)]
            ).float(),
            scores=torch.stack([_padded(scores[k], _MAX_KEYPOINTS) for k in of_crops]),
            rows=torch.stack([_padded(rows[k], _MAX_KEYPOINTS, -1) for k in of_crops]),
        )

    def _crop(
        self, others: list[RelatedPhotos], photo: RGB, centre: Array, rng: np.random.Generator
    ) -> tuple[RGB, Array, NDArray[np.bool_]]:
        """A crop, crop_from_photo, and the cells of the score that lie on the photo."""
        s, size = self._settings, min(photo.shape[:2])
        image, strength = photo, _AUGMENTATION
        photo_from_image: Array = np.eye(3)
        if others and rng.random() < s.other_photo:
            other = others[int(rng.integers(len(others)))]
            image = read_photo(other.b, s.photo_edge)
            photo_from_image = np.asarray(np.linalg.inv(other.reduced(s.photo_edge)[0]))
            strength = _AUGMENTATION_OF_OTHERS
        edge = size * float(np.exp(rng.uniform(*np.log(_SHARES))))
        shift = rng.uniform(-0.15, 0.15, 2) * size
        warp = Warp(rotation=float(rng.choice(_TURNS, p=_TURN_SHARES)), perspective=_PERSPECTIVE)
        matrix = crop_from_corners(warp.random_corners(edge, rng) + centre + shift, s.crop)
        crop = cv2.warpPerspective(
            image,
            matrix @ photo_from_image,
            (s.crop, s.crop),
            flags=cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_REFLECT_101,
        )
        cells = s.crop // SCORE_CELL
        cells_from_crop = as_matrix(coordinates.resize((s.crop, s.crop), (cells, cells)))
        everywhere = np.ones(photo.shape[:2], np.uint8)
        shown = cv2.warpPerspective(
            everywhere, cells_from_crop @ matrix, (cells, cells), flags=cv2.INTER_NEAREST
        )
        if rng.random() < _BLURRED:
            crop = remove_detail(np.asarray(crop, np.uint8), rng)
        if rng.random() < _AUGMENTED:
            crop = augment(np.asarray(crop, np.uint8), rng.uniform(*strength), rng)
        return np.asarray(crop, np.uint8), matrix, np.asarray(shown > 0, np.bool_)


def _padded(array: NDArray[np.generic], length: int, value: float = 0) -> Tensor:
    """The array with rows of `value` appended, up to a length."""
    padded = np.full((length, *array.shape[1:]), value, array.dtype)
    padded[: len(array)] = array
    return torch.from_numpy(padded)
