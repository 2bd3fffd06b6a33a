"""Plots of the HTML report: curves over thresholds, and pairs of photos with their matches."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from d2net.errors import needs_package
from d2net.evaluation.results import Drawing, Result
from d2net.visualization import plot_points

_GREY = "#7d848c"  # readable on white and on black
_STYLE: Any = {
    "svg.hashsalt": "d2net",  # equal plots give equal bytes
    "svg.fonttype": "none",
    "text.parse_math": False,
    **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), _GREY),
    "axes.facecolor": "none",
    **{f"axes.spines.{side}": False for side in ("left", "right", "top", "bottom")},
    "axes.grid": True,
    "grid.alpha": 0.3,
    "legend.frameon": False,
}
_MARKERS = "os^Dv*"

_PAIR_WIDTH = 1000  # pixels, of a picture of two photos
_JPEG_QUALITY = 60


def check_matplotlib() -> None:
    """Raise MissingPackageError if matplotlib is not installed."""
    with needs_package("the plots of a report need matplotlib", "plot"):
        import matplotlib  # noqa: F401


def curves(results: Sequence[Result], groups: Sequence[str]) -> str:
    """Plot the curve of methods on one protocol, with a panel for each group.

    Returns an SVG picture as a data URI; "" without a curve.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    curve = results[0].curve
    if curve is None:
        return ""
    names = [curve.metric(threshold).name for threshold in curve.thresholds]
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(3.7 * len(groups), 3.4 + 0.25 * len(results)))
        panels = figure.subplots(1, len(groups), sharey=True, squeeze=False)[0]
        for axes, group in zip(panels, groups, strict=True):
            for i, result in enumerate(results):
                figures = result.groups.get(group, {})
                values = [figures.get(name, np.nan) for name in names]
                axes.plot(curve.thresholds, values, f"C{i}", marker=_MARKERS[i % 6], markersize=4)
            axes.set_title(group)
            axes.set_xlabel("threshold (px)")
            axes.set_ylim(0, 1)
        panels[0].set_ylabel(curve.name)
        figure.legend(panels[0].lines, [result.method for result in results], loc="lower center")
        figure.subplots_adjust(left=0.6 / figure.get_figwidth(), right=0.97, wspace=0.12)
        figure.subplots_adjust(bottom=(0.75 + 0.25 * len(results)) / figure.get_figheight())
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
        return _data_uri(buffer, "svg+xml")


def draw_pair(first: Path, second: Path, drawing: Drawing) -> str:
    """Both photos side by side with their matches: a JPEG picture as a data URI."""
    points = drawing.points_a, drawing.points_b
    picture = plot_points((first, second), points, drawing.correct, max_width=_PAIR_WIDTH)
    buffer = io.BytesIO()
    picture.save(buffer, "jpeg", quality=_JPEG_QUALITY)
    return _data_uri(buffer, "jpeg")


def _data_uri(buffer: io.BytesIO, media_type: str) -> str:
    encoded = base64.b64encode(buffer.getvalue()).decode("ascii")
    return f"data:image/{media_type};base64,{encoded}"
