"""`d2net show`: look at a photo's keypoints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from d2net.cli import console, options


def show(
    photo: options.Photo,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The picture (.png, .jpg).")
    ] = Path("keypoints.png"),
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
) -> None:
    """Draw keypoints, scales and the score map on a photo."""
    from d2net import images, visualization
    from d2net.extraction.d2net import D2Net

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
    model = D2Net.from_pretrained(weights, device=device, **settings)
    pixels = images.to_pixels(photo, upright=not stored_orientation)
    features = model.extract(pixels)
    visualization.plot_keypoints(
        pixels, features, score_map=model.score_map(pixels), name=photo.name, output=output
    )
    width, height = features.image_size
    console.say(f"{len(features):,} keypoints in {width} x {height} px: {output}", quiet=quiet)
