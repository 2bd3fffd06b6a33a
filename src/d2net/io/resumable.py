"""HDF5 files written over a long run that may be interrupted at any moment."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from d2net.errors import D2NetError, InputError, OutputError
from d2net.io.atomic import locked, replacing
from d2net.io.container import INPUTS, Container, check_name, folders_of, write_container
from d2net.io.journal import Journal, Record
from d2net.io.resume import as_settings, check_settings

_Self = TypeVar("_Self", bound="ResumableWriter")


class ResumableWriter:
    """Writes the entries of a long run, so that a kill, a full disk or a second process harm none.

    Use it as a context manager. Finished entries go to the journal `path`.partial; leaving the
    block without an error assembles them, with those that `path` holds already, into a new file
    that replaces `path`. After an error or a kill, `path` is as it was, and the same run started
    again finds in `done` what it need not repeat. The disk must hold everything twice for a moment.
    """

    reader: type[Container]

    def __init__(self, path: str | Path, settings: Mapping[str, Any]) -> None:
        """Prepare to write `path`; nothing is touched before the `with` block.

        Args:
            path: the HDF5 file; its folder must exist.
            settings: how the entries are made (JSON types only), stored in the file. Entries made
                with other settings are never mixed.

        Raises:
            InputError: `settings` cannot be stored as JSON.
        """
        self.path = Path(path)
        self.settings = as_settings(settings)
        self._stack = ExitStack()
        self._journal: Journal | None = None
        self._existing: Container | None = None
        self._names: set[str] = set()
        self._folders: set[str] = set()

    def __enter__(self: _Self) -> _Self:
        """Take the lock and find out what is done.

        Raises:
            OutputBusyError: another process writes this file.
            OutputError: it cannot be written, or was begun with other settings.
        """
        with ExitStack() as stack:
            stack.enter_context(locked(self.path))
            if self.path.exists():
                self._existing = self._open_existing(stack)
            partial = self.path.with_name(self.path.name + ".partial")
            journal = stack.enter_context(Journal(partial, self.settings))
            check_settings(journal.settings, self.settings, partial)
            self._recall(self._existing, journal)
            self._journal = journal
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._stack:
            journal = self._opened()
            self._journal = None
            if error is None and (len(journal) or not self.path.exists()):
                self._assemble(journal)
            if error is None or not len(journal):
                journal.remove()

    def _recall(self, existing: Container | None, journal: Journal) -> None:
        """Note what is done already."""
        self._remember(journal if existing is None else (*existing.entries(), *journal))

    def _is_done(self, name: str, inputs: str) -> bool:
        """Whether the entry is finished, from these inputs unless `inputs` is empty."""
        if name not in self._names or not inputs:
            return name in self._names
        journal = self._opened()
        if name in journal or self._existing is None:
            attributes: Mapping[str, Any] = journal.attributes[name][""]
        else:
            attributes = self._existing.read_attributes(name)
        return attributes.get(INPUTS) == inputs

    def _append(self, name: str, record: Record, inputs: str) -> None:
        """Store an entry; one that was made from other inputs is replaced."""
        journal = self._opened()
        check_name(name)
        if name in self._names and (not inputs or self._is_done(name, inputs)):
            raise InputError(f"{name!r} is in {self.path} already.")
        record.attributes.setdefault("", {})
        if inputs:
            record.attributes[""][INPUTS] = inputs
        if name in self._folders or any(folder in self._names for folder in folders_of(name)):
            raise InputError(
                f"{name!r} cannot be stored in {self.path}: one photo's name is the folder of "
                "another; rename one of them."
            )
        journal.append(name, record)
        self._remember([name])

    def _assemble(self, journal: Journal) -> None:
        existing = self._existing

        def record(name: str) -> Record:
            if name in journal or existing is None:
                return journal[name]
            return existing.read_record(name)

        with replacing(self.path, lock=False) as temporary:
            names = sorted(self._names)
            write_container(temporary, self.settings, ((name, record(name)) for name in names))
            if existing is not None:
                existing.close()  # Windows replaces no open file

    def _open_existing(self, stack: ExitStack) -> Container:
        try:
            existing = stack.enter_context(self.reader(self.path))
        except D2NetError as error:
            raise OutputError(f"{error} Delete it or choose another output.") from error
        if existing.settings is None:
            raise OutputError(
                f"{self.path} was not written by d2net and is not added to; choose another output."
            )
        check_settings(existing.settings, self.settings, self.path)
        return existing

    def _remember(self, names: Iterable[str]) -> None:
        for name in names:
            self._names.add(name)
            self._folders.update(folders_of(name))

    def _opened(self) -> Journal:
        if self._journal is None:
            raise InputError(f"the writer of {self.path} is not open; use it in a `with` block.")
        return self._journal
