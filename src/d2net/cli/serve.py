"""`d2net serve`: a page to try it."""

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
            "--map",
            metavar="MAP",
            help="What d2net reconstruct made, to place photos in.",
            show_default=False,
        ),
    ] = None,
    host: Annotated[
        str,
        typer.Option(
            metavar="ADDRESS",
            help="Where to listen; 0.0.0.0 lets every machine of the network in.",
        ),
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(metavar="N", help="Port to listen at; 0: a free one.")
    ] = 8000,
    weights: Annotated[
        str, typer.Option(metavar="NAME|FILE", help="A name that `d2net weights` lists, or a file.")
    ] = "default",
    device: Annotated[
        str, typer.Option(metavar="NAME", help="Where to compute: cpu, cuda, cuda:1, mps.")
    ] = "cpu",
    printing: options.Printing,
) -> None:
    """Serve a web page to try it: match two photos, or place a photo in a map.

    Photos are kept in memory for as long as the page shows them, and nothing is stored. Stop it
    with Ctrl-C.
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
        return  # the way to end it
