"""Every error that d2net raises on purpose.

The message says what was given, what was expected and what to do; a command prints it as it is.
"""


class D2NetError(Exception):
    """Base of all errors of this package: `except D2NetError` catches every one of them."""


class InputError(D2NetError, ValueError):
    """An argument has a value, type or shape that the function cannot take."""


class ImageError(D2NetError):
    """A photo is missing, unreadable, damaged or of a kind that cannot be decoded."""


class WeightsError(D2NetError):
    """A weights file is missing, damaged, of another network, or could not be downloaded."""


class FormatError(D2NetError):
    """A features, matches or pairs file does not hold what its format promises."""


class MappingError(D2NetError):
    """No map can be made of the photos, or a photo cannot be placed in one; it says why."""


class OutputError(D2NetError):
    """An output cannot be written: disk full, no permission, or made with other settings."""


class OutputBusyError(OutputError):
    """Another process is writing to the same output."""


class MissingPackageError(D2NetError, ImportError):
    """An optional package is not installed; the message names the pip command."""
