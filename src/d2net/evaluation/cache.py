"""Features, matches and maps of evaluated photos, computed once and kept.

The names of files and folders contain fingerprints of everything that the content depends on. So a
run that was stopped goes on where it was, and a second one is quick.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from d2net.errors import D2NetError, ImageError
from d2net.evaluation.sources import FeatureSource, FileSource
from d2net.features import Features, Matches
from d2net.io.atomic import new_folder
from d2net.io.colmap_model import read_model
from d2net.io.h5 import FeatureFile, FeatureWriter, MatchFile, MatchWriter
from d2net.io.pairs import Pair
from d2net.io.resume import file_state, fingerprint
from d2net.matching import match
from d2net.matching.matchers import matcher_id
from d2net.networks.catalogue import cache_folder

if TYPE_CHECKING:
    import pycolmap

_ENTRY = "photo"
_RECORD = "made.json"
_PHOTOS_IN_MEMORY = 8
"""Photos whose features stay in memory: pairs usually come sorted by their first photo."""


class CachedFeatures:
    """A source whose features are kept on disk.

    Args:
        source: extracts features.
        folder: default: `features` below the package's cache folder (`D2NET_CACHE`).
        max_keypoints: use the keypoints with the highest scores; None for all.
        device: where descriptors are compared.
        matcher: see `match`.

    Attributes:
        folder: for the source's features.
        matches_folder: for everything that is computed from matches.
    """

    def __init__(
        self,
        source: FeatureSource,
        folder: str | os.PathLike[str] | None = None,
        *,
        max_keypoints: int | None = None,
        device: str = "cpu",
        matcher: str = "nearest",
    ) -> None:
        self.name = source.name
        self.provenance = source.provenance()
        self.max_keypoints = max_keypoints
        self._source = source
        self._device = device
        root = cache_folder() / "features" if folder is None else Path(folder)
        self.folder = root / fingerprint(self.provenance)
        self.matches_folder = self.folder
        self._matcher = matcher
        if matcher != "nearest":
            self.provenance = {**self.provenance, "matcher": matcher_id(matcher)}
            self.name = f"{self.name} + {self.provenance['matcher']}"
            self.matches_folder = self.folder / fingerprint(self.provenance)

    def features(self, photo: Path, name: str) -> Features:
        """Features of a photo, from the cache if they are there; a damaged entry is replaced.

        Args:
            photo: the file.
            name: its path relative to the evaluated folder.

        Raises:
            ImageError: the photo cannot be read.
        """
        return self._all_features(photo, name).best(self.max_keypoints)

    def _all_features(self, photo: Path, name: str) -> Features:
        if isinstance(self._source, FileSource):
            return self._source.extract(photo, name)
        path = self.folder / f"{self.key(photo, name)}.h5"
        if path.exists():
            try:
                with FeatureFile(path) as file:
                    return file[_ENTRY]
            except D2NetError:
                path.unlink()
        features = self._source.extract(photo, name)
        self.folder.mkdir(parents=True, exist_ok=True)
        with FeatureWriter(path, self.provenance) as writer:
            writer.add(_ENTRY, features)
        return features

    def key(self, photo: Path, name: str) -> str:
        """A digest that changes whenever the features of the photo may change."""
        if isinstance(self._source, FileSource):
            return fingerprint([name, file_state(self._source.path)])
        try:
            return hashlib.sha256(photo.read_bytes()).hexdigest()[:32]
        except OSError as error:
            raise ImageError(f"cannot read the photo {photo}: {error.strerror}") from error

    def match(self, a: Features, b: Features) -> Matches:
        """Match the features of two photos."""
        return match(a.to(self._device), b.to(self._device), matcher=self._matcher)


class CachedMatches:
    """Features of the photos in a folder, and matches of pairs of them, by the photos' names.

    Args:
        source: features.
        folder: names are relative to it.
        elsewhere: files of photos that are not in the folder, by name.
    """

    def __init__(
        self, source: CachedFeatures, folder: Path, elsewhere: Mapping[str, Path] | None = None
    ) -> None:
        self._source = source
        self._folder = folder
        self._elsewhere = elsewhere or {}
        self._settings = {"folder": str(folder.resolve()), "max_keypoints": source.max_keypoints}
        self._path = self.cache_path("matches.h5")
        self.features = lru_cache(maxsize=_PHOTOS_IN_MEMORY)(self._features)
        self.key = cache(self._key)

    def path(self, name: str) -> Path:
        """The file of a photo."""
        return self._elsewhere.get(name) or self._folder / name

    def _features(self, name: str) -> Features:
        return self._source.features(self.path(name), name)

    def _key(self, name: str) -> str:
        """Name and content of a photo: a changed photo is matched again."""
        return f"{name}/{self._source.key(self.path(name), name)[:16]}"

    def cache_path(self, name: str, settings: object = None) -> Path:
        """Where something that depends on these photos and on some settings is kept."""
        self._source.matches_folder.mkdir(parents=True, exist_ok=True)
        return self._source.matches_folder / f"{fingerprint([self._settings, settings])}-{name}"

    def match(self, pairs: Iterable[Pair], progress: Callable[[int, int], None]) -> None:
        """Match the pairs that no earlier run has matched, once each; safe to kill.

        Args:
            pairs: names of photos.
            progress: called with the number of pairs done and in all.
        """
        with MatchWriter(self._path, self._settings) as writer:
            done = {frozenset(pair) for pair in writer.done()}
            by_keys = {frozenset((self.key(a), self.key(b))): (a, b) for a, b in pairs}
            unmatched = [pair for keys, pair in by_keys.items() if keys not in done]
            for number, (first, second) in enumerate(unmatched):
                progress(number, len(unmatched))
                a, b = self.features(first), self.features(second)
                matches = self._source.match(a, b)
                writer.add(self.key(first), self.key(second), matches, len(a))
            progress(len(unmatched), len(unmatched))

    @contextmanager
    def open(self) -> Iterator[Callable[[str, str], Matches]]:
        """Look up the matches of two photos that have been matched, by their names."""
        with MatchFile(self._path) as file:
            yield lambda first, second: file.get(self.key(first), self.key(second))


@dataclass(frozen=True)
class CachedModel:
    """A COLMAP model, None where none could be computed, and the seconds that it took."""

    model: pycolmap.Reconstruction | None
    seconds: float


def cached_model(path: Path, compute: Callable[[], pycolmap.Reconstruction | None]) -> CachedModel:
    """Read the model kept at `path`, or compute and keep it; a damaged one is replaced."""
    if path.exists():
        try:
            record = json.loads((path / _RECORD).read_text(encoding="utf-8"))
            model = read_model(path) if record["model"] else None
            return CachedModel(model, float(record["seconds"]))
        except (D2NetError, OSError, ValueError, KeyError, TypeError):
            shutil.rmtree(path)
    start = time.perf_counter()
    model = compute()
    seconds = time.perf_counter() - start
    with new_folder(path) as folder:
        record = {"model": model is not None, "seconds": seconds}
        (folder / _RECORD).write_text(json.dumps(record), encoding="utf-8")
        if model is not None:
            model.write_binary(folder)
    return CachedModel(model, seconds)
