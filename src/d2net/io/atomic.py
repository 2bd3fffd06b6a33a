"""Safe writing: an output is complete or absent, and only one process writes it at a time.

The temporary name is fixed, so that the next run overwrites the file of a killed run. It contains
d2net, so that no file of the user has it.
"""

from __future__ import annotations

import errno
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from d2net.errors import D2NetError, InputError, OutputBusyError, OutputError

_DISK_FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}
_NO_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS}


def check_regular(path: Path) -> None:
    """InputError for a pipe or a device: reading it may never end, and writing would replace it."""
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise InputError(f"{path} is a pipe or a device; give the name of a regular file")


def check_writable(path: Path) -> None:
    """Raise an error if the output is a pipe, a device, a folder or a write-protected file."""
    check_regular(path)
    if path.is_dir():
        raise IsADirectoryError
    if path.exists() and not os.access(path, os.W_OK):
        raise OutputError(f"{path} is write-protected; choose another output, or permit writing")


@contextmanager
def output_errors(path: Path) -> Iterator[None]:
    """Turn any OSError in the block into an OutputError; an InputError if a name is too long."""
    try:
        yield
    except OSError as error:
        kind: type[D2NetError] = OutputError
        reason = error.strerror or str(error)
        if error.errno == errno.ENAMETOOLONG:
            kind, reason = InputError, f"the name {error.filename or path} is too long; shorten it"
        elif error.errno in _DISK_FULL:
            reason = "the disk is full; free some space and run again"
        elif isinstance(error, FileNotFoundError) and not path.parent.exists():
            reason = f"the folder {path.parent} does not exist; create it first"
        elif isinstance(error, PermissionError) or error.errno == errno.EROFS:
            reason = f"no permission to write in {path.parent}; choose another folder"
        elif error.errno in _NO_LOCKS:
            reason = "its drive lacks file locks; write to another drive, and copy the file"
        elif isinstance(error, IsADirectoryError):
            reason = "it is a folder; give the name of a file"
        raise kind(f"{path} cannot be written: {reason}.") from error


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of the output `path`: the file `path`.d2net-lock, removed afterwards.

    The operating system releases the lock when the process ends, however it ends. OutputBusyError
    if another process, or another writer in this one, holds it.
    """
    target = Path(os.path.realpath(path))
    lock = FileLock(f"{target}.d2net-lock", timeout=0, thread_local=False)
    with output_errors(path):
        if not target.parent.is_dir():  # raises; filelock might create the folder
            next(target.parent.iterdir(), None)
        try:
            lock.acquire()
        except Timeout as error:
            raise OutputBusyError(
                f"{path} is being written by another process; wait, or choose another output."
            ) from error
    try:
        yield
    finally:
        if lock.is_locked:  # false in a forked child, which must not remove its parent's file
            with suppress(OSError):  # Windows does not remove an open file
                Path(lock.lock_file).unlink()
            lock.release()


@contextmanager
def replacing(path: Path, *, lock: bool = True) -> Iterator[Path]:
    """Give a temporary path beside `path`; the file written there replaces `path` at the end.

    After an error the temporary file is removed, and an old `path` stays as it was. `lock` is False
    if the caller holds a lock. Any OSError in the block becomes an OutputError.
    """
    target = Path(os.path.realpath(path))  # a link stays, and the file that it leads to is written
    temporary = Path(f"{target}.d2net-tmp")
    with locked(path) if lock else nullcontext(), output_errors(path):
        check_writable(path)
        try:
            temporary.write_bytes(b"")
            with suppress(OSError):  # there is no target, or its drive has no modes
                shutil.copymode(target, temporary)
            yield temporary
            _flush(temporary)
            temporary.replace(target)
        except BaseException:
            with suppress(OSError):  # report the first error, not this one
                temporary.unlink(missing_ok=True)
            raise
        _flush(target.parent)


def write_text(path: Path, text: str, *, lock: bool = True) -> None:
    r"""Write a UTF-8 text file with `\n` line ends; see `replacing`."""
    with replacing(path, lock=lock) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


@contextmanager
def new_folder(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """Give a temporary folder beside `path`, which becomes `path` at the end; see `replacing`.

    OutputError if `path` exists and is not an empty folder, unless the new folder may replace it.
    """
    target = Path(os.path.realpath(path))
    temporary = Path(f"{target}.d2net-tmp")
    with locked(path), output_errors(path):
        if not replace and path.exists() and not (path.is_dir() and not any(path.iterdir())):
            raise OutputError(f"{path} exists already; delete it or choose another folder.")
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            temporary.mkdir()
            yield temporary
            if replace:
                shutil.rmtree(target, ignore_errors=True)
            temporary.replace(target)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def _flush(path: Path) -> None:
    """Wait until a file or folder is on the disk, so that a power cut cannot empty it either."""
    if sys.platform == "win32" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDWR if sys.platform == "win32" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
