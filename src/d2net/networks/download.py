"""Downloads a weights file into a cache: resumed where it stopped, whole or not at all."""

from __future__ import annotations

import http.client
import json
import os
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from d2net.errors import OutputError, WeightsError
from d2net.io.atomic import locked, output_errors, replacing

Progress = Callable[[int, int | None], None]
"""Called with the bytes on disk so far and the bytes in all, None where the server does not say."""

_TIMEOUT = 30.0
"""Seconds without a byte after which a server counts as gone."""

_CHUNK = 1 << 18


def cache_folder() -> Path:
    """Where downloads are kept: `$D2NET_CACHE`, `$XDG_CACHE_HOME/d2net` or `~/.cache/d2net`."""
    if own := os.environ.get("D2NET_CACHE"):
        return Path(own).expanduser()
    if xdg := os.environ.get("XDG_CACHE_HOME"):
        return Path(xdg) / "d2net"
    return Path("~/.cache/d2net").expanduser()


def download(
    url: str,
    target: Path,
    *,
    accept: Callable[[Path], None],
    progress: Progress | None = None,
) -> None:
    """Fetch `url` to `target`, going on from `TARGET.part` if an earlier attempt left one.

    Args:
        url: http or https address.
        target: the file to make; its folder is made if missing.
        accept: looks at the complete file before it gets its name, and raises if it is not what
            it should be (a login page, say); the file is then thrown away.
        progress: told of every piece that arrives.

    Raises:
        WeightsError: offline, refused, cut off (what has arrived is kept), or not accepted.
        OutputError: the cache cannot be written, or (OutputBusyError) another process is
            downloading the same file.
    """
    with output_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    with locked(target), output_errors(target):
        if target.exists():  # another process has just brought it
            return
        part = target.with_name(target.name + ".part")
        version = target.with_name(target.name + ".part.version")
        _transfer(url, part, version, target, progress)
        try:
            accept(part)
        except WeightsError as error:
            part.unlink()
            raise WeightsError(
                f"what {url} sent is not the weights file it should be, so it was not kept: {error}"
            ) from error
        part.replace(target)
        version.unlink(missing_ok=True)


class _CannotResumeError(Exception):
    """The server does not continue from the byte that was asked for."""


def _transfer(url: str, part: Path, version: Path, target: Path, progress: Progress | None) -> None:
    """Bring `part` to its full length."""
    start = part.stat().st_size if part.exists() else 0
    known = version.read_text("latin-1") if start and version.exists() else ""
    try:
        response = _request(url, start, known, target)
    except _CannotResumeError:
        part.unlink()
        response = _request(url, 0, "", target)
    with response:
        resumed = response.status == http.HTTPStatus.PARTIAL_CONTENT
        done = start if resumed else 0
        length = response.headers.get("Content-Length", "")
        total = done + int(length) if length.isdecimal() else None
        cut_off = False
        with part.open("ab" if resumed else "wb") as file:
            if not resumed:
                version.write_text(_version(response), "latin-1")
            try:
                for piece in _pieces(response):
                    file.write(piece)
                    done += len(piece)
                    if progress is not None:
                        progress(done, total)
            except http.client.HTTPException:
                cut_off = True
    if cut_off or total not in (None, done):
        of_all = "" if total is None else f" of {total:,}"
        raise WeightsError(
            f"the download of {url} stopped after {done:,}{of_all} bytes: start it again to go on "
            f"from there, or put the file at {target} by hand"
        )


def _request(url: str, start: int, version: str, target: Path) -> http.client.HTTPResponse:
    """The server's answer to a request for the file from byte `start` on."""
    headers = {"User-Agent": "d2net"}
    if start:
        headers["Range"] = f"bytes={start}-"
        if version:  # the rest of another version would not fit what is here
            headers["If-Range"] = version
    request = urllib.request.Request(url, headers=headers)  # noqa: S310 (catalogue addresses only)
    try:
        answer = urllib.request.urlopen(request, timeout=_TIMEOUT)  # noqa: S310
        response: http.client.HTTPResponse = answer
    except urllib.error.HTTPError as error:
        with error:
            if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and start:
                raise _CannotResumeError from error
            reason = f"HTTP {error.code} {error.reason}"
        raise _unreachable(url, target, reason) from error
    except (OSError, http.client.HTTPException) as error:
        raise _unreachable(url, target, str(getattr(error, "reason", error))) from error
    if response.status == http.HTTPStatus.PARTIAL_CONTENT:
        span = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
        if span is None or int(span[1]) != start:
            response.close()
            raise _CannotResumeError
    return response


def _unreachable(url: str, target: Path, reason: str) -> WeightsError:
    return WeightsError(
        f"{url} could not be downloaded ({reason}): connect to the network and start again, or "
        f"put the file at {target} by hand"
    )


def _pieces(response: http.client.HTTPResponse) -> Iterator[bytes]:
    """The body piece by piece; a broken connection is an HTTPException, whatever broke it.

    That tells it from a full disk, which is an OSError too.
    """
    try:
        while piece := response.read(_CHUNK):
            yield piece
    except OSError as error:
        raise http.client.IncompleteRead(b"") from error


def _version(response: http.client.HTTPResponse) -> str:
    """What tells one version of the file on the server from another, as If-Range wants it."""
    tag = response.headers.get("ETag", "")
    if tag and not tag.startswith("W/"):
        return str(tag)
    return str(response.headers.get("Last-Modified", ""))


def recorded_sha256(path: Path) -> str | None:
    """The checksum that was recorded when `path` was first loaded, None if none was.

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
    """Record the checksum of `path` beside it, for all later loads, unless one is recorded."""
    record = _record_path(path)
    if record.exists():
        return
    text = json.dumps({"sha256": sha256, "bytes": path.stat().st_size, "url": url}, indent=1)
    # a cache that several users share may be read-only
    with suppress(OutputError), replacing(record) as temporary:
        temporary.write_text(text + "\n")


def _record_path(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")
