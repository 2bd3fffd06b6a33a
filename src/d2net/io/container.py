"""HDF5 files of many small groups, one per photo or pair, with the settings they were made with.

The bytes of a file depend on its content alone: groups and datasets are written sorted by name,
without times, in a fixed version of the format. So an interrupted and resumed run ends with the
same file as an undisturbed one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import h5py
import numpy as np

from d2net.errors import D2NetError, FormatError, InputError, OutputError
from d2net.io.arrays import Array
from d2net.io.journal import Record
from d2net.io.resume import Settings

SETTINGS = "d2net"
"""The attribute of the file that holds the settings as JSON."""

INPUTS = "inputs"
"""The attribute of an entry that holds the fingerprint of what the entry was made from."""

_VERSION = ("v110", "v110")
_SMALL = 64
"""Bytes up to which an array is copied into an index. So is the photo's size, by which programs
find photos that follow no links, as hloc does."""
_H5_ERRORS = (
    OSError,
    RuntimeError,
    KeyError,
    ValueError,
    TypeError,
    AttributeError,
    ArithmeticError,
    MemoryError,
)

_Self = TypeVar("_Self", bound="Container")


def check_name(name: str) -> str:
    """Give `name` back if it can name a photo: a relative POSIX path in valid Unicode.

    Raises:
        InputError: it is absolute, or has a part that is empty, "." or "..", or a character that
            no file of features can hold.
    """
    if not name or any(part in ("", ".", "..") for part in name.split("/")):
        raise InputError(
            f"{name!r} cannot name a photo: expected its path relative to the photos' folder, "
            "without empty, '.' or '..' parts."
        )
    if "\0" in name or any("\ud800" <= c <= "\udfff" for c in name):
        raise InputError(f"{name!r} cannot name a photo: it is not valid Unicode; rename the file.")
    return name


def folders_of(name: str) -> Iterator[str]:
    """a/b/c.jpg: a, a/b."""
    position = name.find("/")
    while position >= 0:
        yield name[:position]
        position = name.find("/", position + 1)


class NoSuchEntryError(InputError, KeyError):
    """A file of features or matches does not hold what was asked for."""

    __str__ = Exception.__str__  # KeyError's would print quotes around the sentence


class Container:
    """An HDF5 file opened for reading; a context manager.

    Attributes:
        path: the file.
        settings: how it was made, None for files that are not ours.
    """

    marker: str
    """The dataset that every entry's group has."""
    holds: str
    """What the file should hold, for messages."""

    def __init__(self, path: str | Path) -> None:
        """Open `path`.

        Raises:
            InputError: it does not exist or cannot be opened.
            FormatError: it is not an HDF5 file, or is damaged.
        """
        self.path = Path(path)
        try:
            self._file = h5py.File(self.path, "r")
        except OSError as error:
            if error.errno is not None:
                raise InputError(
                    f"{self.path} cannot be opened ({os.strerror(error.errno)}); expected a file "
                    f"of {self.holds}."
                ) from error
            raise FormatError(
                f"{self.path} is not an HDF5 file or is damaged; expected {self.holds} as d2net or "
                "hloc write them."
            ) from error
        self._names: tuple[str, ...] | None = None
        try:
            self.settings = self._read_settings()
        except BaseException:
            self.close()
            raise

    def __enter__(self: _Self) -> _Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; what was read from it stays valid."""
        with suppress(*_H5_ERRORS):
            self._file.close()

    def entries(self) -> tuple[str, ...]:
        """The names of all entries, sorted.

        Raises:
            FormatError: the file is damaged, or holds none and is not ours.
        """
        if self._names is None:
            with self._damage():
                self._names = tuple(sorted(self._walk(self._file, "")))
            if not self._names and self.settings is None:
                raise FormatError(
                    f"{self.path} holds no {self.holds}: none of its groups has a dataset "
                    f"{self.marker!r}."
                )
        return self._names

    def has_entry(self, name: str) -> bool:
        """Whether there is an entry `name`."""
        try:
            check_name(name)
        except InputError:
            return False
        with self._damage():
            group = self._file.get(name)
            return isinstance(group, h5py.Group) and _has(group, self.marker)

    def read_record(self, name: str) -> Record:
        """The datasets and attributes of the entry `name` as they are.

        Raises:
            FormatError: the file is damaged there, or holds something other than arrays.
        """
        with self._damage(name):
            group = self._file[name]
            arrays, attributes = {}, {"": _read_attributes(group)}
            for key, dataset in group.items():
                _check_link(group, key, dataset)
                array = dataset[()] if isinstance(dataset, h5py.Dataset) else None
                if not isinstance(array, np.ndarray):
                    raise FormatError(f"{self.path}: {name!r} holds {key!r}, which is no array.")
                arrays[key] = array
                attributes[key] = _read_attributes(dataset)
        return Record(arrays, attributes)

    def read_attributes(self, name: str) -> dict[str, Any]:
        """The attributes of the entry `name` itself.

        Raises:
            FormatError: the file is damaged there.
        """
        with self._damage(name):
            return _read_attributes(self._file[name])

    def link_record(self, name: str, group: h5py.Group, path: str) -> None:
        """Fill a group of an index: small arrays are copied, others linked to those in this file.

        Args:
            name: the entry.
            group: of the index.
            path: of this file, relative to the index.

        Raises:
            FormatError: the file is damaged there.
        """
        with self._damage(name):
            source = self._file[name]
            small = {key: dataset for key, dataset in source.items() if dataset.nbytes <= _SMALL}
            attributes = {"": _read_attributes(source)}
            attributes |= {key: _read_attributes(dataset) for key, dataset in small.items()}
            arrays = {key: dataset[()] for key, dataset in small.items()}
            others = sorted(source.keys() - small.keys())
        _write_record(group, Record(arrays, attributes))
        for key in others:
            group[key] = h5py.ExternalLink(path, f"{name}/{key}")

    def _walk(self, group: h5py.Group, prefix: str) -> Iterator[str]:
        for key, child in group.items():
            if isinstance(child, h5py.Group):
                name = prefix + key
                if _has(child, self.marker):
                    yield name
                else:
                    yield from self._walk(child, name + "/")

    def _read_settings(self) -> Settings | None:
        with self._damage():
            text = _decoded(self._file.attrs.get(SETTINGS))
        if text is None:
            return None
        try:
            settings = json.loads(text) if isinstance(text, str) else text
        except ValueError as error:
            raise FormatError(f"{self.path}: the attribute {SETTINGS!r} is not JSON.") from error
        if not isinstance(settings, dict):
            raise FormatError(f"{self.path}: the attribute {SETTINGS!r} is not a JSON object.")
        return settings

    @contextmanager
    def _damage(self, name: str | None = None) -> Iterator[None]:
        """Turn the many exceptions by which h5py tells damage into one."""
        try:
            yield
        except D2NetError:
            raise
        except _H5_ERRORS as error:
            where = "" if name is None else f" at {name!r}"
            reason = str(error).partition("\n")[0]  # HDF5's can go on for lines
            raise FormatError(
                f"{self.path} is damaged{where} ({reason}); write it anew."
            ) from error


def write_container(
    path: Path,
    settings: Settings,
    records: Iterable[tuple[str, Record]],
    attributes: Mapping[str, Array] | None = None,
) -> None:
    """Write an HDF5 file in place; `records` come sorted by name and are held one at a time.

    `attributes` are arrays that belong to the file as a whole.

    Raises:
        OSError: the disk is full or fails.
    """
    # Through a Python file: HDF5's own access to files crashes the process when the disk is full.
    with path.open("wb+") as raw, h5py.File(raw, "w", libver=_VERSION) as file:
        _write_attributes(file, {SETTINGS: json.dumps(settings, sort_keys=True)})
        _write_attributes(file, attributes or {})
        for name, record in records:
            _write_record(file.create_group(name), record)


def write_index(path: Path, settings: Settings, shards: Iterable[tuple[str, Container]]) -> None:
    """Write an HDF5 file in place that reads as if it held all that some other files hold.

    Args:
        path: the index.
        settings: of all of them.
        shards: each with its path relative to the index; held one at a time.

    Raises:
        OutputError: one entry's name is the folder of another.
        FormatError: a shard is damaged.
        OSError: the disk is full or fails.
    """
    with path.open("wb+") as raw, h5py.File(raw, "w", libver=_VERSION) as file:
        _write_attributes(file, {SETTINGS: json.dumps(settings, sort_keys=True)})
        known: set[str] = set()
        for link, shard in shards:
            for name in shard.entries():
                if name in file or not known.isdisjoint(folders_of(name)):
                    raise OutputError(
                        f"{name!r} cannot be stored: one photo's name is the folder of another; "
                        "rename one of them."
                    )
                shard.link_record(name, file.create_group(name), link)
                known.add(name)


def _write_record(group: h5py.Group, record: Record) -> None:
    for key in sorted(record.arrays):
        group.create_dataset(key, data=record.arrays[key], track_times=False)
    for key, attributes in sorted(record.attributes.items()):
        _write_attributes(group[key] if key else group, attributes)


def _write_attributes(target: h5py.HLObject, attributes: Mapping[str, str | float | Array]) -> None:
    for name, value in sorted(attributes.items()):
        if isinstance(value, str):
            # Of fixed length: HDF5 2.0 can search damaged files for other strings without end.
            text = value.encode()
            target.attrs.create(name, text, dtype=h5py.string_dtype("utf-8", max(1, len(text))))
        else:
            target.attrs[name] = value


def _has(group: h5py.Group, key: str) -> bool:
    """Whether there is a dataset, or a link to one in another file, without opening that."""
    return group.get(key, getlink=True) is not None


def _check_link(group: h5py.Group, key: str, found: object) -> None:
    link = group.get(key, getlink=True)
    if found is None and isinstance(link, h5py.ExternalLink):
        raise FormatError(
            f"{group.file.filename}: {group.name[1:]!r} lies in {link.filename}, which is missing "
            "or damaged; keep that folder beside the file."
        )


def _read_attributes(source: h5py.HLObject) -> dict[str, Any]:
    return {name: _decoded(value) for name, value in source.attrs.items()}


def _decoded(value: object) -> object:
    return value.decode() if isinstance(value, bytes) else value
