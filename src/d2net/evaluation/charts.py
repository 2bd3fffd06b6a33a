"""Curves over thresholds, laid out for an SVG picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

WIDTH, HEIGHT = 420, 320
_LEFT, _RIGHT, _TOP, _BOTTOM = 42, 384, 12, 270  # edges of the plotting area
_LABEL_GAP = 11  # between the numbers of published lines
_TICK_GAP = 26


@dataclass(frozen=True)
class Tick:
    """A place on an axis and its label."""

    at: float
    text: str


@dataclass(frozen=True)
class Marker:
    """A point of a line, and what it says when pointed at."""

    x: float
    y: float
    text: str


@dataclass(frozen=True)
class Line:
    """A method's curve; `index` chooses colour and marker."""

    name: str
    index: int
    markers: tuple[Marker, ...]

    @property
    def points(self) -> str:
        """As SVG's polyline takes them."""
        return " ".join(f"{marker.x:g},{marker.y:g}" for marker in self.markers)


@dataclass(frozen=True)
class Reference:
    """A published curve, with its number at its right end."""

    line: Line
    label: Tick


@dataclass(frozen=True)
class Chart:
    """A plot of shares over thresholds."""

    title: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    lines: tuple[Line, ...]
    references: tuple[Reference, ...]
    width: int = WIDTH
    height: int = HEIGHT
    left: int = _LEFT
    right: int = _RIGHT
    top: int = _TOP
    bottom: int = _BOTTOM


def chart(
    title: str,
    thresholds: Sequence[float],
    curves: Mapping[int, tuple[str, Sequence[float]]],
    references: Mapping[int, tuple[str, Sequence[float]]],
) -> Chart:
    """Lay out curves.

    Args:
        title: the group.
        thresholds: in ascending order.
        curves: index of the method -> its name and values.
        references: number of the published row -> its name and values.
    """
    low, high = thresholds[0], thresholds[-1]
    largest = max((max(values) for _, values in curves.values()), default=1.0)
    top = 1.0 if largest <= 1 else largest

    def x(threshold: float) -> float:
        return round(_LEFT + (_RIGHT - _LEFT) * (threshold - low) / ((high - low) or 1), 1)

    def y(value: float) -> float:
        return round(_BOTTOM - (_BOTTOM - _TOP) * value / top, 1)

    def line(index: int, name: str, values: Sequence[float]) -> Line:
        return Line(
            name,
            index,
            tuple(
                Marker(x(t), y(v), f"{name}: {v:.3f} at {t:g}")
                for t, v in zip(thresholds, values, strict=True)
            ),
        )

    drawn = [(n, line(n, *reference)) for n, reference in references.items()]
    places = _apart([published.markers[-1].y for _, published in drawn])
    return Chart(
        title,
        _x_ticks([(x(t), f"{t:g}") for t in thresholds]),
        tuple(Tick(y(top * i / 5), f"{top * i / 5:.3g}") for i in range(6)),
        tuple(line(index, *curve) for index, curve in curves.items()),
        tuple(
            Reference(published, Tick(at, str(n)))
            for (n, published), at in zip(drawn, places, strict=True)
        ),
    )


def _x_ticks(places: Sequence[tuple[float, str]]) -> tuple[Tick, ...]:
    """Labels that do not touch each other."""
    ticks: list[Tick] = []
    for at, text in places:
        if not ticks or at - ticks[-1].at >= _TICK_GAP:
            ticks.append(Tick(at, text))
    return tuple(ticks)


def _apart(heights: Sequence[float]) -> list[float]:
    """Heights moved so far that labels there do not overlap, in the order of the lines' ends."""
    if not heights:
        return []
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    moved = list(heights)
    for before, after in pairwise(order):
        moved[after] = max(moved[after], moved[before] + _LABEL_GAP)
    limit: float = _BOTTOM
    drift = min((sum(moved) - sum(heights)) / len(heights), moved[order[0]] - _TOP)
    for i in reversed(order):  # as far up as down, and none beyond the plot
        moved[i] = min(moved[i] - drift, limit)
        limit = moved[i] - _LABEL_GAP
    return [round(value, 1) for value in moved]
