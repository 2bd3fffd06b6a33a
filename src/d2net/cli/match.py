"""`d2net match`: two photos to a picture, or a features file and pairs to a matches file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from d2net.cli import console, options
from d2net.errors import InputError


def match(
    photos: Annotated[
        list[Path] | None, typer.Argument(metavar="[A B]", help="Two photos.", show_default=False)
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Picture of two photos' matches (.png, .jpg), or matches file (.h5).",
            show_default="matches.png",
        ),
    ] = None,
    features: Annotated[
        Path | None, typer.Option(help="Match photos of this features file (.h5) instead.")
    ] = None,
    pairs: Annotated[
        Path | None, typer.Option(help="With --features: text file, two names a line.")
    ] = None,
    verify: options.Verify = "fundamental",
    threshold: options.Threshold = None,
    ratio: options.Ratio = None,
    min_similarity: options.MinSimilarity = None,
    original: options.Original = False,
    multiscale: options.Multiscale = False,
    max_keypoints: options.MaxKeypoints = None,
    score_threshold: options.ScoreThreshold = 0.0,
    max_edge: options.MaxEdge = 1600,
    max_sum_edges: options.MaxSumEdges = 2800,
    full_resolution: options.FullResolution = False,
    stored_orientation: options.StoredOrientation = False,
    weights: options.Weights = "default",
    device: options.Device = "cpu",
    precision: options.Precision = "float32",
    quiet: options.Quiet = False,
    json: options.Json = False,
) -> None:
    """Match two photos and draw the result, or many pairs from a features file.

    `d2net match A.jpg B.jpg` prints counts and writes matches.png.

    `d2net match --features F.h5 --pairs pairs.txt --output matches.h5` writes hloc's layout; of
    verified matches (the default) the inliers.
    """
    matching = {
        "verify": options.model_to_verify(verify),
        "threshold": threshold,
        "ratio": ratio,
        "min_similarity": min_similarity,
    }
    if features is not None:
        if photos or pairs is None or output is None:
            raise InputError(
                "with --features, give --pairs and --output, and no photos: "
                "d2net match --features F.h5 --pairs pairs.txt --output matches.h5"
            )
        _match_file(features, pairs, output, matching, device, quiet=quiet, json=json)
        return
    if len(photos or []) != 2 or pairs is not None:
        raise InputError(
            "give two photos (d2net match A.jpg B.jpg), or --features, --pairs and --output"
        )
    settings = options.extraction(
        original=original,
        multiscale=multiscale,
        max_keypoints=max_keypoints,
        score_threshold=score_threshold,
        max_edge=max_edge,
        max_sum_edges=max_sum_edges,
        full_resolution=full_resolution,
        stored_orientation=stored_orientation,
        precision=precision,
    )
    picture = output or Path("matches.png")
    result = _match_photos(photos or [], picture, matching, weights, device, settings)
    if json:
        console.print_json(result)
        return
    counts = " and ".join(f"{n:,}" for n in result["keypoints"])
    console.say(f"{counts} keypoints, {result['matches']:,} matches", quiet=quiet)
    if result["model"] is not None:
        share = result["inliers"] / max(result["matches"], 1)
        line = f"{result['inliers']:,} inliers ({share:.0%}) of a {result['model']} model"
        console.say(line, quiet=quiet)
    console.say(f"picture: {picture}", quiet=quiet)


def _match_photos(
    photos: list[Path],
    output: Path,
    matching: dict[str, Any],
    weights: str,
    device: str,
    settings: dict[str, Any],
) -> dict[str, Any]:
    from d2net import images, visualization
    from d2net.extraction.d2net import D2Net
    from d2net.matching import match

    model = D2Net.from_pretrained(weights, device=device, **settings)
    pixels = [images.to_pixels(path, upright=settings["upright"]) for path in photos]
    a, b = (model.extract(photo) for photo in pixels)
    found = match(a, b, **matching)
    visualization.plot_matches(
        *pixels, a, b, found, names=(photos[0].name, photos[1].name), output=output
    )
    return {
        "photos": [str(path) for path in photos],
        "keypoints": [len(a), len(b)],
        "matches": len(found),
        "model": found.model,
        "inliers": found.num_inliers if found.model else None,
        "matrix": None if found.matrix is None else found.matrix.tolist(),
        "picture": str(output),
    }


def _match_file(
    features: Path,
    pairs: Path,
    output: Path,
    matching: dict[str, Any],
    device: str,
    *,
    quiet: bool,
    json: bool,
) -> None:
    from d2net.formats.pairs import read_pairs
    from d2net.matching.folder import match_pairs

    wanted = read_pairs(pairs)
    with console.progress("matching", len(wanted), quiet=quiet or json) as advance:
        outcomes = match_pairs(
            features,
            wanted,
            output,
            device=device,
            report=lambda outcome: advance(f"{outcome.first}  {outcome.second}"),
            **matching,
        )
    if json:
        found = [{"first": o.first, "second": o.second, "matches": o.num_matches} for o in outcomes]
        console.print_json({"matched": found, "output": str(output)})
        return
    total = sum(outcome.num_matches for outcome in outcomes)
    console.say(f"{len(outcomes)} pairs matched, {total:,} matches: {output}", quiet=quiet)
