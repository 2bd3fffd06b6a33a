"""Downloads of weights into a cache, whole or not at all, with checksums kept beside them."""

from __future__ import annotations

import http.client
import json
import os
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from d2net.errors import OutputError, WeightsError
from d2net.io.atomic import output_errors, replacing
from d2net.progress import Progress, no_progress

_TIMEOUT = 30.0
"""Seconds without a byte after which the download is given up."""

_CHUNK = 1 << 18


def cache_folder() -> Path:
    """The folder of downloads: `$D2NET_CACHE`, `$XDG_CACHE_HOME/d2net` or `~/.cache/d2net`."""
    if own := os.environ.get("D2NET_CACHE"):
        return Path(own).expanduser()
    if xdg := os.environ.get("XDG_CACHE_HOME"):
        return Path(xdg) / "d2net"
    return Path("~/.cache/d2net").expanduser()


def download(
    url: str, target: Path, *, accept: Callable[[Path], None], progress: Progress = no_progress
) -> None:
    """Download `url` to `target`.

    Args:
        url: http or https address.
        target: the file to make; its folder is made if missing.
        accept: checks the complete file before it gets its name, and raises WeightsError if it is
            something else, such as a login page. The file is then thrown away.
        progress: called with the bytes so far.

    Raises:
        WeightsError: offline, refused, cut off, or not accepted.
        OutputError: the cache cannot be written, or (OutputBusyError) another process is
            downloading the same file.
    """
    with output_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    with replacing(target) as temporary:
        with temporary.open("wb") as file:
            done, total = 0, None
            try:
                request = urllib.request.Request(url, headers={"User-Agent": "d2net"})  # noqa: S310
                response = urllib.request.urlopen(request, timeout=_TIMEOUT)  # noqa: S310
                length = response.headers.get("Content-Length", "")
                total = int(length) if length.isdecimal() else None
                piece = response.read(_CHUNK)
            except (OSError, http.client.HTTPException) as error:
                raise _failed(url, target, str(error)) from error
            while piece:
                file.write(piece)
                done += len(piece)
                progress("downloading", done, total)
                try:
                    piece = response.read(_CHUNK)
                except (OSError, http.client.HTTPException) as error:
                    raise _failed(url, target, f"it stopped after {done:,} bytes") from error
            if total not in (None, done):
                raise _failed(url, target, f"it stopped after {done:,} of {total:,} bytes")
        try:
            accept(temporary)
        except WeightsError as error:
            raise WeightsError(
                f"the file that {url} sent is not a weights file and was not kept: {error}"
            ) from error


def _failed(url: str, target: Path, reason: str) -> WeightsError:
    return WeightsError(
        f"{url} could not be downloaded ({reason}): check the network and start again, or put the "
        f"file at {target} by hand"
    )


def recorded_sha256(path: Path) -> str | None:
    """The checksum that was recorded when `path` was first loaded, or None.

    Raises:
        WeightsError: the record itself is damaged.
    """
    record = _record_path(path)
    try:
        return str(json.loads(record.read_text())["sha256"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise WeightsError(
            f"the checksum record {record} is damaged: delete it and {path}, then download again"
        ) from error


def record_sha256(path: Path, sha256: str, url: str) -> None:
    """Record the checksum of `path` beside it for all later loads, unless one is recorded."""
    record = _record_path(path)
    if record.exists():
        return
    text = json.dumps({"sha256": sha256, "bytes": path.stat().st_size, "url": url}, indent=1)
    # a cache that several users share may be read-only
    with suppress(OutputError), replacing(record) as temporary:
        temporary.write_text(text + "\n")


def _record_path(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")
