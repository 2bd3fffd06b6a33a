"""Protection of the user's files: a command replaces only results of its own kind."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from d2net.errors import OutputError
from d2net.io.atomic import check_writable, output_errors


def check_output(
    output: Path, *inputs: Path | None, is_own: Callable[[Path], object] | bytes | None = None
) -> None:
    """Raise OutputError before any work is done if a file may not be written.

    It may not if its folder is missing, or if it is an input or lies in a folder that is one. An
    existing file must be writable, and a result of the same kind: a picture, or what `is_own` says.
    """
    with output_errors(output):
        output.parent.stat()
        check_writable(output)
    paths = os.path.normpath(output.absolute()), os.path.realpath(output)
    places = (output, *(parent for path in paths for parent in Path(path).parents))
    for path in inputs if output.exists() else ():
        if path is not None and path.exists() and any(map(path.samefile, places)):
            place = "exists already in the input folder" if path.is_dir() else "is the input"
            raise OutputError(
                f"the output {output} {place} {path} of the same command; choose another output, "
                "so that no input is overwritten"
            )
    if is_own is None:
        from d2net.visualization import picture_path

        picture_path(output)
    else:
        from d2net.io.drawn_pictures import check_replaceable

        check_replaceable(output, is_own)
