"""One output in many files: shards that several processes write, and an index to read them all.

Beside the index `features.h5` is the folder `features.h5.shards` with `00003-of-00016.h5` and so
on. The index has a group for every entry, like a single file. Small arrays are copied into it, the
others are external links into the shards, which any program that uses HDF5 follows. Index and
folder can be moved together.

The shard of an entry depends only on the entry's name and the number of shards, and that number
never changes. So a run that is resumed, or repeated with more entries, finds the finished ones.
"""

from __future__ import annotations

import re
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

from d2net.errors import OutputError
from d2net.io.atomic import locked, output_errors, replacing
from d2net.io.container import Container, write_index
from d2net.io.resume import as_settings, check_settings

T = TypeVar("T")

PER_SHARD = 500
"""Entries per shard of large outputs; the features of 500 photos take some gigabytes."""

PER_WORKER = 4
"""Smallest number of shards per worker, so that all finish at about the same time."""

_NAME = re.compile(r"\d+-of-(?P<count>\d+)\.h5(?P<unfinished>\.partial)?")


class Shards:
    """The shards of one output; a context manager that holds the lock of the output."""

    def __init__(self, index: Path, reader: type[Container], settings: Mapping[str, Any]) -> None:
        """Prepare to write shards; no file is touched before the `with` block.

        Args:
            index: the index; its folder must exist.
            reader: the class that reads the shards.
            settings: how the entries are made; see `ResumableWriter`.
        """
        self.index = index
        self.folder = index.with_name(f"{index.name}.shards")
        self.settings = as_settings(settings)
        self._reader = reader
        self._stack = ExitStack()

    def __enter__(self) -> Shards:
        """Take the lock.

        Raises:
            OutputBusyError: another process is writing this output.
            OutputError: it was begun with other settings, or is a single file.
        """
        with ExitStack() as stack:
            stack.enter_context(locked(self.index))
            if self.index.exists() and not self.folder.is_dir():
                raise OutputError(
                    f"{self.index} is a single file, but a cluster writes shards; choose another "
                    "output, or continue without a cluster."
                )
            for path in self._finished():
                with self._reader(path) as shard:
                    check_settings(shard.settings or {}, self.settings, path)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def divide(
        self, items: Sequence[T], name: Callable[[T], str], num_workers: int
    ) -> list[tuple[Path, list[T]]]:
        """Divide photos or pairs among the shards.

        Args:
            items: the photos or pairs.
            name: gives the name that decides the shard.
            num_workers: processes that will write shards.

        Returns:
            The file of each shard and its items, the largest shard first.

        Raises:
            OutputError: the folder cannot be made, or has shards of two outputs.
        """
        count = self._count() or max(-(-len(items) // PER_SHARD), PER_WORKER * num_workers)
        parts: dict[int, list[T]] = {}
        for item in items:
            # The same on every machine and in every version of Python.
            hashed = zlib.crc32(name(item).encode(errors="surrogatepass"))
            parts.setdefault(hashed % count, []).append(item)
        with output_errors(self.folder):
            self.folder.mkdir(exist_ok=True)
        ordered = sorted(parts.items(), key=lambda part: (-len(part[1]), part[0]))
        return [(self.folder / f"{i:05}-of-{count:05}.h5", part) for i, part in ordered]

    def join(self) -> None:
        """Write the index of all entries, replacing an old one; without entries, delete all.

        Raises:
            FormatError: a shard is damaged.
            OutputError: the index cannot be written.
        """
        if not any(shard.entries() for _, shard in self._open_finished()):
            shutil.rmtree(self.folder, ignore_errors=True)
            return
        with replacing(self.index, lock=False) as temporary:
            write_index(temporary, self.settings, self._open_finished())

    def _open_finished(self) -> Iterator[tuple[str, Container]]:
        for path in self._finished():
            with self._reader(path) as shard:
                yield f"{self.folder.name}/{path.name}", shard

    def _finished(self) -> list[Path]:
        return [path for path, name in self._all() if not name["unfinished"]]

    def _count(self) -> int:
        """The number of shards of an earlier run; 0 for a new output."""
        counts = {int(name["count"]) for _, name in self._all()}
        if len(counts) > 1:
            raise OutputError(
                f"{self.folder} contains shards of {len(counts)} outputs ({min(counts)} and "
                f"{max(counts)} files); delete it, or choose another output."
            )
        return max(counts, default=0)

    def _all(self) -> list[tuple[Path, re.Match[str]]]:
        paths = sorted(self.folder.glob("*"))
        return [(path, name) for path in paths if (name := _NAME.fullmatch(path.name))]
