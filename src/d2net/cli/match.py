"""`d2net match`: two photos to a picture, or a features file and pairs to a matches file."""

from __future__ import annotations

from pathlib import Path

import typer

from d2net.cli import console, options
from d2net.cli.outputs import check_output
from d2net.errors import InputError
from d2net.wording import count


def match(
    photos: list[Path] | None = None,
    *,
    output: Path | None = None,
    features: Path | None = None,
    pairs: Path | None = None,
    refine: bool = False,
    lines: int = 100,
    cluster: str | None = None,
    printing: options.Printing,
    matching: options.Matching,
    extraction: options.Extraction,
) -> None:
    """Match two photos, or many pairs of photos.

    `d2net match A.jpg B.jpg` says whether both photos show the same place and writes matches.png.
    The exit code is 1 if there is no evidence that they do.

    `d2net match --features F.h5 --pairs pairs.txt --output M.h5` writes inliers in hloc's layout
    (all matches with `--verify none`). Run the same command again to resume an interrupted run.

    Options:
        photos A B: Two photos.
        output FILE: Two photos: picture (png, jpg) or table of the matches (npz, csv, json);
            default: matches.png. With --features: the matches file (h5).
        features FILE: Match photos of this features file (h5).
        pairs FILE: With --features: text file with two names per line.
        refine: Two photos: align the patches around verified matches, and move the keypoints of
            the second photo to where they fit.
        lines N: Two photos: draw at most N lines.
    """
    if refine and (features is not None or matching.verify == "none"):
        raise InputError(
            "--refine needs two photos and verified matches: it moves keypoints for one pair, but "
            "a features file stores one position for all pairs"
        )
    if features is not None and extraction != options.Extraction(device=extraction.device):
        raise InputError(
            "the features in --features are already extracted, so options such as --weights and "
            "--turns have no effect here: give them to d2net extract"
        )
    if features is not None and pairs is not None and output is not None and not photos:
        _match_file(features, pairs, output, matching, extraction.device, cluster, printing)
        return
    if not photos or len(photos) != 2 or (features, pairs, cluster) != (None, None, None):
        raise InputError(
            "give two photos (d2net match A.jpg B.jpg), or a features file "
            "(d2net match --features F.h5 --pairs pairs.txt --output M.h5)"
        )
    output = output or Path("matches.png")
    from d2net.geometry.significance import VERDICT_TEXT
    from d2net.io.match_tables import MATCH_TABLES, is_match_table, write_matches
    from d2net.matching import match as match_photos
    from d2net.matching import refine as refinement
    from d2net.matching import verification
    from d2net.visualization import plot_matches

    as_table = output.suffix.lower() in MATCH_TABLES
    check_output(output, *photos, is_own=is_match_table if as_table else None)
    first, second = photos
    model = extraction.model(printing)
    upright = model.settings.upright
    a, b = model.extract(first, turns=1), model.extract(second)  # it is enough to turn one photo
    matches = match_photos(a, b, **matching.arguments())
    if refine and matching.verify != "none":
        a, b = refinement.refine(a, b, matches, first, second, upright=upright)
        matches = verification.verify(a, b, matches, matching.verify, threshold=matching.threshold)
    if as_table:
        write_matches(output, a, b, matches)
    else:
        plot_matches(first, second, a, b, matches, upright=upright, lines=lines, output=output)
    line = f"{len(a):,} and {count(len(b), 'keypoint')}, {count(len(matches), 'match')}"
    if matches.verdict is not None:
        share = matches.num_inliers / max(len(matches), 1)
        inliers = count(matches.num_inliers, "inlier")
        fitted = "homography" if matches.model == "homography" else f"{matches.model} matrix"
        line += f", {inliers} ({share:.0%}) of a {fitted}"
        line = f"{VERDICT_TEXT[matches.verdict]}: {line}, significance {matches.significance:.1f}"
    printing.result(
        {
            "photos": [str(first), str(second)],
            "verdict": matches.verdict,
            "significance": matches.significance,
            "keypoints": [len(a), len(b)],
            "matches": len(matches),
            "model": matches.model,
            "inliers": None if matches.inliers is None else matches.num_inliers,
            "matrix": None if matches.matrix is None else matches.matrix.tolist(),
            "output": str(output),
        },
        f"{line}: {output}",
    )
    if matches.verdict == "none":
        raise typer.Exit(console.PARTLY_FAILED)


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
    from d2net.io.h5 import MatchFile
    from d2net.io.pair_lists import read_pairs
    from d2net.matching.match_pairs import match_pairs

    check_output(output, features, is_own=MatchFile)
    listed = read_pairs(pairs)
    device = options.find_device(device, printing)
    with progress.shown(printing) as report:
        summary = match_pairs(
            features,
            listed,
            output,
            device=device,
            cluster=cluster,
            progress=report,
            **matching.arguments(),
        )
    line = f"{count(len(summary.matched), 'pair')} matched"
    line += f", {count(sum(summary.matched.values()), 'match')}"
    if summary.skipped:
        line += f"; {len(summary.skipped)} matched before"
    if summary.num_others:
        line += f"; {count(summary.num_others, 'pair')} of earlier lists kept"
    printing.result(
        {
            "matched": [
                {"first": first, "second": second, "matches": matches}
                for (first, second), matches in summary.matched.items()
            ],
            "skipped": summary.skipped,
            "other_pairs": summary.num_others,
            "output": str(output),
        },
        f"{line}: {output}",
    )
