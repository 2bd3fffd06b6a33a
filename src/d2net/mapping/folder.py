"""A map on the disk: which file holds what, and how it came about."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from d2net.errors import FormatError, InputError
from d2net.io.atomic import locked, new_folder, write_text
from d2net.io.colmap_model import read_model
from d2net.io.image_lists import find_photo

if TYPE_CHECKING:
    import pycolmap


class MapFolder:
    """A map's files.

    Attributes:
        features: `features.h5`, hloc's layout.
        matches: `matches.h5`, hloc's layout; before verification.
        pairs: `pairs.txt`, the pairs that were matched.
        retrieval: `retrieval.h5`, global descriptors to find photos that look alike.
        adjusted: `adjusted.h5`, hloc's layout without descriptors: the keypoints as the map has
            them, where it was made with `refine`.
        database: `database.db`, COLMAP's, verified.
        sparse: `sparse/0`, `sparse/1`, ...: COLMAP's models, the one with most photos first.
        record: `map.json`, how the map was made, and where its photos were.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.features = path / "features.h5"
        self.matches = path / "matches.h5"
        self.pairs = path / "pairs.txt"
        self.retrieval = path / "retrieval.h5"
        self.adjusted = path / "adjusted.h5"
        self.database = path / "database.db"
        self.sparse = path / "sparse"
        self.record = path / "map.json"
        self._record: dict[str, Any] = self._read_record()

    @property
    def photo_folders(self) -> list[Path]:
        """Where the photos are, as far as is known; a name is looked up in each."""
        return [Path(folder) for folder in self._record.get("photos", [])]

    def add_photo_folder(self, folder: Path) -> None:
        """Remember another folder of photos."""
        known: list[str] = self._record.setdefault("photos", [])
        if str(folder.resolve()) not in known:
            known.append(str(folder.resolve()))

    def photo(self, name: str) -> Path:
        """The file of a photo.

        Raises:
            InputError: it is where it was no more.
        """
        found = find_photo(self.photo_folders, name)
        if found is None:
            looked = " and ".join(map(str, self.photo_folders)) or "any known folder"
            raise InputError(
                f"the photo {name} of the map {self.path} is missing: it is not in {looked}"
            )
        return found

    @property
    def finished(self) -> frozenset[str]:
        """The photos that the map was finished with, in it or not."""
        return frozenset(self._record.get("finished", ()))

    def finish(self, names: Iterable[str]) -> None:
        """The map is finished with these photos."""
        self._record["finished"] = sorted(names)
        self.save_record()

    @property
    def seconds(self) -> dict[str, float]:
        """What each stage took, over all runs."""
        seconds: dict[str, float] = self._record.setdefault("seconds", {})
        return seconds

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Count the time of a block for a stage."""
        start = time.perf_counter()
        yield
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start

    def is_done(self, stage: str, key: str) -> bool:
        """Whether a stage was finished from the input that `key` stands for."""
        return bool(self._record.get("done", {}).get(stage) == key)

    def note(self, stage: str, key: str) -> None:
        """A stage is finished: after a kill, the next run starts behind it."""
        self._record.setdefault("done", {})[stage] = key
        self.save_record()

    def save_record(self) -> None:
        """Write `map.json`."""
        write_text(self.record, json.dumps(self._record, indent=2) + "\n")

    def read_reconstructions(self) -> list[pycolmap.Reconstruction]:
        """The models, the one with most photos first.

        Raises:
            InputError: there is none yet.
            FormatError: one is damaged.
        """
        folders = sorted(self.sparse.iterdir(), key=lambda path: int(path.name))
        return [read_model(folder) for folder in folders]

    def read_reconstruction(self) -> pycolmap.Reconstruction:
        """The model with most photos.

        Raises:
            InputError: this is no map, or one that is not finished.
            FormatError: the model is damaged.
        """
        if not (self.sparse / "0").is_dir():
            raise InputError(
                f"{self.path} is no finished map: it has no {self.sparse.name}/0; make one with "
                "d2net reconstruct PHOTOS --output MAP"
            )
        return read_model(self.sparse / "0")

    def save_models(self, models: Sequence[pycolmap.Reconstruction]) -> None:
        """Replace the models; a kill leaves the old ones, none or the new ones, never a part."""
        with locked(self.sparse):
            shutil.rmtree(self.sparse, ignore_errors=True)
            with new_folder(self.sparse, lock=False) as sparse:
                for number, model in enumerate(models):
                    (sparse / str(number)).mkdir()
                    model.write_binary(sparse / str(number))

    def _read_record(self) -> dict[str, Any]:
        if not self.record.exists():
            return {}
        try:
            record = json.loads(self.record.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise FormatError(
                f"{self.record} is damaged ({error}); delete it to make the map anew from its "
                "features and matches"
            ) from error
        return record if isinstance(record, dict) else {}


def digest(value: object) -> str:
    """Stands for anything that JSON holds."""
    return sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
