"""HDF5 files with a group per photo or pair, and the settings that the entries were made with.

The bytes of a file depend only on its content: groups and datasets are written in the order of
their names, without times, in a fixed version of the format. So an interrupted and resumed run
produces the same file as an undisturbed one.
"""

from __future__ import annotations

import io
import json
import os
import sqlite3
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from typing_extensions import Self

from d2net.errors import D2NetError, FormatError, InputError, OutputError
from d2net.io.arrays import Array
from d2net.io.atomic import check_regular, locked, output_errors, replacing
from d2net.io.resume import Settings, as_settings, check_settings

INPUTS = "inputs"  # an entry's attribute with the fingerprint of what the entry was made from

_SETTINGS = "d2net"  # the file's attribute with the settings as JSON
_VERSION = ("v110", "v110")

Attributes = dict[str, Any]


@dataclass(frozen=True)
class Record:
    """One entry: arrays by name, and attributes by array ("" for those of the entry itself)."""

    arrays: dict[str, Array]
    attributes: dict[str, Attributes] = field(default_factory=dict)


def check_name(name: str) -> str:
    """Return `name` if it is a valid name of a photo: a relative POSIX path in Unicode."""
    if not name or any(part in ("", ".", "..") for part in name.split("/")):
        raise InputError(
            f"{name!r} cannot name a photo: expected a path relative to the photos' folder, "
            "without empty, '.' or '..' parts."
        )
    if "\0" in name or any("\ud800" <= c <= "\udfff" for c in name):
        reason = "it is not valid Unicode; rename the file"
        if (encoding := sys.getfilesystemencoding()) != "utf-8":  # Python misreads valid names
            reason = f"Python reads names of files as {encoding} here; set PYTHONUTF8=1"
        raise InputError(f"{name!r} cannot name a photo: {reason}.")
    return name


class NoSuchEntryError(InputError, KeyError):
    """A file of features or matches lacks the requested photo or pair."""

    __str__ = Exception.__str__  # KeyError's version would print quotes around the sentence


class H5File:
    """An HDF5 file opened for reading; a context manager.

    While it is open, HDF5 opens the same file again with its old content, even if another program
    has overwritten it.

    Attributes:
        path: the file.
        settings: how it was made; None if another program wrote it.
    """

    marker: str
    """A dataset that the group of every entry has."""
    contents: str
    """The kind of contents, for error messages."""

    def __init__(self, path: str | Path) -> None:
        """Open `path`: InputError if that is impossible, FormatError if it is damaged."""
        self.path = Path(path)
        try:
            check_regular(self.path)
            self._file = h5py.File(self.path, "r")
        except OSError as error:
            if error.errno is not None:
                raise InputError(
                    f"{self.path} cannot be opened ({os.strerror(error.errno)}); expected a file "
                    f"of {self.contents}."
                ) from error
            raise FormatError(
                f"{self.path} is not an HDF5 file or is damaged; expected {self.contents} "
                "written by d2net or hloc."
            ) from error
        self._names: tuple[str, ...] | None = None
        try:
            with self._format_errors():
                text = _read_attributes(self._file).get(_SETTINGS)
                self.settings: Settings | None = None if text is None else dict(json.loads(text))
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self.entries())

    def close(self) -> None:
        """Close the file; data read from it remain valid."""
        with suppress(Exception):  # of a damaged file
            self._file.close()

    def entries(self) -> tuple[str, ...]:
        """The names of all entries, sorted."""
        if self._names is None:
            with self._format_errors():
                self._names = tuple(sorted(self._walk(self._file, "")))
            if not self._names and (self.settings is None or len(self._file)):
                raise FormatError(
                    f"{self.path} contains no {self.contents}: none of its groups has a dataset "
                    f"{self.marker!r}."
                )
        return self._names

    def has_entry(self, name: str) -> bool:
        """Whether there is an entry `name`."""
        self._check_open()
        with suppress(InputError), self._format_errors():
            group = self._file.get(check_name(name))
            return isinstance(group, h5py.Group) and self._is_entry(group)
        return False

    def _check_open(self) -> None:
        if not self._file:
            raise InputError(f"{self.path} is closed; read it within its `with` block")

    def read_record(self, name: str) -> Record:
        """The datasets and attributes of the entry `name`, unchecked."""
        with self._format_errors(name):
            group = self._file[name]
            record = Record({}, {"": _read_attributes(group)})
            for key, dataset in group.items():
                if isinstance(dataset, h5py.Dataset):  # not a group of another program
                    record.arrays[key] = np.asarray(dataset[()])
                    record.attributes[key] = _read_attributes(dataset)
            return record

    def read_attributes(self, name: str) -> Attributes:
        """The attributes of the entry `name` itself."""
        with self._format_errors(name):
            return _read_attributes(self._file[name])

    def _is_entry(self, group: h5py.Group) -> bool:
        # A folder of photos may have the marker's name.
        return group.get(self.marker, getclass=True) is h5py.Dataset

    def _walk(self, group: h5py.Group, prefix: str) -> Iterator[str]:
        for key, child in group.items():
            if isinstance(child, h5py.Group):
                if self._is_entry(child):
                    yield prefix + key
                else:
                    yield from self._walk(child, f"{prefix}{key}/")

    @contextmanager
    def _format_errors(self, name: str | None = None) -> Iterator[None]:
        """Turn the many exceptions that h5py raises for damaged files into one."""
        try:
            yield
        except D2NetError:
            raise
        except Exception as error:
            self._check_open()
            where = "" if name is None else f" at {name!r}"
            reason = str(error).partition("\n")[0]  # HDF5's messages can have many lines
            raise FormatError(
                f"{self.path} is damaged{where} ({reason}); make it again."
            ) from error


class EntryWriter:
    """Writes the entries of a long run; a kill, a full disk or a second process does no harm.

    Use it as a context manager. Finished entries go to `path`.partial, a SQLite database. At the
    end of the block they and the entries that `path` has already are written to a new file, which
    replaces `path`; for a moment the disk must hold everything twice. After an error or a kill,
    `path` is as before, and the next run with the same settings continues where this one stopped.
    Threads may add different entries at the same time.
    """

    reader: type[H5File]

    def __init__(self, path: str | Path, settings: Mapping[str, Any]) -> None:
        """Prepare to write; no file is touched before the `with` block.

        `settings` say how the entries are made. Entries with different ones are never mixed.
        """
        self.path = Path(path)
        self.settings = as_settings(settings)
        self._stack = ExitStack()
        self._lock = threading.RLock()
        self._partial = self.path.parent / f"{self.path.name}.partial"
        self._database: sqlite3.Connection | None = None
        self._existing: H5File | None = None
        self._pending: set[str] = set()  # finished entries that only the database has
        self._entries: dict[str, Attributes] = {}  # the attributes of all finished entries
        self._folders: set[str] = set()

    def __enter__(self) -> Self:
        """Take the lock, read which entries are done, and compare the settings."""
        self._existing = None
        for known in (self._pending, self._entries, self._folders):
            known.clear()
        with ExitStack() as stack:
            stack.enter_context(locked(self.path))
            if self.path.exists():
                try:
                    existing = stack.enter_context(self.reader(self.path))
                except FormatError as error:
                    raise OutputError(f"{error} Delete it or choose another output.") from error
                if existing.settings is None:
                    raise OutputError(
                        f"{self.path} was not written by d2net; choose another output."
                    )
                check_settings(existing.settings, self.settings, self.path)
                for name in existing.entries():
                    self._add_entry(name, existing.read_attributes(name))
                self._existing = existing
            with self._database_errors():
                database = stack.enter_context(closing(_open_database(self._partial)))
                rows = database.execute("SELECT name, settings, attributes FROM entries").fetchall()
            for name, settings, attributes in rows:
                check_settings(json.loads(settings), self.settings, self._partial)
                self._add_entry(name, json.loads(attributes)[""])
                self._pending.add(name)
            self._database = database
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        with self._lock, self._stack:
            database = self._opened()
            self._database = None
            if error is None and (self._pending or not self.path.exists()):
                with replacing(self.path, lock=False) as temporary, self._database_errors():
                    records = ((name, self._read(database, name)) for name in sorted(self._entries))
                    write_h5_file(temporary, self.settings, records)
                    if self._existing is not None:
                        self._existing.close()  # Windows cannot replace an open file
            if error is None or not self._pending:
                with output_errors(self._partial):
                    database.close()
                    for end in ("-wal", "-shm", "-journal", ""):
                        Path(f"{self._partial}{end}").unlink(missing_ok=True)

    def _add_entry(self, name: str, attributes: Attributes) -> None:
        self._entries[name] = attributes
        self._folders.update(_folders_of(name))

    def inputs(self, name: str) -> str:
        """The inputs that a finished entry was made from; "" if they are unknown."""
        return str(self._entries.get(name, {}).get(INPUTS, ""))

    def _append(self, name: str, record: Record, inputs: str) -> None:
        """Store an entry; an entry of this name that was made from other inputs is replaced."""
        with self._lock:
            database = self._opened()
            check_name(name)
            if name in self._entries and inputs in ("", self.inputs(name)):
                raise InputError(f"{name!r} is in {self.path} already.")
            if name in self._folders or not self._entries.keys().isdisjoint(_folders_of(name)):
                raise InputError(
                    f"{name!r} cannot be stored in {self.path}: one photo's name is the folder of "
                    "another; rename one of them."
                )
            attributes = record.attributes.setdefault("", {})
            if inputs:
                attributes[INPUTS] = inputs
            arrays = io.BytesIO()
            np.savez(arrays, **record.arrays)  # type: ignore[arg-type]  # one of its options is a bool
            texts = json.dumps(self.settings), json.dumps(record.attributes)
            with self._database_errors():
                row = (name, *texts, arrays.getbuffer())
                database.execute("INSERT OR REPLACE INTO entries VALUES (?, ?, ?, ?)", row)
            self._add_entry(name, attributes)
            self._pending.add(name)

    def _read(self, database: sqlite3.Connection, name: str) -> Record:
        if name not in self._pending and self._existing is not None:
            return self._existing.read_record(name)
        query = "SELECT attributes, arrays FROM entries WHERE name = ?"
        attributes, arrays = database.execute(query, (name,)).fetchone()
        return Record(dict(np.load(io.BytesIO(arrays))), json.loads(attributes))

    def _opened(self) -> sqlite3.Connection:
        if self._database is None:
            raise InputError(f"the writer of {self.path} is not open; use it in a `with` block.")
        return self._database

    @contextmanager
    def _database_errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            is_damaged = not isinstance(error, sqlite3.OperationalError)
            remedy = "delete it, and run again"
            reason = remedy if is_damaged else "the disk is full, or the path is too long"
            raise OutputError(f"{self._partial} cannot be used ({error}): {reason}.") from error


def write_h5_file(
    path: Path,
    settings: Settings,
    records: Iterable[tuple[str, Record]],
    attributes: Mapping[str, Array] | None = None,
) -> None:
    """Write entries, in the order of their names, and arrays that belong to the whole file."""
    # HDF5's own access to files crashes the process when the disk is full; a Python file does not.
    with path.open("wb+") as raw, h5py.File(raw, "w", libver=_VERSION) as file:
        _write_attributes(file, {_SETTINGS: json.dumps(settings, sort_keys=True)})
        _write_attributes(file, attributes or {})
        for name, record in records:
            group = file.create_group(name)
            for key in sorted(record.arrays):
                group.create_dataset(key, data=record.arrays[key], track_times=False)
            for key, of_array in sorted(record.attributes.items()):
                _write_attributes(group[key] if key else group, of_array)


def _open_database(path: Path) -> sqlite3.Connection:
    # Every statement is a transaction. The writer holds a lock of its own, and some network drives
    # have none that SQLite could use.
    location = f"{path.absolute().as_uri()}?nolock=1"
    database = sqlite3.connect(location, uri=True, isolation_level=None, check_same_thread=False)
    try:
        # With a write-ahead log, neither a kill nor a power cut damages the database. The exclusive
        # mode avoids shared memory, which network drives lack.
        database.executescript(
            "PRAGMA locking_mode = EXCLUSIVE; PRAGMA journal_mode = WAL;"
            "PRAGMA synchronous = NORMAL;"
            "CREATE TABLE IF NOT EXISTS entries "
            "(name TEXT PRIMARY KEY, settings TEXT, attributes TEXT, arrays BLOB)"
        )
    except BaseException:
        database.close()
        raise
    return database


def _folders_of(name: str) -> Iterator[str]:
    """The folders of a name: a and a/b for a/b/c.jpg."""
    parts = name.split("/")
    return ("/".join(parts[:i]) for i in range(1, len(parts)))


def _write_attributes(target: h5py.HLObject, attributes: Mapping[str, str | float | Array]) -> None:
    for name, value in sorted(attributes.items()):
        if isinstance(value, str):
            # Fixed length: HDF5 2.0 can loop forever over other strings in damaged files.
            text = value.encode()
            target.attrs.create(name, text, dtype=h5py.string_dtype("utf-8", max(1, len(text))))
        else:
            target.attrs[name] = value


def _read_attributes(source: h5py.HLObject) -> Attributes:
    return {name: v.decode() if isinstance(v, bytes) else v for name, v in source.attrs.items()}
