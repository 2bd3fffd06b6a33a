"""Outputs that are whole or absent, written by one process at a time.

A file is written under a temporary name in the same folder, flushed to the disk and moved into its
place in one step, so that neither a full disk nor a kill can leave half of it or harm the old one.
The temporary name is fixed: what a killed run leaves behind is overwritten by the next one.
Whoever writes holds the output's lock, so that two processes never share a temporary name.
"""

from __future__ import annotations

import errno
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from d2net.errors import OutputBusyError, OutputError

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

_FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}


@contextmanager
def output_errors(path: Path) -> Iterator[None]:
    """Turn the operating system's errors inside the block into one sentence about `path`.

    Raises:
        OutputError: instead of any OSError.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            reason = "the disk is full; free some space and run again"
        elif isinstance(error, FileNotFoundError) and not path.parent.exists():
            reason = f"the folder {path.parent} does not exist; create it first"
        elif isinstance(error, PermissionError) or error.errno == errno.EROFS:
            reason = f"no permission to write in {path.parent}; choose another place"
        elif isinstance(error, IsADirectoryError):
            reason = "it is a folder; give the name of a file"
        else:
            reason = error.strerror or str(error)
        raise OutputError(f"{path} cannot be written: {reason}.") from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; what is written there replaces `path` at the end.

    On any error the temporary file is removed and an old `path` stays as it is. The caller holds
    the lock of `path`.

    Raises:
        OutputError: instead of any OSError inside the block.
    """
    temporary = path.with_name(path.name + ".tmp")
    with output_errors(path):
        if path.is_dir():  # told before the work, not after it
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        try:
            temporary.write_bytes(b"")
            yield temporary
            _sync(temporary)
            temporary.replace(path)
        except BaseException:
            with suppress(OSError):  # the first error is the one to tell
                temporary.unlink(missing_ok=True)
            raise
        _sync(path.parent)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Give a temporary folder beside `path`, which becomes `path` at the end.

    On any error the temporary folder is removed. The caller holds the lock of `path`.

    Raises:
        OutputError: `path` exists and is not an empty folder; also instead of any OSError.
    """
    temporary = path.with_name(path.name + ".tmp")
    with output_errors(path):
        if path.exists() and not (path.is_dir() and not any(path.iterdir())):
            raise OutputError(f"{path} exists already; delete it or choose another folder.")
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            temporary.mkdir()
            yield temporary
            temporary.replace(path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def _sync(path: Path) -> None:
    """Wait until a file or folder is on the disk, so that a power cut cannot empty it either."""
    if sys.platform == "win32" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDWR if sys.platform == "win32" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of the output `path`: the file `path`.lock, removed afterwards.

    The operating system drops the lock with the process that holds it, however that ends.

    Raises:
        OutputBusyError: another process (or another writer in this one) holds it.
        OutputError: the lock file cannot be made.
    """
    lock = path.with_name(path.name + ".lock")
    with output_errors(path):
        descriptor = _acquire(lock, path)
    _held.add(descriptor)
    try:
        yield
    finally:
        if descriptor in _held:  # not in a forked child, which has lost it
            _held.discard(descriptor)
            _release(lock, descriptor)


def _acquire(lock: Path, path: Path) -> int:
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _try_lock(descriptor)
            # The one who held it removes the file: a lock on the removed file is worth nothing.
            if os.path.samestat(os.fstat(descriptor), lock.stat()):
                return descriptor
        except FileNotFoundError:
            pass
        except (BlockingIOError, PermissionError) as error:
            os.close(descriptor)
            raise OutputBusyError(
                f"{path} is being written by another process; wait for it to end or choose "
                "another output."
            ) from error
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _try_lock(descriptor: int) -> None:
    if sys.platform == "win32":
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
    else:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _release(lock: Path, descriptor: int) -> None:
    if sys.platform == "win32":  # an open file cannot be removed there
        os.close(descriptor)
        with suppress(OSError):
            lock.unlink()
    else:
        with suppress(OSError):
            lock.unlink()
        os.close(descriptor)


_held: set[int] = set()


def _forget_locks() -> None:
    """A forked child shares its parent's locks and would hold them after the parent's death."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_locks)
