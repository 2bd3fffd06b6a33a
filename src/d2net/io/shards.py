"""One output in many files: shards that several processes write, and an index that reads as one.

Beside the index `features.h5` lies the folder `features.h5.shards` with `00003-of-00016.h5` and so
on. The index has a group for every entry, as a single file would; its small arrays are copies, the
others HDF5's external links into the shards, so that every program that reads the layout follows
them. Index and folder can be moved together.

Which shard an entry belongs to depends on its name alone, and the number of shards stays once there
are some: so a run that is started again, or with more entries, finds what is done.
"""

from __future__ import annotations

import re
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from d2net.errors import OutputError
from d2net.io.atomic import locked, output_errors, replacing
from d2net.io.container import Container, write_index
from d2net.io.resume import as_settings, check_settings

T = TypeVar("T")

PER_SHARD = 500
"""Entries of a shard where there are many: 500 photos' features take some gigabytes."""

PER_WORKER = 4
"""At least so many shards for each worker, so that all end at about the same time."""

_NAME = re.compile(r"\d+-of-(?P<count>\d+)\.h5(?P<unfinished>\.partial)?")


class Shards:
    """The shards of one output; a context manager that holds the output's lock."""

    def __init__(self, index: Path, reader: type[Container], settings: Mapping[str, Any]) -> None:
        """Prepare to write shards; nothing is touched before the `with` block.

        Args:
            index: the file that reads as one; its folder must exist.
            reader: of its kind of file.
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
            OutputBusyError: another process writes this output.
            OutputError: it was begun with other settings, or in one file.
        """
        with ExitStack() as stack:
            stack.enter_context(locked(self.index))
            if self.index.exists() and not self.folder.is_dir():
                raise OutputError(
                    f"{self.index} is one file, and a cluster writes many; choose another output, "
                    "or go on without a cluster."
                )
            for path in self._finished():
                with self._reader(path) as shard:
                    check_settings(shard.settings or {}, self.settings, path)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def divide(
        self, things: Sequence[T], name: Callable[[T], str], workers: int
    ) -> list[tuple[Path, list[T]]]:
        """The shards that things belong to, each with its things, the largest first.

        Raises:
            OutputError: the folder cannot be made, or holds shards of two divisions.
        """
        count = self._count() or max(-(-len(things) // PER_SHARD), PER_WORKER * workers)
        parts: dict[int, list[T]] = {}
        for thing in things:
            parts.setdefault(_hash(name(thing)) % count, []).append(thing)
        with output_errors(self.folder):
            self.folder.mkdir(exist_ok=True)
        ordered = sorted(parts.items(), key=lambda part: (-len(part[1]), part[0]))
        return [(self.folder / f"{i:05}-of-{count:05}.h5", part) for i, part in ordered]

    def join(self) -> None:
        """Write the index of all entries, replacing an old one; no entries, no files.

        Raises:
            FormatError: a shard is damaged.
            OutputError: the index cannot be written.
        """
        if not any(list(shard.entries()) for _, shard in self._opened()):
            shutil.rmtree(self.folder, ignore_errors=True)
            return
        with replacing(self.index, lock=False) as temporary:
            write_index(temporary, self.settings, self._opened())

    def _opened(self) -> Iterator[tuple[str, Container]]:
        for path in self._finished():
            with self._reader(path) as shard:
                yield f"{self.folder.name}/{path.name}", shard

    def _finished(self) -> list[Path]:
        return [path for path, name in self._found() if not name["unfinished"]]

    def _count(self) -> int:
        """Into how many shards the output was divided before; 0 for a new one."""
        found = {int(name["count"]) for _, name in self._found()}
        if len(found) > 1:
            raise OutputError(
                f"{self.folder} holds shards of {len(found)} outputs ({min(found)} and "
                f"{max(found)} files); delete it, or choose another output."
            )
        return max(found, default=0)

    def _found(self) -> list[tuple[Path, re.Match[str]]]:
        paths = sorted(self.folder.glob("*"))
        return [(path, name) for path in paths if (name := _NAME.fullmatch(path.name))]


def _hash(name: str) -> int:
    """The same on every machine and in every version."""
    return zlib.crc32(name.encode(errors="surrogatepass"))
