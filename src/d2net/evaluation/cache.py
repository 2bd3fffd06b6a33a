"""Features and matches of evaluated photos, kept for later runs."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from functools import lru_cache
from pathlib import Path

from d2net.errors import InputError
from d2net.evaluation.feature_sources import FeatureSource
from d2net.features import Matches
from d2net.io.exif import photo_size
from d2net.io.h5 import FeatureFile, FeatureWriter, MatchFile
from d2net.io.pair_lists import Pair
from d2net.io.resume import are_unchanged, fingerprint, record_files
from d2net.matching import matcher_id
from d2net.matching.match_pairs import match_pairs
from d2net.networks.catalogue import cache_folder
from d2net.progress import Progress


class CachedSource:
    """An evaluated source of features, how they are matched, and where they are kept.

    The default of `folder` is `features` in the cache folder (`D2NET_CACHE`). At most
    `max_keypoints` of a photo are kept, the best by score; None: all. Descriptors are compared on
    `device`. See `match` for `matcher`.
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
        self.provenance = {**source.provenance, "best_keypoints": max_keypoints}
        self.source = source
        self.folder = cache_folder() / "features" if folder is None else Path(folder)
        self.max_keypoints = max_keypoints
        self.device = device
        self.matcher = matcher
        if matcher != "nearest":
            self.provenance["matcher"] = matcher_id(matcher)
            self.name = f"{self.name} + {self.provenance['matcher'].partition(' ')[0]}"

    def described(self, folder: Path) -> tuple[str, str, Mapping[str, object]]:
        """`method`, `folder` and `provenance` of a `Result` on the photos of a folder."""
        return self.name, str(folder), self.provenance


class CachedPhotos(ExitStack):
    """Features and matches of photos by their names; a context manager.

    Photos and pairs that an earlier run has finished are read from its files.

    Attributes:
        path: the folder with `features.h5` and `matches.h5`, named as in a `MapFolder`.
    """

    def __init__(
        self,
        source: CachedSource,
        folder: Path,
        photos: Mapping[str, Path],
        progress: Progress,
        prefix: str = "",
    ) -> None:
        """Extract the photos; `prefix` comes before their names in a features file."""
        super().__init__()
        self._source = source
        self.path = source.folder / fingerprint([source.provenance, str(folder.resolve())])
        self.path.mkdir(parents=True, exist_ok=True)
        features_path = self.path / "features.h5"
        with FeatureWriter(features_path, source.provenance) as writer:
            for done, (name, photo) in enumerate(photos.items()):
                progress("extracting", done, len(photos))
                if not are_unchanged(writer.inputs(name), photo):
                    inputs = record_files(photo)
                    found = source.source.extract(photo, prefix + name)
                    size, given = photo_size(photo), found.image_size
                    if size and {*size} != {*given}:  # however the photo is rotated
                        raise InputError(
                            f"{photo} has {size[0]} x {size[1]} pixels, but the image_size of its "
                            f"features is {given[0]} x {given[1]}; they must be the same"
                        )
                    writer.add(name, found.best(source.max_keypoints), inputs)
        self._features = self.enter_context(FeatureFile(features_path))
        # Pairs usually come sorted by their first photo.
        self.features = lru_cache(maxsize=8)(self._features.__getitem__)

    def match(self, pairs: Iterable[Pair], progress: Progress) -> None:
        """Match the pairs that no earlier run has matched."""
        path, device, matcher = self.path / "matches.h5", self._source.device, self._source.matcher
        features = self._features.path
        match_pairs(features, pairs, path, device=device, matcher=matcher, progress=progress)
        self._matches = self.enter_context(MatchFile(path))

    def matches(self, first: str, second: str) -> Matches:
        """The matches of two photos that have been matched."""
        return self._matches.get(first, second)
