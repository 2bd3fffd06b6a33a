"""What queries are placed in: keypoints of the map's photos, and where they are in the world.

Matches and maps are kept beside the source's features, by the photos' content and all settings, so
that a run that was stopped goes on and a second one is quick.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from d2net.errors import D2NetError
from d2net.evaluation.cache import CachedFeatures
from d2net.evaluation.localization_data import check_size
from d2net.features import Features, Matches
from d2net.formats.atomic import locked, new_folder
from d2net.formats.h5 import MatchFile, MatchWriter
from d2net.formats.models import read_model
from d2net.formats.pairs import Pair
from d2net.mapping.triangulate import triangulate
from d2net.matching import match

if TYPE_CHECKING:
    import pycolmap

Array = NDArray[np.float64]

_PHOTOS_KEPT = 8
"""Photos whose features stay in memory: pairs usually come sorted by their first photo."""

_PLACES_KEPT = 2000
"""Photos of the map whose keypoints' places stay in memory (some 100 KB each)."""


class Photos:
    """Features of the photos below a folder, by name, and the matches of pairs of them."""

    def __init__(
        self, source: CachedFeatures, folder: Path, max_keypoints: int | None, device: str
    ) -> None:
        self._source = source
        self._folder = folder
        self._max_keypoints = max_keypoints
        self._settings = {"folder": str(folder.resolve()), "max_keypoints": max_keypoints}
        self._device = device
        self.features = lru_cache(maxsize=_PHOTOS_KEPT)(self._features)
        self.key = cache(self._key)

    def _features(self, name: str) -> Features:
        return self._source.features(self._folder / name, name).best(self._max_keypoints)

    def _key(self, name: str) -> str:
        """Name and content, for the file of matches: a changed photo is matched anew."""
        return f"{name}/{self._source.key(self._folder / name, name)[:16]}"

    def kept(self, what: str, settings: Any) -> Path:  # noqa: ANN401 (anything JSON has)
        """Where something that is made from these photos and the settings is kept."""
        text = json.dumps([self._settings, settings], sort_keys=True)
        self._source.folder.mkdir(parents=True, exist_ok=True)
        return self._source.folder / f"{what}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"

    def unmatched(self, pairs: Iterable[Pair]) -> list[Pair]:
        """The pairs that no earlier run has matched, once each."""
        with self._writer() as writer:
            done = {frozenset(pair) for pair in writer.done()}
        wanted = {frozenset((self.key(a), self.key(b))): (a, b) for a, b in pairs}
        return [pair for keys, pair in wanted.items() if keys not in done]

    def match(self, pairs: Iterable[Pair], advance: Callable[[str], None]) -> None:
        """Match pairs by mutual nearest neighbours; safe to kill."""
        with self._writer() as writer:
            for first, second in pairs:
                a, b = self.features(first), self.features(second)
                found = match(a.to(self._device), b.to(self._device))
                writer.add(self.key(first), self.key(second), found, len(a))
                advance(f"{first} {second}")

    @contextmanager
    def matches(self) -> Iterator[Callable[[str, str], Matches]]:
        """The matches of two photos, by name, of pairs that have been matched."""
        with MatchFile(self._matches_path) as file:
            yield lambda first, second: file.get(self.key(first), self.key(second))

    @property
    def _matches_path(self) -> Path:
        path = self.kept("matches", None)
        return path.with_name(path.name + ".h5")

    def _writer(self) -> MatchWriter:
        return MatchWriter(self._matches_path, self._settings)


def build_map(
    model: pycolmap.Reconstruction, photos: Photos, pairs: Sequence[Pair], max_error: float
) -> Callable[[str], Array]:
    """Triangulate a map's photos from their matches, or read what an earlier run made.

    Args:
        model: the photos' poses and cameras.
        photos: their features and matches.
        pairs: that are used, all matched.
        max_error: see `mapping.triangulate.triangulate`.

    Returns:
        Where a photo's keypoints are: name to N x 3, not a number where nothing is known.

    Raises:
        FormatError: a photo is not of its camera's size.
    """
    cameras = {image.name: model.cameras[image.camera_id] for image in model.images.values()}
    settings = {
        "photos": [
            [photos.key(image.name), *_known(image, cameras[image.name])]
            for image in model.images.values()
        ],
        "pairs": pairs,
        "max_error": max_error,
    }
    path = photos.kept("map", settings)
    built = _read(path)
    if built is None:
        keypoints = {}
        for name, camera in cameras.items():
            features = photos.features(name)
            check_size(name, features.image_size, camera)
            keypoints[name] = features.keypoints.numpy()
        with photos.matches() as matches:
            built = triangulate(
                model,
                keypoints,
                ((a, b, matches(a, b).indices.numpy()) for a, b in pairs),
                max_error=max_error,
            )
        with locked(path), new_folder(path) as folder:
            built.write_binary(folder)
    names = {image.name: image for image in built.images.values()}

    @lru_cache(maxsize=_PLACES_KEPT)
    def places(name: str) -> Array:
        points = names[name].points2D
        found = np.full((len(points), 3), np.nan)
        for row, point in enumerate(points):
            if point.has_point3D():
                found[row] = built.points3D[point.point3D_id].xyz
        return found

    return places


def _known(image: pycolmap.Image, camera: pycolmap.Camera) -> list[Any]:
    """A photo's pose and camera, as JSON."""
    return [image.cam_from_world().matrix().tolist(), camera.model_name, camera.params.tolist()]


def _read(path: Path) -> pycolmap.Reconstruction | None:
    """A map that was kept; a damaged one is made anew."""
    if not path.exists():
        return None
    try:
        return read_model(path)
    except D2NetError:
        shutil.rmtree(path)
        return None
