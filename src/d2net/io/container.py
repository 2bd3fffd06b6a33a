"""HDF5 files with a group per photo or pair, and the settings that the entries were made with.

The bytes of a file depend only on its content: groups and datasets are written in the order of
their names, without times, in a fixed version of the format. So an interrupted and resumed run
produces the same file as an undisturbed one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import h5py
import numpy as np

from d2net.errors import D2NetError, FormatError, InputError
from d2net.io.arrays import Array
from d2net.io.resume import Settings

SETTINGS = "d2net"
"""The file's attribute with the settings as JSON."""

INPUTS = "inputs"
"""An entry's attribute with the fingerprint of the inputs that the entry was made from."""

_VERSION = ("v110", "v110")
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

Attributes = dict[str, dict[str, str | float]]


@dataclass(frozen=True)
class Record:
    """One entry: arrays by name, and attributes by array ("" for those of the entry itself)."""

    arrays: dict[str, Array]
    attributes: Attributes = field(default_factory=dict)


def check_name(name: str) -> str:
    """Return `name` if it is a valid name of a photo: a relative POSIX path in Unicode.

    Raises:
        InputError: it is absolute, has an empty, "." or ".." part, or has a character that HDF5
            cannot store.
    """
    if not name or any(part in ("", ".", "..") for part in name.split("/")):
        raise InputError(
            f"{name!r} cannot name a photo: expected a path relative to the photos' folder, "
            "without empty, '.' or '..' parts."
        )
    if "\0" in name or any("\ud800" <= c <= "\udfff" for c in name):
        raise InputError(f"{name!r} cannot name a photo: it is not valid Unicode; rename the file.")
    return name


def folders_of(name: str) -> Iterator[str]:
    """The folders of a name: a and a/b for a/b/c.jpg."""
    position = name.find("/")
    while position >= 0:
        yield name[:position]
        position = name.find("/", position + 1)


class NoSuchEntryError(InputError, KeyError):
    """A file of features or matches lacks the requested photo or pair."""

    __str__ = Exception.__str__  # KeyError's would print quotes around the sentence


class Container:
    """An HDF5 file opened for reading; a context manager.

    Attributes:
        path: the file.
        settings: how it was made; None if another program wrote it.
    """

    marker: str
    """A dataset that the group of every entry has."""
    contents: str
    """The kind of contents, for error messages."""

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
                    f"of {self.contents}."
                ) from error
            raise FormatError(
                f"{self.path} is not an HDF5 file or is damaged; expected {self.contents} "
                "written by d2net or hloc."
            ) from error
        self._names: tuple[str, ...] | None = None
        try:
            self.settings = self._read_settings()
        except BaseException:
            self.close()
            raise

    def __enter__(self: _Self) -> _Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; data read from it remain valid."""
        with suppress(*_H5_ERRORS):
            self._file.close()

    def entries(self) -> tuple[str, ...]:
        """The names of all entries, sorted.

        Raises:
            FormatError: the file is damaged, or another program's file without entries.
        """
        if self._names is None:
            with self._damage():
                self._names = tuple(sorted(self._walk(self._file, "")))
            if not self._names and self.settings is None:
                raise FormatError(
                    f"{self.path} contains no {self.contents}: none of its groups has a dataset "
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
        """The datasets and attributes of the entry `name`, unchecked.

        Raises:
            FormatError: the entry is damaged, or contains something other than arrays.
        """
        with self._damage(name):
            group = self._file[name]
            arrays, attributes = {}, {"": _read_attributes(group)}
            for key, dataset in group.items():
                array = dataset[()] if isinstance(dataset, h5py.Dataset) else None
                if not isinstance(array, np.ndarray):
                    raise FormatError(f"{self.path}: {key!r} of {name!r} is not an array.")
                arrays[key] = array
                attributes[key] = _read_attributes(dataset)
        return Record(arrays, attributes)

    def read_attributes(self, name: str) -> dict[str, Any]:
        """The attributes of the entry `name` itself.

        Raises:
            FormatError: the entry is damaged.
        """
        with self._damage(name):
            return _read_attributes(self._file[name])

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
        """Turn the many exceptions that h5py raises for damaged files into one."""
        try:
            yield
        except D2NetError:
            raise
        except _H5_ERRORS as error:
            where = "" if name is None else f" at {name!r}"
            reason = str(error).partition("\n")[0]  # HDF5's messages can have many lines
            raise FormatError(
                f"{self.path} is damaged{where} ({reason}); make it again."
            ) from error


def write_container(
    path: Path,
    settings: Settings,
    records: Iterable[tuple[str, Record]],
    attributes: Mapping[str, Array] | None = None,
) -> None:
    """Write an HDF5 file in place.

    Args:
        path: the file.
        settings: how the entries were made.
        records: the entries in the order of their names; only one is in memory at a time.
        attributes: arrays that belong to the file as a whole.

    Raises:
        OSError: the disk is full or fails.
    """
    # HDF5's own access to files crashes the process when the disk is full; a Python file does not.
    with path.open("wb+") as raw, h5py.File(raw, "w", libver=_VERSION) as file:
        _write_attributes(file, {SETTINGS: json.dumps(settings, sort_keys=True)})
        _write_attributes(file, attributes or {})
        for name, record in records:
            _write_record(file.create_group(name), record)


def _write_record(group: h5py.Group, record: Record) -> None:
    for key in sorted(record.arrays):
        group.create_dataset(key, data=record.arrays[key], track_times=False)
    for key, attributes in sorted(record.attributes.items()):
        _write_attributes(group[key] if key else group, attributes)


def _write_attributes(target: h5py.HLObject, attributes: Mapping[str, str | float | Array]) -> None:
    for name, value in sorted(attributes.items()):
        if isinstance(value, str):
            # Fixed length: HDF5 2.0 can loop forever over other strings in damaged files.
            text = value.encode()
            target.attrs.create(name, text, dtype=h5py.string_dtype("utf-8", max(1, len(text))))
        else:
            target.attrs[name] = value


def _has(group: h5py.Group, key: str) -> bool:
    return group.get(key, getlink=True) is not None


def _read_attributes(source: h5py.HLObject) -> dict[str, Any]:
    return {name: _decoded(value) for name, value in source.attrs.items()}


def _decoded(value: object) -> object:
    return value.decode() if isinstance(value, bytes) else value
