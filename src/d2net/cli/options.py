"""Options that several commands share, defined once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

Weights = Annotated[
    str, typer.Option(help="Name that `d2net weights` lists, or a file.", show_default=True)
]
Device = Annotated[str, typer.Option(help="Where the network runs: cpu, cuda, cuda:1, mps.")]
Precision = Annotated[
    str, typer.Option(help="Of the network: float32, bfloat16, or float16 (GPU).")
]
Original = Annotated[
    bool, typer.Option("--original", help="Reproduce the 2019 release, faults included.")
]
Multiscale = Annotated[
    bool, typer.Option("--multiscale", help="Detect at 0.5, 1 and 2 times the photo's size.")
]
MaxKeypoints = Annotated[
    int | None, typer.Option(min=1, help="Keep this many, the best by score.", show_default="all")
]
ScoreThreshold = Annotated[float, typer.Option(min=0, help="Keep keypoints with this score.")]
MaxEdge = Annotated[
    int, typer.Option(min=1, help="Photos with a longer edge are reduced (pixels).")
]
MaxSumEdges = Annotated[
    int, typer.Option(min=1, help="Photos with a larger sum of edges are reduced (pixels).")
]
FullResolution = Annotated[
    bool, typer.Option("--full-resolution", help="No size limits; large photos go in tiles.")
]
StoredOrientation = Annotated[
    bool, typer.Option("--stored-orientation", help="Do not turn photos as their EXIF data say.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document, for machines.")]
Verify = Annotated[
    str, typer.Option(help="Model to verify matches with: fundamental, homography, or none.")
]
Threshold = Annotated[
    float | None,
    typer.Option(min=0, help="Largest error of an inlier (pixels).", show_default="by uncertainty"),
]
Ratio = Annotated[
    float | None,
    typer.Option(min=0, max=1, help="Ratio test. D2-Net is best without.", show_default="none"),
]
MinSimilarity = Annotated[
    float | None,
    typer.Option(min=-1, max=1, help="Least cosine of a match.", show_default="none"),
]
Photo = Annotated[Path, typer.Argument(show_default=False, help="A photo.")]


def extraction(
    *,
    original: bool,
    multiscale: bool,
    max_keypoints: int | None,
    score_threshold: float,
    max_edge: int,
    max_sum_edges: int,
    full_resolution: bool,
    stored_orientation: bool,
    precision: str,
) -> dict[str, Any]:
    """Fields of `ExtractionSettings` from the options above."""
    return {
        "original": original,
        "multiscale": multiscale,
        "max_keypoints": max_keypoints,
        "score_threshold": score_threshold,
        "max_edge": None if full_resolution else max_edge,
        "max_sum_edges": None if full_resolution else max_sum_edges,
        "upright": not stored_orientation,
        "precision": precision,
    }


def model_to_verify(name: str) -> Any:  # noqa: ANN401 (a Literal, known without importing cv2)
    """The model that --verify names, None for none."""
    from d2net.errors import InputError

    if name not in ("fundamental", "homography", "none"):
        raise InputError(f"--verify must be fundamental, homography or none, not {name!r}")
    return None if name == "none" else name
