"""`d2net show`: look at a photo's keypoints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from d2net.cli import options


def show(
    *,
    photo: Annotated[Path, typer.Argument(show_default=False, help="A photo.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="The picture, png or jpg.")
    ] = Path("keypoints.png"),
    printing: options.Printing,
    extraction: options.Extraction,
) -> None:
    """Draw keypoints, their scales and the score map on a photo."""
    model = extraction.model(printing)

    from d2net.visualization import picture_path, plot_keypoints

    picture_path(output)
    features, scores = model.extract(photo), model.score_map(photo)
    plot_keypoints(
        photo,
        features,
        score_map=scores if scores.numel() else None,
        upright=model.settings.upright,
        output=output,
    )
    width, height = features.image_size
    printing.result(
        {
            "photo": str(photo),
            "image_size": [width, height],
            "keypoints": len(features),
            "picture": str(output),
        },
        f"{len(features):,} keypoints in {width} x {height} pixels: {output}",
    )
