"""`d2net export`: features and matches for other programs."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Literal

import typer

from d2net.cli import options
from d2net.errors import InputError


def export(
    *,
    output: Annotated[
        Path, typer.Argument(show_default=False, help="Database (colmap) or folder (kapture).")
    ],
    features: Annotated[
        Path, typer.Option(metavar="FILE", show_default=False, help="Features file (h5).")
    ],
    to: Annotated[
        Literal["colmap", "kapture"],
        typer.Option(metavar="PROGRAM", show_default=False, help="colmap or kapture."),
    ],
    matches: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Matches file (h5).", show_default="none")
    ] = None,
    printing: options.Printing,
) -> None:
    """Write a features file, and its matches, as COLMAP's database or as a kapture 1.1 folder."""
    from d2net.formats.colmap import write_database
    from d2net.formats.h5 import FeatureFile, MatchFile
    from d2net.formats.kapture import write_kapture

    write = write_database if to == "colmap" else write_kapture
    with ExitStack() as stack:
        photos = stack.enter_context(FeatureFile(features))
        pairs = None if matches is None else stack.enter_context(MatchFile(matches))
        for file in (photos, pairs):
            if file is not None and len(file) == 0:
                raise InputError(f"{file.path} holds no {file.holds}; give a file that does")
        write(output, photos, pairs)
        count = 0 if pairs is None else len(pairs)
        printing.result(
            {"photos": len(photos), "pairs": count, "output": str(output)},
            f"{len(photos)} photos and {count} pairs written: {output}",
        )
