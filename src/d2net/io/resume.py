"""One way to resume work that was interrupted, or that is repeated after its inputs changed.

A step may be skipped only if it finished earlier with the same settings and from the same inputs.
Their `fingerprint` is stored with the entries of an HDF5 file (`d2net.io.h5`), in the `WorkRecord`
of a folder, or as part of a file's name.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Set
from hashlib import sha256
from pathlib import Path
from textwrap import shorten
from typing import Any

from d2net.errors import FormatError, InputError, OutputError
from d2net.io.atomic import write_text

Settings = dict[str, Any]


def fingerprint(value: object) -> str:
    """A text of 32 characters that stands for settings and inputs.

    The value is anything that JSON can express; paths and other objects count as their text.
    """
    text = json.dumps(value, sort_keys=True, default=str)
    return sha256(text.encode()).hexdigest()[:32]


def file_state(path: Path) -> list[int] | None:
    """Size, times of modification and last change (as by renaming); None without a file."""
    try:
        state = path.stat()
    except (OSError, ValueError):  # ValueError: a null character in the name
        return None
    return [state.st_size, state.st_mtime_ns, state.st_ctime_ns]


def record_files(*paths: Path | None) -> str:
    """Sizes, times and checksums of files, by which `are_unchanged` knows them."""
    states = ([*(file_state(path) or []), _checksum(path)] if path else [] for path in paths)
    return ";".join(" ".join(map(str, state)) for state in states)


def are_unchanged(record: str, *paths: Path | None) -> bool:
    """Whether the first files of a record have the recorded content; None stands for no file.

    A checksum is computed only if the size agrees and a time differs, as for a copied file.
    """
    return all(map(_is_unchanged, paths, record.split(";")))


def _is_unchanged(path: Path | None, recorded: str) -> bool:
    if path is None:
        return not recorded
    state = [str(number) for number in file_state(path) or ()]
    words = recorded.split()
    if not state or state[:1] != words[:1]:
        return False
    return state == words[:-1] or _checksum(path) == words[-1]


def _checksum(path: Path) -> str:
    """Of a file's content; empty if the file cannot be read."""
    try:
        return sha256(path.read_bytes()).hexdigest()[:32]
    except (OSError, ValueError):  # ValueError: a null character in the name
        return ""


class WorkRecord:
    """The JSON file in a folder of work: how its contents were made, and which steps are done.

    The caller holds a lock of the folder while it works there.

    Attributes:
        path: the JSON file. It is first written by `save` or `finish`.
        settings: how the work is done; None if the record is new and no settings were given.
        values: further values of the caller, of types that JSON can express; see `save`.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any] | None = None) -> None:
        """Read the record at `path`, or begin one. Without `settings`, any are accepted."""
        self.path = path
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            content = {"done": {}}
        except ValueError as error:
            raise FormatError(f"{path} is damaged ({error}). Delete it and run again.") from error
        if not isinstance(content, dict) or not isinstance(content.get("done"), dict):
            raise FormatError(f"{path} was not written by d2net. Choose another folder.")
        self.settings: Settings | None = content.pop("settings", None)
        self._done: dict[str, str] = content.pop("done")
        self.values: dict[str, Any] = content
        if settings is not None:
            given = as_settings(settings)
            if self.settings is not None:
                check_settings(self.settings, given, path)
            self.settings = given

    def inputs(self, step: str) -> str:
        """The inputs that a step was finished from; empty if it is not finished."""
        return self._done.get(step, "")

    def done(self) -> Set[str]:
        """The finished steps."""
        return self._done.keys()

    def finish(self, step: str, inputs: str = "") -> None:
        """Record that the step's outputs, made from these inputs, are complete; save the record."""
        self._done[step] = inputs
        self.save()

    def save(self) -> None:
        """Write the record."""
        content: dict[str, Any] = {"done": self._done, **self.values}
        if self.settings is not None:
            content["settings"] = self.settings
        write_text(self.path, json.dumps(content, indent=2) + "\n", lock=False)


def as_settings(settings: Mapping[str, Any]) -> Settings:
    """Settings as they will be read again from JSON; an InputError if JSON cannot express them."""
    try:
        read: Settings = json.loads(json.dumps(dict(settings), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise InputError(f"the settings cannot be stored as JSON: {error}.") from error
    return read


def check_settings(stored: Settings, given: Settings, path: Path) -> None:
    """Raise an OutputError that names the differences, if `path` was made with other settings."""
    if stored and stored.keys().isdisjoint(given):
        raise OutputError(
            f"{path} contains results of another kind, with the settings {', '.join(stored)}; "
            "choose another output."
        )
    differences = list(_differences(stored, given))
    if differences:
        more = f"; {len(differences) - 3} more" if len(differences) > 3 else ""
        raise OutputError(
            f"{path} was made with other settings ({'; '.join(differences[:3])}{more}); use those, "
            "or choose another output."
        )


def _differences(stored: Settings, given: Settings, prefix: str = "") -> Iterator[str]:
    missing = object()
    for key in sorted(stored.keys() | given.keys(), key=lambda key: (key != "weights", key)):
        a, b = stored.get(key, missing), given.get(key, missing)
        if isinstance(a, dict) and isinstance(b, dict):
            yield from _differences(a, b, f"{prefix}{key}.")
        elif a != b:
            was = "absent" if a is missing else shorten(repr(a), 60)
            now = "absent" if b is missing else shorten(repr(b), 60)
            yield f"{prefix}{key} was {was}, is now {now}"
