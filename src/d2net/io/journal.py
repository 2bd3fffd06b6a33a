"""What a run has finished so far, in one file that only grows.

Each finished entry is appended in one piece with a checksum. A kill or a full disk can only damage
the last entry, which is dropped when the journal is opened again; everything before it counts.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np

from d2net.io.arrays import Array
from d2net.io.atomic import output_errors
from d2net.io.resume import Settings

Attributes = dict[str, dict[str, str | float]]


@dataclass(frozen=True)
class Record:
    """One entry: arrays by name, and plain attributes of each array ("" = of the entry itself)."""

    arrays: dict[str, Array]
    attributes: Attributes = field(default_factory=dict)


class Journal:
    """The journal at `path`, opened for appending; a context manager.

    Entries of an earlier, interrupted run are kept. The caller holds the output's lock.

    Attributes:
        settings: how the entries were made: those found in the file, or the ones given when the
            file is new or holds no entry.
        attributes: the attributes of every entry by its name.
    """

    def __init__(self, path: Path, settings: Settings) -> None:
        self.path = path
        self.settings = settings
        self.attributes: dict[str, Attributes] = {}
        self._offsets: dict[str, int] = {}
        with output_errors(path):
            # Unbuffered: what `append` has returned from survives the death of the process.
            self._file: BinaryIO = open(path, "a+b", buffering=0)  # noqa: PTH123, SIM115
            try:
                self._recover()
            except BaseException:
                self._file.close()
                raise

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def __len__(self) -> int:
        return len(self._offsets)

    def __contains__(self, name: str) -> bool:
        return name in self._offsets

    def __iter__(self) -> Iterator[str]:
        return iter(self._offsets)

    def __getitem__(self, name: str) -> Record:
        self._file.seek(self._offsets[name])
        entry = _read(self._file)
        if entry is None:
            raise OSError(f"{self.path} changed while it was read")
        return entry[1]

    def append(self, name: str, record: Record) -> None:
        """Add an entry; when this returns, a kill no longer loses it.

        Raises:
            OutputError: the disk is full or fails; the journal is as before.
        """
        with output_errors(self.path):
            self._offsets[name] = self._write(name, record)
        self.attributes[name] = record.attributes

    def remove(self) -> None:
        """Delete the file: its entries are elsewhere now."""
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
        self._file.seek(0)
        first = _read(self._file)
        if first is not None:
            end = self._file.tell()
            while (entry := _read(self._file)) is not None:
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


def _read(file: BinaryIO) -> tuple[str, Record] | None:
    """The entry at the file's position, None where there is no whole one."""
    frame = file.read(_FRAME.size)
    if len(frame) < _FRAME.size:
        return None
    magic, head_size, body_size, checksum = _FRAME.unpack(frame)
    left = os.fstat(file.fileno()).st_size - file.tell()
    if magic != _MAGIC or head_size + body_size > left:
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
    """Read `size` bytes; one call of an unbuffered file may give less (2 GiB on Linux)."""
    pieces = []
    while size and (piece := file.read(size)):
        pieces.append(piece)
        size -= len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)
