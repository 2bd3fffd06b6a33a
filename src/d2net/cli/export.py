"""`d2net export`: features and matches for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from d2net.cli import console, options
from d2net.errors import InputError


def export(
    output: Annotated[
        Path, typer.Argument(show_default=False, help="Database (colmap) or folder (kapture).")
    ],
    features: Annotated[Path, typer.Option(show_default=False, help="Features file (.h5).")],
    to: Annotated[str, typer.Option(show_default=False, help="colmap or kapture.")],
    matches: Annotated[Path | None, typer.Option(help="Matches file (.h5).")] = None,
    quiet: options.Quiet = False,
) -> None:
    """Write a features file, and its matches, as a COLMAP database or a kapture 1.1 folder."""
    from contextlib import ExitStack

    if to not in ("colmap", "kapture"):
        raise InputError(f"--to must be colmap or kapture, not {to!r}")
    from d2net.formats.colmap import write_database
    from d2net.formats.h5 import FeatureFile, MatchFile
    from d2net.formats.kapture import write_kapture

    with ExitStack() as stack:
        photos = stack.enter_context(FeatureFile(features))
        pairs = None if matches is None else stack.enter_context(MatchFile(matches))
        (write_database if to == "colmap" else write_kapture)(output, photos, pairs)
        console.say(f"{len(photos)} photos written: {output}", quiet=quiet)
