"""Plots of the HTML report: curves over thresholds, and pairs of photos with their matches."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from d2net.errors import MissingPackageError
from d2net.evaluation.results import Drawing, Result
from d2net.geometry import coordinates
from d2net.io.images import resize, to_pixels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CORRECT, WRONG = "#2f9bff", "#ff6a1f"  # distinct for colour-blind people too
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

_PAIR_WIDTH, _PAIR_HEIGHT, _GAP = 1000, 420, 6  # of a picture in pixels, at most
_MAX_LINES = 200  # more cannot be told apart
_DPI = 100
_JPEG_QUALITY = 60


def check_matplotlib() -> None:
    """Raise MissingPackageError if matplotlib is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise MissingPackageError(
            "the plots of a report need matplotlib: pip install 'd2net[plot]'"
        ) from error


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
        methods = [result.method for result in results]
        figure.legend(panels[0].lines, methods, loc="lower center")
        figure.subplots_adjust(left=0.6 / figure.get_figwidth(), right=0.97, wspace=0.12)
        figure.subplots_adjust(bottom=(0.75 + 0.25 * len(results)) / figure.get_figheight())
        return _data_uri(figure, "svg+xml", transparent=True, metadata={"Date": None})


def draw_pair(first: Path, second: Path, drawing: Drawing) -> str:
    """Both photos side by side, with correct matches in blue and wrong ones in orange.

    At most about 200 matches are drawn, the same share of the correct and of the wrong ones.

    Returns:
        A JPEG picture as a data URI.
    """
    from matplotlib.collections import LineCollection
    from matplotlib.figure import Figure

    photos = [to_pixels(path) for path in (first, second)]
    aspects = [photo.shape[1] / photo.shape[0] for photo in photos]
    height = min(_PAIR_HEIGHT, (_PAIR_WIDTH - _GAP) / sum(aspects))
    sizes = [(max(1, round(height * aspect)), max(1, round(height))) for aspect in aspects]
    canvas = np.full((sizes[0][1], sizes[0][0] + _GAP + sizes[1][0], 3), 128, np.uint8)
    ends = []
    for photo, size, points, left in zip(
        photos, sizes, (drawing.points_a, drawing.points_b), (0, sizes[0][0] + _GAP), strict=True
    ):
        canvas[:, left : left + size[0]] = np.rint(resize(photo, size))
        small_from_photo = coordinates.resize((photo.shape[1], photo.shape[0]), size)
        ends.append(small_from_photo(torch.from_numpy(points)).numpy() + np.array([left, 0]))
    figure = Figure(figsize=(canvas.shape[1] / _DPI, canvas.shape[0] / _DPI), dpi=_DPI)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.imshow(canvas, alpha=0.8)  # lines stand out from a paler photo
    axes.set_axis_off()
    share = min(1.0, _MAX_LINES / max(len(drawing.correct), 1))
    for correct, colour in ((False, WRONG), (True, CORRECT)):
        rows = np.flatnonzero(drawing.correct == correct)
        rows = rows[np.argsort(drawing.points_a[rows, 1], kind="stable")]  # spread by height
        rows = rows[np.linspace(0, len(rows) - 1, round(share * len(rows))).astype(int)]
        lines = np.stack([ends[0][rows], ends[1][rows]], axis=1)
        axes.add_collection(
            LineCollection([*lines], colors=colour, linewidths=0.8, alpha=0.65), autolim=False
        )
        x, y = lines.reshape(-1, 2).T
        axes.scatter(x, y, s=10, color=colour, linewidths=0)
    return _data_uri(figure, "jpeg", pil_kwargs={"quality": _JPEG_QUALITY})


def _data_uri(figure: Figure, media_type: str, **options: Any) -> str:  # noqa: ANN401
    buffer = io.BytesIO()
    figure.savefig(buffer, format=media_type.partition("+")[0], dpi=_DPI, **options)
    encoded = base64.b64encode(buffer.getvalue()).decode("ascii")
    return f"data:image/{media_type};base64,{encoded}"
