"""Protection of the user's files: no command writes over its inputs or over a photo."""

from __future__ import annotations

import os
from pathlib import Path

from d2net.errors import OutputError
from d2net.io.atomic import check_regular, output_errors


def check_output(output: Path, *inputs: Path | None, appends: bool = False) -> None:
    """Raise OutputError before any work is done if a file may not be written.

    It may not if its folder is missing, if it is one of the inputs or exists in an input folder, or
    if it exists and is neither text nor a picture by d2net. With `appends`, the writer checks an
    existing file (HDF5) itself.
    """
    with output_errors(output):
        output.parent.stat()
        check_regular(output)
    if not output.is_file():
        return
    places = (output, *Path(os.path.normpath(output.absolute())).parents, *output.resolve().parents)
    for path in inputs:
        if path is not None and path.exists() and any(map(path.samefile, places)):
            place = "exists already in the input folder" if path.is_dir() else "is the input"
            raise OutputError(
                f"the output {output} {place} {path} of the same command; choose another output, "
                "so that no input is overwritten"
            )
    with output.open("rb") as file:
        is_text = b"\0" not in file.read(8192)  # photos and databases contain zero bytes
    if not (appends or is_text):
        from d2net.io.drawn_pictures import check_replaceable

        check_replaceable(output)
