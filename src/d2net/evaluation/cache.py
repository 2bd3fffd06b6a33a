"""Features exported once, by the photo's content and how they are made, to be used many times."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from d2net.errors import D2NetError, ImageError
from d2net.evaluation.sources import FeatureSource, FileSource
from d2net.features import Features
from d2net.io.h5 import FeatureFile, FeatureWriter
from d2net.networks.download import cache_folder

_ENTRY = "photo"


class CachedFeatures:
    """A source whose results are kept below a folder.

    Args:
        source: where features come from.
        folder: default: `features` below the package's cache folder (`D2NET_CACHE`).

    Attributes:
        folder: where what is made from the source's features may be kept, too.
    """

    def __init__(self, source: FeatureSource, folder: str | os.PathLike[str] | None = None) -> None:
        self.source = source
        self.name = source.name
        self._settings = source.provenance()
        digest = hashlib.sha256(json.dumps(self._settings, sort_keys=True).encode()).hexdigest()
        root = cache_folder() / "features" if folder is None else Path(folder)
        self.folder = root / digest[:16]

    def features(self, photo: Path, name: str) -> Features:
        """Features of a photo, from the cache if it is there; a damaged entry is made anew.

        Args:
            photo: the file.
            name: its path relative to the evaluated folder.
        """
        if isinstance(self.source, FileSource):
            return self.source.extract(photo, name)
        path = self.folder / f"{self.key(photo, name)}.h5"
        if path.exists():
            try:
                with FeatureFile(path) as kept:
                    return kept[_ENTRY]
            except D2NetError:
                path.unlink()
        features = self.source.extract(photo, name)
        self.folder.mkdir(parents=True, exist_ok=True)
        with FeatureWriter(path, self._settings) as writer:
            writer.add(_ENTRY, features)
        return features

    def key(self, photo: Path, name: str) -> str:
        """What the features of a photo depend on: another key, other features.

        Args:
            photo: the file.
            name: as for `features`.
        """
        if isinstance(self.source, FileSource):
            made = self.source.path.stat()
            content = f"{name} {made.st_size} {made.st_mtime_ns}".encode()
        else:
            content = _read(photo)
        return hashlib.sha256(content).hexdigest()[:32]


def _read(photo: Path) -> bytes:
    try:
        return photo.read_bytes()
    except OSError as error:
        raise ImageError(f"cannot read the photo {photo}: {error.strerror}") from error
