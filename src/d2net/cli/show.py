"""`d2net show`: look at a photo's keypoints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from d2net.cli import options
from d2net.config import ExtractionSettings


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

    from d2net.visualization import plot_keypoints

    features = model.extract(photo)
    plot_keypoints(
        photo,
        features,
        # Without keypoints the photo may be too small for a map.
        score_map=model.score_map(photo, **_limits(model.settings)) if len(features) else None,
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


def _limits(settings: ExtractionSettings) -> dict[str, int]:
    """Size limits for the score map: it is never tiled, and small in the picture anyway."""
    most = {"max_edge": 1600, "max_sum_edges": 2800}
    return {name: min(getattr(settings, name) or limit, limit) for name, limit in most.items()}
