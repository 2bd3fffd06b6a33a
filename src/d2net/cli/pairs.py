"""`d2net pairs`: which photos to match with which."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from d2net.cli import options
from d2net.errors import InputError

if TYPE_CHECKING:
    from d2net.formats.pairs import Pair

_OWN_OPTIONS = {
    "overlap": ("sequential",),
    "num_matched": ("retrieval", "gps", "covisibility"),
    "max_distance": ("gps",),
    "model": ("covisibility",),
}
"""The methods that an option is for."""


def pairs(
    *,
    source: Annotated[
        Path,
        typer.Argument(metavar="PHOTOS|FEATURES", help="Folder of photos, or features file (h5)."),
    ],
    method: Annotated[
        Literal["exhaustive", "sequential", "retrieval", "gps", "covisibility"],
        typer.Option(metavar="METHOD", help="See above."),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="Text file, two names a line.")
    ] = Path("pairs.txt"),
    num_matched: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="retrieval, gps, covisibility: others for each photo.",
            show_default="20",
        ),
    ] = None,
    overlap: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="sequential: next photos for each photo.", show_default="10"
        ),
    ] = None,
    max_distance: Annotated[
        float | None,
        typer.Option(metavar="METRES", help="gps: at most so far apart.", show_default="100"),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="covisibility: COLMAP model.", show_default=False),
    ] = None,
    printing: options.Printing,
) -> None:
    """Choose pairs of photos, for `d2net match --pairs`.

    **exhaustive**: all, for up to some hundred photos. **sequential**: photos that follow each
    other by name, for videos. **retrieval**: those that look most alike, by the local features of
    a features file. **gps**: those taken close to each other, by the photos' EXIF data.
    **covisibility**: those that see the same points of a model.
    """
    given = {
        "num_matched": num_matched,
        "overlap": overlap,
        "max_distance": max_distance,
        "model": model,
    }
    chosen = {name: value for name, value in given.items() if value is not None}
    for name in chosen:
        if method not in _OWN_OPTIONS[name]:
            raise InputError(
                f"--{name.replace('_', '-')} is for {', '.join(_OWN_OPTIONS[name])}, not {method}"
            )
    names, found = _choose(source, method, chosen)
    if not found:
        raise InputError(f"no pair of the {len(names)} photos in {source} is left to match")

    from d2net.formats.pairs import write_pairs

    write_pairs(output, found)
    paired = {name for pair in found for name in pair}
    alone = [name for name in names if name not in paired]
    line = f"{len(found):,} pairs of {len(paired):,} photos"
    if alone:
        line += f"; {len(alone):,} photos are in no pair, as {alone[0]}"
    printing.result(
        {"pairs": len(found), "photos": len(names), "unpaired": alone, "output": str(output)},
        f"{line}: {output}",
    )


def _choose(
    source: Path, method: str, chosen: dict[str, Any]
) -> tuple[Sequence[str], Sequence[Pair]]:
    """The photos' names and the pairs."""
    from d2net.formats.exif import gps_positions
    from d2net.formats.h5 import FeatureFile
    from d2net.formats.models import find_model, read_model
    from d2net.image_lists import find_images
    from d2net.matching import pairs
    from d2net.matching.retrieval import GlobalDescriptors

    if source.is_file():
        if method == "gps":
            raise InputError(
                f"{source} is a file; the photos themselves tell their position: give their folder"
            )
        with FeatureFile(source) as features:
            names: Sequence[str] = features.names
            if method == "retrieval":
                return names, pairs.from_retrieval(GlobalDescriptors.build(features), **chosen)
    else:
        if method == "retrieval":
            raise InputError(
                f"{source} is no features file, which retrieval needs: run first "
                f"d2net extract {source} --output features.h5"
            )
        photos = find_images([source])
        names = [photo.name for photo in photos]
        if method == "gps":
            positions = gps_positions(photos)
            if not positions:
                raise InputError(f"none of the {len(names)} photos in {source} has a GPS position")
            return names, pairs.from_gps(positions, **chosen)
    if method == "exhaustive":
        return names, pairs.exhaustive(names)
    if method == "sequential":
        return names, pairs.sequential(pairs.natural_order(names), **chosen)
    if "model" not in chosen:
        raise InputError("covisibility needs a COLMAP model: --model DIR")
    folder = chosen.pop("model")
    model = read_model(find_model(folder) or folder)
    return names, pairs.from_covisibility(model, names=names, **chosen)
