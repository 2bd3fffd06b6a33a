"""`d2net pairs`: which photos to match with which."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from d2net.cli import options
from d2net.errors import InputError

if TYPE_CHECKING:
    from d2net.io.pairs import Pair
    from d2net.matching.pair_selection import PairChoice


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
    cluster: options.Cluster = None,
    choice: options.Pairing,
    printing: options.Printing,
) -> None:
    """Choose pairs of photos, for `d2net match --pairs`.

    **exhaustive**: all, for up to some hundred photos. **sequential**: photos that follow each
    other by name, for videos. **retrieval**: those that look most alike, by the local features of
    a features file. **gps**: those taken close to each other, by the photos' EXIF data.
    **covisibility**: those that see the same points of a model.
    """
    names, found = _chosen(source, choice.of(method), cluster)
    if not found:
        raise InputError(f"no pair of the {len(names)} photos in {source} is left to match")

    from d2net.io.pairs import write_pairs

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


def _chosen(
    source: Path, choice: PairChoice, cluster: str | None
) -> tuple[Sequence[str], Sequence[Pair]]:
    """The photos' names and the pairs."""
    from d2net.io.h5 import FeatureFile
    from d2net.io.image_lists import find_images
    from d2net.matching.pair_selection import choose_pairs

    if source.is_file():
        with FeatureFile(source) as features:
            names: Sequence[str] = features.names
            return names, choose_pairs(choice, names, features=features, cluster=cluster)
    if cluster is not None:
        raise InputError("a cluster is for pairs by a features file: --method retrieval")
    photos = find_images([source])
    names = [photo.name for photo in photos]
    return names, choose_pairs(choice, names, photos=photos)
