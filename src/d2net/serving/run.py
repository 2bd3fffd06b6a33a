"""Starts the server of the page."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

import uvicorn

from d2net.errors import InputError
from d2net.extraction.d2net import D2Net
from d2net.mapping.localize import Map
from d2net.serving.app import make_app
from d2net.serving.shown_map import ShownMap

_MAX_CONNECTIONS = 64


def serve(
    model: D2Net,
    *,
    map_folder: Path | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    ready: Callable[[str], None],
) -> None:
    """Serve the page until Ctrl-C.

    Args:
        model: extracts features of the photos that are sent.
        map_folder: a map that `d2net reconstruct` made, to localize photos in.
        host: name or address to listen at; only this machine reaches 127.0.0.1.
        port: to listen at; 0 for any free port.
        ready: called with the page's URL before the first request is answered.

    Raises:
        InputError: the address cannot be used, or the folder holds no map.
        FormatError: a file of the map is damaged.
        WeightsError: the map's weights cannot be found.
    """
    with listen(host, port) as listening:
        device = str(model.device)
        shown = None if map_folder is None else ShownMap(Map.open(map_folder, device=device))
        config = uvicorn.Config(
            make_app(model, shown, [host]),
            log_level="warning",
            access_log=False,  # would reveal names of photos
            server_header=False,
            limit_concurrency=_MAX_CONNECTIONS,
            timeout_graceful_shutdown=1,
        )
        name = f"[{host}]" if ":" in host else host
        if host in ("0.0.0.0", "::"):  # noqa: S104 (all addresses of this machine)
            name = socket.gethostname()
        ready(f"http://{name}:{listening.getsockname()[1]}/")
        uvicorn.Server(config).run(sockets=[listening])


def listen(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises:
        InputError: the address cannot be used.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        reason = str(getattr(error, "strerror", None) or error).partition(" (while")[0]
        raise InputError(
            f"cannot listen at port {port} of {host}: {reason}; choose another with --port"
        ) from error
