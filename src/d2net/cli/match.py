"""`d2net match`: two photos to a picture, or a features file and pairs to a matches file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from d2net.cli import options
from d2net.errors import InputError


def match(
    *,
    photos: Annotated[
        list[Path] | None, typer.Argument(metavar="A B", help="Two photos.", show_default=False)
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="Picture (png, jpg), or with --features the matches file (h5).",
            show_default="matches.png",
        ),
    ] = None,
    features: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Match photos of this features file (h5) instead."),
    ] = None,
    pairs: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="With --features: text file, two names a line."),
    ] = None,
    refine: Annotated[
        bool,
        typer.Option(
            "--refine",
            help="Of two photos: move the matched points in the second one to fit the first.",
        ),
    ] = False,
    cluster: options.Cluster = None,
    printing: options.Printing,
    matching: options.Matching,
    extraction: options.Extraction,
) -> None:
    """Match two photos and draw the result, or many pairs from a features file.

    `d2net match A.jpg B.jpg` prints counts and writes matches.png.

    `d2net match --features F.h5 --pairs pairs.txt --output M.h5` writes hloc's layout: of
    verified matches (the default) the inliers. A run that was stopped goes on where it was when it
    is started again.
    """
    if refine and (features is not None or matching.verify == "none"):
        raise InputError(
            "--refine moves keypoints for one pair: give two photos, and verify their matches (in "
            "a features file a keypoint has one place for all pairs)"
        )
    if features is not None and pairs is not None and output is not None and not photos:
        _match_file(features, pairs, output, matching, extraction.device, cluster, printing)
    elif photos and len(photos) == 2 and (features, pairs, cluster) == (None, None, None):
        picture = output or Path("matches.png")
        _match_photos(photos[0], photos[1], picture, extraction, matching, refine, printing)
    else:
        raise InputError(
            "give two photos (d2net match A.jpg B.jpg), or a features file "
            "(d2net match --features F.h5 --pairs pairs.txt --output M.h5)"
        )


def _match_photos(
    first: Path,
    second: Path,
    picture: Path,
    extraction: options.Extraction,
    matching: options.Matching,
    refined: bool,
    printing: options.Printing,
) -> None:
    model = extraction.model(printing)

    from d2net.matching import match
    from d2net.matching.refine import refine
    from d2net.matching.verification import verify
    from d2net.visualization import picture_path, plot_matches

    picture_path(picture)
    a, b = model.extract(first, turns=1), model.extract(second)  # one that turns is enough
    found = match(a, b, **matching.arguments())
    if refined and matching.verify != "none":
        upright = model.settings.upright
        a, b = refine(a, b, found, first, second, upright=upright)
        found = verify(a, b, found, matching.verify, threshold=matching.threshold)
    plot_matches(first, second, a, b, found, upright=model.settings.upright, output=picture)
    line = f"{len(a):,} and {len(b):,} keypoints, {len(found):,} matches"
    if found.inliers is not None:
        share = found.num_inliers / max(len(found), 1)
        line += f", {found.num_inliers:,} inliers ({share:.0%}) of a {found.model} model"
    printing.result(
        {
            "photos": [str(first), str(second)],
            "keypoints": [len(a), len(b)],
            "matches": len(found),
            "model": found.model,
            "inliers": None if found.inliers is None else found.num_inliers,
            "matrix": None if found.matrix is None else found.matrix.tolist(),
            "picture": str(picture),
        },
        f"{line}: {picture}",
    )


def _match_file(
    features: Path,
    pairs: Path,
    output: Path,
    matching: options.Matching,
    device: str,
    cluster: str | None,
    printing: options.Printing,
) -> None:
    from d2net.cli import progress
    from d2net.io.pairs import read_pairs
    from d2net.matching.match_pairs import match_pairs

    wanted = read_pairs(pairs)
    with progress.shown(printing) as report:
        summary = match_pairs(
            features,
            wanted,
            output,
            device=device,
            cluster=cluster,
            progress=report,
            **matching.arguments(),
        )
    line = f"{len(summary.matched)} pairs matched"
    line += f", {sum(summary.matched.values()):,} matches"
    if summary.skipped:
        line += f"; {len(summary.skipped)} were done before"
    printing.result(
        {
            "matched": [
                {"first": first, "second": second, "matches": count}
                for (first, second), count in summary.matched.items()
            ],
            "skipped": summary.skipped,
            "output": str(output),
        },
        f"{line}: {output}",
    )
