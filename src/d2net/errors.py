"""The errors that d2net raises on purpose.

The message says what was given, what was expected and what to do. Commands print it unchanged.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class D2NetError(Exception):
    """Base class: `except D2NetError` catches every error of this package."""


class InputError(D2NetError, ValueError):
    """An argument has an invalid value, type or shape."""


class ImageError(D2NetError):
    """A photo is missing, unreadable, damaged or in an unsupported format."""


class WeightsError(D2NetError):
    """A weights file is missing, damaged, for another network, or could not be downloaded."""


class FormatError(D2NetError):
    """A file of features, matches, pairs or poses is damaged or has another format."""


class MappingError(D2NetError):
    """No map can be made, or a photo cannot be localized; the message says why."""


class OutputError(D2NetError):
    """An output cannot be written: disk full, no permission, or begun with other settings."""


class OutputBusyError(OutputError):
    """Another process is writing to the same output."""


class TrainingError(D2NetError):
    """A training run cannot continue: it diverged, or its data are useless."""


class MissingPackageError(D2NetError, ImportError):
    """An optional package is not installed; the message names the pip command."""


@contextmanager
def needs_package(reason: str, extra: str) -> Iterator[None]:
    """Say why an import inside is needed, and which extra of d2net installs the package."""
    try:
        yield
    except ImportError as error:
        raise MissingPackageError(f'{reason}: pip install "d2net[{extra}]"') from error
