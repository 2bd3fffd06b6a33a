"""Write an HDF5 file over a long run that may be interrupted at any moment."""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np

from d2net.errors import D2NetError, InputError, OutputError
from d2net.io.atomic import locked, output_errors, replacing
from d2net.io.container import (
    INPUTS,
    Attributes,
    Container,
    Record,
    check_name,
    folders_of,
    write_container,
)
from d2net.io.resume import Settings, as_settings, check_settings

_Self = TypeVar("_Self", bound="ResumableWriter")


class ResumableWriter:
    """Writes the entries of a long run; a kill, a full disk or a second process does no harm.

    Use it as a context manager. Finished entries go to the journal `path`.partial. At the end of
    the block they and the entries that `path` has already are written to a new file, which replaces
    `path`; for a moment the disk must hold everything twice. After an error or a kill, `path` is as
    before, and the next run with the same settings continues where this one stopped.
    """

    reader: type[Container]

    def __init__(self, path: str | Path, settings: Mapping[str, Any]) -> None:
        """Prepare to write; no file is touched before the `with` block.

        Args:
            path: the HDF5 file; its folder must exist.
            settings: how the entries are made, of types that JSON can express. They are stored in
                the file, and entries with different settings are never mixed.

        Raises:
            InputError: `settings` cannot be stored as JSON.
        """
        self.path = Path(path)
        self.settings = as_settings(settings)
        self._stack = ExitStack()
        self._journal: _Journal | None = None
        self._existing: Container | None = None
        self._names: set[str] = set()
        self._folders: set[str] = set()

    def __enter__(self: _Self) -> _Self:
        """Take the lock and read which entries are done.

        Raises:
            OutputBusyError: another process is writing this file.
            OutputError: the file cannot be written, or was begun with other settings.
        """
        with ExitStack() as stack:
            stack.enter_context(locked(self.path))
            if self.path.exists():
                self._existing = self._open_existing(stack)
            partial = self.path.with_name(self.path.name + ".partial")
            journal = stack.enter_context(_Journal(partial, self.settings))
            check_settings(journal.settings, self.settings, partial)
            self._read_done(self._existing, journal.attributes)
            self._journal = journal
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        with self._stack:
            journal = self._opened()
            self._journal = None
            if error is None and (len(journal) or not self.path.exists()):
                self._assemble(journal)
            if error is None or not len(journal):
                journal.remove()

    def _read_done(self, existing: Container | None, unfinished: Mapping[str, Attributes]) -> None:
        """Note the entries of the existing file and, with their attributes, of the journal."""
        self._add_names(unfinished)
        if existing is not None:
            self._add_names(existing.entries())

    def _is_done(self, name: str, inputs: str) -> bool:
        """Whether the entry is finished, and made from these inputs unless `inputs` is empty."""
        if name not in self._names or not inputs:
            return name in self._names
        journal = self._opened()
        if name in journal or self._existing is None:
            attributes: Mapping[str, Any] = journal.attributes[name][""]
        else:
            attributes = self._existing.read_attributes(name)
        return attributes.get(INPUTS) == inputs

    def _append(self, name: str, record: Record, inputs: str) -> None:
        """Store an entry; an entry of this name that was made from other inputs is replaced."""
        journal = self._opened()
        check_name(name)
        if name in self._names and (not inputs or self._is_done(name, inputs)):
            raise InputError(f"{name!r} is in {self.path} already.")
        if name in self._folders or any(folder in self._names for folder in folders_of(name)):
            raise InputError(
                f"{name!r} cannot be stored in {self.path}: one photo's name is the folder of "
                "another; rename one of them."
            )
        own_attributes = record.attributes.setdefault("", {})
        if inputs:
            own_attributes[INPUTS] = inputs
        journal.append(name, record)
        self._add_names([name])

    def _assemble(self, journal: _Journal) -> None:
        existing = self._existing

        def record(name: str) -> Record:
            if name in journal or existing is None:
                return journal[name]
            return existing.read_record(name)

        with replacing(self.path, lock=False) as temporary:
            names = sorted(self._names)
            write_container(temporary, self.settings, ((name, record(name)) for name in names))
            if existing is not None:
                existing.close()  # Windows cannot replace an open file

    def _open_existing(self, stack: ExitStack) -> Container:
        try:
            existing = stack.enter_context(self.reader(self.path))
        except D2NetError as error:
            raise OutputError(f"{error} Delete it or choose another output.") from error
        if existing.settings is None:
            raise OutputError(
                f"{self.path} was not written by d2net, so nothing is added to it; choose another "
                "output."
            )
        check_settings(existing.settings, self.settings, self.path)
        return existing

    def _add_names(self, names: Iterable[str]) -> None:
        for name in names:
            self._names.add(name)
            self._folders.update(folders_of(name))

    def _opened(self) -> _Journal:
        if self._journal is None:
            raise InputError(f"the writer of {self.path} is not open; use it in a `with` block.")
        return self._journal


class _Journal:
    """The entries that a run has finished, in one file that only grows; a context manager.

    Each entry is appended in one piece with a checksum. A kill or a full disk can only damage the
    last entry, which is dropped when the journal is opened again. A later entry of the same name
    replaces an earlier one. The caller holds the output's lock.

    Attributes:
        settings: how the entries were made: those in the file, or the given ones if the file is
            new or has no entry.
        attributes: the attributes of every entry by its name.
    """

    def __init__(self, path: Path, settings: Settings) -> None:
        self.path = path
        self.settings = settings
        self.attributes: dict[str, Attributes] = {}
        self._offsets: dict[str, int] = {}
        with output_errors(path):
            # Unbuffered: an entry survives the death of the process once `append` has returned.
            self._file: BinaryIO = open(path, "a+b", buffering=0)  # noqa: PTH123, SIM115
            try:
                self._recover()
            except BaseException:
                self._file.close()
                raise

    def __enter__(self) -> _Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __len__(self) -> int:
        return len(self._offsets)

    def __contains__(self, name: str) -> bool:
        return name in self._offsets

    def __iter__(self) -> Iterator[str]:
        return iter(self._offsets)

    def __getitem__(self, name: str) -> Record:
        self._file.seek(self._offsets[name])
        entry = _read_entry(self._file)
        if entry is None:
            raise OSError(f"{self.path} changed while it was read")
        return entry[1]

    def append(self, name: str, record: Record) -> None:
        """Add an entry; a kill no longer loses it once this returns.

        Raises:
            OutputError: the disk is full or fails; the journal is as before.
        """
        with output_errors(self.path):
            self._offsets[name] = self._write(name, record)
        self.attributes[name] = record.attributes

    def remove(self) -> None:
        """Delete the file, because its entries are stored elsewhere."""
        self._file.close()
        with output_errors(self.path):
            self.path.unlink(missing_ok=True)

    def _write(self, name: str, record: Record) -> int:
        start = self._file.seek(0, os.SEEK_END)
        rest = memoryview(_encoded(name, record))
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except BaseException:
            with suppress(OSError):
                self._file.truncate(start)
            raise
        return start

    def _recover(self) -> None:
        """Read the entries of an earlier run, or begin a new journal."""
        self._file.seek(0)
        first = _read_entry(self._file)
        if first is not None:
            end = self._file.tell()
            while (entry := _read_entry(self._file)) is not None:
                name, record = entry
                self._offsets[name] = end
                self.attributes[name] = record.attributes
                end = self._file.tell()
            if self._offsets:
                self.settings = json.loads(str(first[1].attributes[""]["settings"]))
                self._file.truncate(end)
                return
        self._file.truncate(0)
        text = json.dumps(self.settings, sort_keys=True)
        self._write("", Record({}, {"": {"settings": text}}))


_FRAME = struct.Struct("<8sIQI")  # magic, bytes of the head, bytes of the arrays, CRC-32 of both
_MAGIC = b"d2net-1\n"


def _encoded(name: str, record: Record) -> bytes:
    arrays = {key: np.ascontiguousarray(array) for key, array in record.arrays.items()}
    head = json.dumps(
        {
            "name": name,
            "attributes": record.attributes,
            "arrays": [(key, a.dtype.str, a.shape) for key, a in arrays.items()],
        }
    ).encode()
    body = b"".join(a.tobytes() for a in arrays.values())
    checksum = zlib.crc32(body, zlib.crc32(head))
    return _FRAME.pack(_MAGIC, len(head), len(body), checksum) + head + body


def _read_entry(file: BinaryIO) -> tuple[str, Record] | None:
    """The entry at the file's position; None if there is no complete one."""
    frame = file.read(_FRAME.size)
    if len(frame) < _FRAME.size:
        return None
    magic, head_size, body_size, checksum = _FRAME.unpack(frame)
    remaining = os.fstat(file.fileno()).st_size - file.tell()
    if magic != _MAGIC or head_size + body_size > remaining:
        return None
    head = _read_exactly(file, head_size)
    body = _read_exactly(file, body_size)
    if zlib.crc32(body, zlib.crc32(head)) != checksum:
        return None
    content = json.loads(head)
    arrays = {}
    offset = 0
    for key, dtype, shape in content["arrays"]:
        array = np.frombuffer(body, dtype, count=int(np.prod(shape)), offset=offset)
        arrays[key] = array.reshape(shape)
        offset += array.nbytes
    return content["name"], Record(arrays, content["attributes"])


def _read_exactly(file: BinaryIO, size: int) -> bytes:
    """Read `size` bytes; one call may return fewer (at most 2 GiB on Linux)."""
    pieces = []
    while size and (piece := file.read(size)):
        pieces.append(piece)
        size -= len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)
