"""Features exported once, by the photo's content and how they are made, to be used many times."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from d2net.errors import D2NetError, ImageError
from d2net.evaluation.sources import FeatureSource, FileSource
from d2net.features import Features
from d2net.formats.h5 import FeatureFile, FeatureWriter
from d2net.network.download import cache_folder

_ENTRY = "photo"


class CachedFeatures:
    """A source whose results are kept below a folder.

    Args:
        source: where features come from.
        folder: default: `features` below the package's cache folder (`D2NET_CACHE`).
    """

    def __init__(self, source: FeatureSource, folder: str | os.PathLike[str] | None = None) -> None:
        self.source = source
        self.name = source.name
        self._settings = source.provenance()
        digest = hashlib.sha256(json.dumps(self._settings, sort_keys=True).encode()).hexdigest()
        root = cache_folder() / "features" if folder is None else Path(folder)
        self._folder = root / digest[:16]

    def features(self, photo: Path, name: str) -> Features:
        """Features of a photo, from the cache if it is there; a damaged entry is made anew.

        Args:
            photo: the file.
            name: its path relative to the evaluated folder.
        """
        if isinstance(self.source, FileSource):
            return self.source.extract(photo, name)
        content = hashlib.sha256(_read(photo)).hexdigest()
        path = self._folder / f"{content[:32]}.h5"
        if path.exists():
            try:
                with FeatureFile(path) as kept:
                    return kept[_ENTRY]
            except D2NetError:
                path.unlink()
        features = self.source.extract(photo, name)
        self._folder.mkdir(parents=True, exist_ok=True)
        with FeatureWriter(path, self._settings) as writer:
            writer.add(_ENTRY, features)
        return features


def _read(photo: Path) -> bytes:
    try:
        return photo.read_bytes()
    except OSError as error:
        raise ImageError(f"cannot read the photo {photo}: {error.strerror}") from error
