"""`d2net extract`: features of many photos."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import typer

from d2net.cli import console, options
from d2net.cli.outputs import check_output
from d2net.errors import InputError
from d2net.wording import count


def extract(
    paths: list[Path] | None = None,
    *,
    output: Path,
    format: Literal["h5", "npz", "mat"] = "h5",
    image_list: Path | None = None,
    root: Path | None = None,
    masks: Path | None = None,
    half: bool = False,
    cluster: str | None = None,
    printing: options.Printing,
    extraction: options.Extraction,
) -> None:
    """Extract the features of photos.

    Run the same command again to resume an interrupted run. A photo that cannot be read does not
    stop the others; the exit code is then 1.

    Options:
        paths PHOTOS: Photos and folders.
        output PATH: Features file (h5), or folder (npz, mat).
        format: h5: one file in hloc's layout. npz, mat: NAME.d2-net per photo, as the release.
        image_list FILE: Text file with one photo per line, instead of PHOTOS.
        root DIR: Photos are named relative to this folder. Default: the folder in PHOTOS; for a
            list, the current folder.
        half: Store descriptors in half precision (h5).
    """
    from d2net.io.h5 import FeatureFile
    from d2net.io.image_lists import find_images, read_image_list

    if (image_list is None) == (not paths):
        raise InputError(
            "give either PHOTOS or --image-list FILE: d2net extract PHOTOS --output features.h5"
        )
    if image_list is not None:
        photos = read_image_list(image_list, root or Path())
    else:
        photos = find_images(paths or [], root)
    if format == "h5":
        check_output(output, is_own=FeatureFile)
    model = extraction.model(printing)

    from d2net.cli import progress
    from d2net.extraction.folder import extract_folder

    with progress.shown(printing) as report:
        summary = extract_folder(
            model,
            photos,
            output,
            format=format,
            masks=masks,
            half=half,
            cluster=cluster,
            progress=report,
        )
    for reason in summary.failed.values():
        console.error(reason)
    line = f"{count(len(summary.extracted), 'photo')} extracted"
    line += f", {count(sum(summary.extracted.values()), 'keypoint')}"
    if summary.skipped:
        line += f"; {len(summary.skipped)} extracted before"
    if summary.failed:
        line += f"; {len(summary.failed)} failed"
    if summary.other_photos:
        line += f"; {count(summary.other_photos, 'photo')} of earlier runs kept"
    printing.result({**vars(summary), "output": str(output)}, f"{line}: {output}")
    if summary.failed:
        raise typer.Exit(console.PARTLY_FAILED)
