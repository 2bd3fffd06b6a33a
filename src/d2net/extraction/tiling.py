"""Cutting the pyramid of a large photo into tiles that fit in memory.

A tile is a rectangle of the photo. At every level it owns the cells whose centres lie in it, so no
keypoint is lost or doubled at a seam. Maps are computed with a margin that is wide enough for all
that depends on neighbours: local maxima, sub-pixel samples, the map of the coarser level, and
suppression. So the result equals that of the whole photo. `find_keypoints` joins tiles.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from d2net.extraction.pyramid import Level, Window
from d2net.geometry.coordinates import AxisMap, Size

MARGIN = 8  # cells computed beyond those a tile owns, at each level


def tiles(size: Size, levels: Sequence[Level], cells_per_tile: int) -> Iterator[list[Window]]:
    """The windows of cells that each tile owns, one window per level.

    `size` is (width, height) of the photo, and `cells_per_tile` the limit for the finest level.
    """
    if not levels:
        return
    rows, cols = levels[-1].cells
    down = across = 1
    if rows * cols > cells_per_tile:  # as few tiles, and as square ones, as the limit allows
        side = max(math.isqrt(cells_per_tile) - 2 * MARGIN, 1)
        if rows <= side:
            across = math.ceil(cols / max(cells_per_tile // (rows + 2 * MARGIN) - 2 * MARGIN, 1))
        elif cols <= side:
            down = math.ceil(rows / max(cells_per_tile // (cols + 2 * MARGIN) - 2 * MARGIN, 1))
        else:
            down, across = math.ceil(rows / side), math.ceil(cols / side)
    bounds_y = [-math.inf, *(size[1] * i / down for i in range(1, down)), math.inf]
    bounds_x = [-math.inf, *(size[0] * i / across for i in range(1, across)), math.inf]
    for i in range(down):
        for j in range(across):
            yield [
                Window(
                    _owned(level.photo_from_cells.y, level.cells[0], bounds_y, i),
                    _owned(level.photo_from_cells.x, level.cells[1], bounds_x, j),
                )
                for level in levels
            ]


def _owned(photo_from_cells: AxisMap, size: int, bounds: Sequence[float], tile: int) -> range:
    """Cells along an axis whose centres lie between the bounds of a tile."""
    cells = map(photo_from_cells.inverse().of, bounds[tile : tile + 2])
    start, stop = (math.ceil(min(max(cell, 0), size)) for cell in cells)
    return range(start, stop)
