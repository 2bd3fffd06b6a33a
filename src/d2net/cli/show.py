"""`d2net show`: the keypoints of a photo."""

from __future__ import annotations

from pathlib import Path

from d2net.cli import options
from d2net.cli.outputs import check_output
from d2net.wording import count


def show(
    photo: Path,
    *,
    output: Path = Path("keypoints.png"),
    printing: options.Printing,
    extraction: options.Extraction,
) -> None:
    """Draw keypoints, their scales and the score map on a photo.

    Options:
        photo PHOTO: A photo.
        output FILE: The picture, png or jpg.
    """
    check_output(output, photo)
    model = extraction.model(printing)

    from d2net.visualization import plot_keypoints

    features, scores = model.extract(photo), model.score_map(photo)
    score_map = scores if scores.numel() else None
    upright = model.settings.upright
    plot_keypoints(photo, features, score_map=score_map, upright=upright, output=output)
    width, height = features.image_size
    printing.result(
        {
            "photo": str(photo),
            "image_size": [width, height],
            "keypoints": len(features),
            "picture": str(output),
        },
        f"{count(len(features), 'keypoint')} in {width} x {height} pixels: {output}",
    )
