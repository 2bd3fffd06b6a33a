"""The folder of a map: its files, and a record of how they were made."""

from __future__ import annotations

import re
import shutil
import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeAlias

import pycolmap

from d2net.errors import FormatError, InputError
from d2net.io.atomic import check_writable, new_folder, output_errors
from d2net.io.colmap_database import remove_side_files
from d2net.io.colmap_model import read_model, write_model
from d2net.io.drawn_pictures import is_own_picture
from d2net.io.h5 import FeatureFile, are_upright
from d2net.io.image_lists import find_photo, named_photo
from d2net.io.images import Pixels, to_pixels
from d2net.io.resume import WorkRecord, are_unchanged, file_state, fingerprint
from d2net.mapping.georeference import Georeference
from d2net.mapping.mapper import posed_photos

PlacedModel: TypeAlias = tuple[pycolmap.Reconstruction, Georeference | None]

_VIEW = re.compile(r"map\d*\.(png|html)")  # of one of the map's models
_MODEL_FILE = re.compile(
    r"\d+(/(cameras|frames|images|points3D|rigs)\.bin|/georeference\.json)?|(.*/)?\..*"
)
"""Files and folders in `sparse` that a map may replace, and hidden ones."""

_DRAFT, _ADDED, _FINISHED = (f"{name}.d2net-tmp" for name in ("unfinished", "added", "finished"))
_SCRATCH = "mapper.tmp"


class MapFolder:
    """The files of a map; docs/maps.md says what they hold."""

    def __init__(self, path: Path, draft: str = "") -> None:
        self.path = path
        self.place = path / draft  # a draft is a folder in the map, and shares the two large files
        self.features = path / "features.h5"
        self.matches = path / "matches.h5"
        self.pairs = self.place / "pairs.txt"
        self.retrieval = self.place / "retrieval.h5"
        self.database = self.place / "database.db"
        self.sparse = self.place / "sparse"
        self.record = WorkRecord(self.place / "map.json")
        # Of each stage, over all runs since the map was begun or last added to.
        self.seconds: dict[str, float] = self.record.values.setdefault("seconds", {})

    @contextmanager
    def draft(self, *, resume: bool) -> Iterator[MapFolder]:
        """A copy of the map to work in; `install` ends it. `resume` takes that of a stopped run."""
        place = self.path / (_DRAFT if resume else _ADDED)
        files = [self.record.path, self.database, self.pairs, self.retrieval]
        files = [file for file in (*files, *sorted(self.sparse.glob("*/*"))) if file.is_file()]
        base = fingerprint([file_state(file) for file in files[1:]])  # users may change them
        if not resume or WorkRecord(place / "map.json").values.get("base") != base:
            shutil.rmtree(place, ignore_errors=True)
            with new_folder(place) as copy:
                for file in files:
                    target = copy / file.relative_to(self.path)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(file, target)
        draft = MapFolder(self.path, place.name)
        draft.record.values["base"] = base
        old, new = self.record, draft.record
        try:
            yield draft
        except BaseException:
            if not resume or all(old.inputs(stage) == new.inputs(stage) for stage in new.done()):
                shutil.rmtree(place, ignore_errors=True)  # no stage has finished in it
            raise

    def install(self) -> None:
        """Replace the map by this draft. After a kill, `finish_installation` completes it."""
        self.record.save()
        with output_errors(self.path):
            new = {file.name for file in self.place.iterdir()}
            for name in new - {self.sparse.name}:
                check_writable(self.path / name)
            for old in self.path.glob("map*.png"):  # an earlier version had more models
                if _VIEW.fullmatch(old.name) and old.name not in new and is_own_picture(old):
                    old.unlink()
                    old.with_suffix(".html").unlink(missing_ok=True)
            if self.database.name not in new:  # poses were given
                (self.path / self.database.name).unlink(missing_ok=True)
            self.place.replace(self.path / _FINISHED)
        finish_installation(self.path)

    def made_by(self) -> dict[str, Any]:
        """How the features were made, see `D2Net.provenance`; InputError if it is no map's."""
        if not self.features.is_file():
            raise InputError(
                f"{self.path} is not a map: {self.features.name} is missing; make a map with "
                "d2net reconstruct PHOTOS --output MAP"
            )
        with FeatureFile(self.features) as file:
            settings = file.settings or {}
        if "weights" not in settings:
            raise InputError(f"{self.features} holds no features of a map by d2net")
        return settings

    @property
    def photo_folders(self) -> list[Path]:
        """Folders in which a photo's name is looked up."""
        return [Path(folder) for folder in self.record.values.get("photos", [])]

    def add_photo_folder(self, folder: Path, *, moved: bool = False) -> None:
        """Add a folder of photos. If they were `moved`, it replaces a folder that is gone."""
        folders: list[str] = self.record.values.setdefault("photos", [])
        gone = next((old for old in folders if moved and not Path(old).is_dir()), None)
        if gone is not None:
            folders.remove(gone)
        if str(folder.resolve()) not in folders:
            folders.append(str(folder.resolve()))

    def photo(self, name: str) -> Path:
        """The file of a photo; FormatError if it is missing or was replaced by another photo."""
        remedy = (
            f"; put it back, or give its new folder: d2net reconstruct FOLDER --into {self.path}"
        )
        first = named_photo(self.photo_folders, name, f"the map {self.path}", remedy)
        found = (find_photo([folder], name) for folder in self.photo_folders)
        path = next((path for path in found if path and self.is_photo(path, name)), None)
        if path is None:
            raise FormatError(
                f"{first} has changed since the map {self.path} was made of it: put the old photo "
                "back, or make the map again"
            )
        return path

    def read_photo(self, name: str) -> Pixels:
        """The pixels from which a photo's features were made; raises the errors of `photo`."""
        path = self.photo(name)
        return to_pixels(path, upright=are_upright(self.made_by()))

    def is_photo(self, path: Path, name: str) -> bool:
        """Whether a file has the content from which a photo's features were made."""
        with FeatureFile(self.features) as features:
            record = features.inputs(name) if name in features else ""
        return not record or are_unchanged(record, path)

    @property
    def finished(self) -> frozenset[str]:
        """The photos of the finished map that have been extracted, registered or not."""
        return frozenset(self.record.values.get("finished", ()))

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Note how long a stage takes. Features and matches may be made in several runs."""
        start = time.perf_counter()
        yield
        before = self.seconds.get(stage, 0.0) if stage in ("features", "matches") else 0.0
        self.seconds[stage] = before + time.perf_counter() - start

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """An empty folder in the map. If the work fails, the next use removes it."""
        path = self.path / _SCRATCH
        shutil.rmtree(path, ignore_errors=True)
        with output_errors(path):
            path.mkdir()
        yield path
        shutil.rmtree(path, ignore_errors=True)

    def read_models(self) -> list[PlacedModel]:
        """All models and their places on the earth, by number.

        InputError if there are none, or if features were extracted again since, after which a run
        was stopped: the models count on the rows of the old ones.
        """
        if (self.path / _FINISHED).exists():
            raise InputError(
                f"d2net reconstruct was stopped while it replaced the map {self.path}: run it again"
            )
        number = sum(path.name.isdigit() for path in self.sparse.glob("*"))
        folders = [self.sparse / str(model) for model in range(number or 1)]
        missing = next((folder for folder in folders if not folder.is_dir()), None)
        if missing is not None:
            raise InputError(
                f"{self.path} is not a finished map: sparse/{missing.name} is missing; make it "
                f"with d2net reconstruct PHOTOS --output {self.path}, or, if you have removed "
                "models, number the others from 0"
            )
        with FeatureFile(self.features) as features:
            for name, inputs in self.record.values.get("features", {}).items():
                if name not in features or features.inputs(name) != inputs:
                    raise InputError(
                        f"{self.path} has new features of {name}, but no new map: run the "
                        "stopped d2net reconstruct again"
                    )
        return [(read_model(folder), Georeference.read(folder)) for folder in folders]

    def foreign_files(self) -> list[Path]:
        """The files that writing a map would replace, and that are not of a map by d2net."""
        views = (file for file in self.path.iterdir() if _VIEW.fullmatch(file.name))
        foreign = [file for file in views if not is_own_picture(file.with_suffix(".png"))]
        if self.record.path.exists() or is_own_picture(self.path / "map.png"):
            models = ((file.relative_to(self.sparse), file) for file in self.sparse.rglob("*"))
            return foreign + [f for name, f in models if not _MODEL_FILE.fullmatch(name.as_posix())]
        files = (self.database, self.sparse, self.pairs, self.matches, self.retrieval)
        return foreign + [f for f in (*files, self.path / "report.json") if f.exists()]

    def database_photos(self) -> dict[int, str]:
        """The database's photos by number; none if SQLite cannot read the database to its end."""
        path = f"{self.database.resolve().as_uri()}?mode=ro"
        with suppress(sqlite3.DatabaseError), closing(sqlite3.connect(path, uri=True)) as database:
            if database.execute("PRAGMA quick_check").fetchone() == ("ok",):
                return dict(database.execute("SELECT image_id, name FROM images"))
        return {}

    def check_database(self) -> None:
        """InputError if the database is damaged, or lists other photos than the models."""
        numbers = self.database_photos() if self.finished else {}
        for model, _ in self.read_models():
            if any(numbers.get(image.image_id) != image.name for image in model.images.values()):
                raise InputError(
                    f"the map {self.path} has no usable database: it is damaged, a run was "
                    "stopped, or --poses was given; run d2net reconstruct again without --poses"
                )

    def save_models(self, models: Sequence[PlacedModel], photos: Iterable[str] = ()) -> None:
        """Replace the models. A kill leaves the old ones, none or the new ones.

        The caller records the inputs; this records the features of these models and `photos`.
        """
        self.record.finish("mapping")  # the old models, made from other inputs, are gone
        with new_folder(self.sparse, replace=True) as sparse:
            for number, (model, place) in enumerate(models):
                write_model(model, sparse / str(number))
                if place is not None:
                    place.write(sparse / str(number))
        names = frozenset(photos).union(*(posed_photos(model) for model, _ in models))
        with FeatureFile(self.features) as features:
            known = {name: features.inputs(name) for name in names.intersection(features)}
        self.record.values |= {"features": known, "models": len(models)}


def finish_installation(path: Path) -> None:
    """Move a finished draft of the map `path` to its place, and remove leftovers of killed runs."""
    finished = path / _FINISHED
    for left in (*path.glob(f"{_ADDED}*"), path / _SCRATCH):
        shutil.rmtree(left, ignore_errors=True)
    with output_errors(path):  # the record is moved last
        for file in sorted(finished.glob("*"), key=lambda file: file.name == "map.json"):
            target = path / file.name
            if target.is_symlink() and file.is_dir():
                target.unlink()  # a kill must not interrupt moving a folder to another drive
            elif target.is_dir():
                shutil.rmtree(target)
            target = target.resolve()
            remove_side_files(target)  # SQLite would replay an old journal into the new database
            shutil.move(file, target)
        shutil.rmtree(finished, ignore_errors=True)
