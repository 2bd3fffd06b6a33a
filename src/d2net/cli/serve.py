"""`d2net serve`: a web page to try the package."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from d2net.cli import console, options


def serve(
    *,
    map_folder: Annotated[
        Path | None,
        typer.Option(
            "--map", metavar="MAP", help="A map by d2net reconstruct, to localize photos in."
        ),
    ] = None,
    host: Annotated[
        str,
        typer.Option(
            metavar="ADDRESS",
            help="Address to listen at; 0.0.0.0 lets every machine of the network in.",
        ),
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(metavar="N", help="Port to listen at; 0 takes a free one.")
    ] = 8000,
    weights: options.Weights = "default",
    device: options.Device = "auto",
    printing: options.Printing,
) -> None:
    """Serve a web page on which to match two photos, or to localize a photo in a map.

    Photos are kept in memory while the page shows them, and are not stored. Stop it with Ctrl-C.
    """
    from d2net.errors import MissingPackageError

    try:
        from d2net.serving.run import serve as run
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
        run(model, map_folder=map_folder, host=host, port=port, ready=ready)
    except KeyboardInterrupt:
        return  # the documented way to stop
