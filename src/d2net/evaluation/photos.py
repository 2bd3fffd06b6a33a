"""Photos that a protocol matches many pairs of: their features and matches, made once and kept.

Matches are kept beside the source's features, by the photos' content and all settings, so that a
run that was stopped goes on and a second one is quick.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from d2net.evaluation.cache import CachedFeatures
from d2net.features import Features, Matches
from d2net.io.h5 import MatchFile, MatchWriter
from d2net.io.pairs import Pair
from d2net.matching import match

_PHOTOS_KEPT = 8
"""Photos whose features stay in memory: pairs usually come sorted by their first photo."""


class Photos:
    """Features of the photos below a folder, by name, and the matches of pairs of them.

    Photos that are not below it have their files in `elsewhere`.
    """

    def __init__(
        self,
        source: CachedFeatures,
        folder: Path,
        max_keypoints: int | None,
        device: str,
        elsewhere: Mapping[str, Path] | None = None,
    ) -> None:
        self._source = source
        self._folder = folder
        self._max_keypoints = max_keypoints
        self._settings = {"folder": str(folder.resolve()), "max_keypoints": max_keypoints}
        self._device = device
        self._elsewhere = elsewhere or {}
        self.features = lru_cache(maxsize=_PHOTOS_KEPT)(self._features)
        self.key = cache(self._key)

    def _features(self, name: str) -> Features:
        return self._source.features(self.path(name), name).best(self._max_keypoints)

    def _key(self, name: str) -> str:
        """Name and content, for the file of matches: a changed photo is matched anew."""
        return f"{name}/{self._source.key(self.path(name), name)[:16]}"

    def path(self, name: str) -> Path:
        """The file of a photo."""
        return self._elsewhere.get(name) or self._folder / name

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


def countdown(steps: int, report: Callable[[str, int], None] | None) -> Callable[[str], None]:
    """To be called with its name after each of some steps; reports that and how many are left."""
    left = iter(range(steps - 1, -1, -1))

    def advance(name: str) -> None:
        if report is not None:
            report(name, next(left))

    return advance
