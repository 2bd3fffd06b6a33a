"""`d2net serve`: a web page to try the package."""

from __future__ import annotations

from pathlib import Path

from d2net.cli import console, options
from d2net.errors import MissingPackageError


def serve(
    *,
    map_: Path | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    matcher: str = "nearest",
    weights: str = "default",
    device: str = "auto",
    printing: options.Printing,
) -> None:
    """Serve a web page to match photos and to localize them in a map.

    Photos are kept in memory while the page shows them, and are not stored. Stop with Ctrl-C.

    Options:
        map_ MAP: Also localize photos in this map by d2net reconstruct.
        host ADDRESS: Address to listen on; 0.0.0.0 admits every machine on the network.
        port N: Port to listen on; 0 takes a free one.
    """
    try:
        from d2net.serving.app import serve as run
    except ModuleNotFoundError as error:
        if error.name not in ("starlette", "uvicorn"):
            raise
        raise MissingPackageError(
            f'd2net serve needs the package {error.name}: pip install "d2net[serve]"'
        ) from error

    model = options.Extraction(weights=weights, device=device).model(printing)

    def ready(address: str) -> None:
        printing.result({"address": address}, f"open {address} in a browser; Ctrl-C ends it")
        console.out.file.flush()

    try:
        run(model, weights, map_folder=map_, host=host, port=port, matcher=matcher, ready=ready)
    except KeyboardInterrupt:
        return  # the documented way to stop
