"""`d2net pairs`: select the pairs of photos to match."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Literal

from d2net.cli import options
from d2net.cli.outputs import check_output
from d2net.errors import InputError, OutputError
from d2net.wording import count


def pairs(
    source: Path,
    *,
    method: Literal["exhaustive", "sequential", "retrieval", "gps", "covisibility"],
    output: Path = Path("pairs.txt"),
    pairing: options.Pairing,
    printing: options.Printing,
) -> None:
    """Select pairs of photos for `d2net match --pairs`.

    **exhaustive**: all pairs, for up to a few hundred photos. **sequential**: photos that follow
    each other by name, for videos. **retrieval**: photos that look alike, by the descriptors in a
    features file. **gps**: photos taken close to each other, by their EXIF data.
    **covisibility**: photos that see the same points of a COLMAP model.

    Options:
        source PHOTOS|FEATURES: Folder of photos, or features file (h5).
        method METHOD: Method of selection, see above.
        output FILE: Text file with two names per line.
    """
    choice = pairing.choose(method)

    from d2net.io.h5 import FeatureFile
    from d2net.io.image_lists import find_images
    from d2net.io.pair_lists import is_own_list, read_pairs, write_pairs
    from d2net.matching.pair_selection import choose_pairs

    check_output(output, pairing.model, is_own=is_own_list)
    names: Sequence[str]
    if source.is_file():
        with FeatureFile(source) as features:
            names = features.entries()
            selected = choose_pairs(choice, names, features=features)
    else:
        photos = find_images([source])
        names = [photo.name for photo in photos]
        selected = choose_pairs(choice, names, photos=photos)
    if not selected:
        raise InputError(
            f"{method} selects no pair of the {count(len(names), 'photo')} in {source}"
        )
    listed = {*chain(*read_pairs(output))} if output.exists() else set[str]()
    if listed and listed.isdisjoint(names):
        raise OutputError(
            f"{output} lists none of the photos of {source}: choose another output, or delete it"
        )
    write_pairs(output, selected)
    paired = {name for pair in selected for name in pair}
    unpaired = [name for name in names if name not in paired]
    line = f"{count(len(selected), 'pair')} of {count(len(paired), 'photo')}"
    if unpaired:
        line += f"; {count(len(unpaired), 'photo')} in no pair, such as {unpaired[0]}"
    printing.result(
        {"pairs": len(selected), "photos": len(names), "unpaired": unpaired, "output": str(output)},
        f"{line}: {output}",
    )
