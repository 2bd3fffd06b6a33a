"""The multi-scale pyramid: where its levels lie in the photo, and the pixels of their windows.

D2-Net, section 4.2: the network runs on the photo at 0.5, 1 and 2 times its size. Everything is
computed for a window of cells, so whole photos and tiles take the same path.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from d2net.geometry import coordinates
from d2net.geometry.coordinates import GridMap, Size
from d2net.networks import sampling
from d2net.networks.base import Grid

PYRAMID = (0.5, 1.0, 2.0)


@dataclass(frozen=True)
class Window:
    """Cells of a level's map: half-open ranges of rows and columns."""

    rows: range
    cols: range

    def grown(self, margin: int, cells: tuple[int, int]) -> Window:
        """The window with `margin` more cells on every side, within a map of (rows, columns)."""

        def grow(r: range, size: int) -> range:
            return range(max(r.start - margin, 0), min(r.stop + margin, size))

        return Window(grow(self.rows, cells[0]), grow(self.cols, cells[1]))


@dataclass(frozen=True)
class Level:
    """One level of the pyramid.

    Attributes:
        number: from 1, the coarsest.
        factor: size relative to the photo that enters the pyramid.
        size: (width, height) of the level's image.
        cells: (rows, columns) of its map.
        level_from_photo: from pixels of the photo to pixels of the level's image, for resizing.
        photo_from_level: maps keypoints back to the photo; with `original` not its inverse.
        photo_from_cells: from cells to pixels of the photo.
        coarser_from_cells: from cells to cells of the level before; None at the first level.
    """

    number: int
    factor: float
    size: Size
    cells: tuple[int, int]
    level_from_photo: GridMap
    photo_from_level: GridMap
    photo_from_cells: GridMap
    coarser_from_cells: GridMap | None


def levels(size: Size, factors: tuple[float, ...], grid: Grid, *, original: bool) -> list[Level]:
    """The pyramid's levels for a photo of (width, height); levels without a cell are left out.

    `original` places levels and cells as the 2019 release did, otherwise at their true positions.
    """
    result: list[Level] = []
    level_from_cells = coordinates.pixels_from_cells(grid.stride, grid.first_centre)
    for factor in factors:
        level_size = (int(size[0] * factor), int(size[1] * factor))
        rows, cols = (grid.cells(side) for side in level_size[::-1])
        if rows == 0 or cols == 0:
            continue
        if original:
            level_from_photo = coordinates.resize_corners(size, level_size)
            misplaced = coordinates.ORIGINAL_EXTRACTION_CELLS.after(level_from_cells.inverse())
            photo_from_level = coordinates.resize_ratio(level_size, size).after(misplaced)
        else:
            level_from_photo = coordinates.resize(size, level_size)
            photo_from_level = level_from_photo.inverse()
        photo_from_cells = photo_from_level.after(level_from_cells)
        coarser_from_cells = None
        if result and original:
            coarser_size = result[-1].cells[::-1]
            coarser_from_cells = coordinates.resize_corners(coarser_size, (cols, rows)).inverse()
        elif result:
            coarser_from_cells = result[-1].photo_from_cells.inverse().after(photo_from_cells)
        result.append(
            Level(
                number=len(result) + 1,
                factor=factor,
                size=level_size,
                cells=(rows, cols),
                level_from_photo=level_from_photo,
                photo_from_level=photo_from_level,
                photo_from_cells=photo_from_cells,
                coarser_from_cells=coarser_from_cells,
            )
        )
    return result


@dataclass(frozen=True)
class Crop:
    """The pixels of a level on which a window of cells depends.

    Attributes:
        pixels: B x rows x cols x 3, RGB, 0..255, uint8 or float32.
        origin: (x, y) of the first pixel in the level's image.
        window: the cells of the maps of these pixels.
    """

    pixels: Tensor
    origin: tuple[int, int]
    window: Window


def crop_level(photos: Tensor, level: Level, window: Window, grid: Grid) -> Crop:
    """Cut out the pixels of a level on which a window of cells depends.

    `photos` are B x H x W x 3, RGB, 0..255, uint8 or float32.
    """
    spans, covered = [], []
    for cells, side in zip((window.rows, window.cols), level.size[::-1], strict=True):
        before, after = grid.receptive_field
        start = (grid.stride * cells.start + before) // grid.alignment * grid.alignment
        stop = grid.stride * (cells.stop - 1) + after + 1
        span = range(max(start, 0), min(stop, side))
        first = span.start // grid.stride
        spans.append(span)
        covered.append(range(first, first + grid.cells(len(span))))
    rows, cols = spans
    height, width = photos.shape[1:3]
    if level.size == (width, height):
        pixels = photos[:, rows.start : rows.stop, cols.start : cols.stop]
    else:
        photo_from_level = level.level_from_photo.inverse()

        def source(target: range, axis: coordinates.AxisMap, size: int) -> slice:
            low = math.floor(axis.of(target.start)) - 1
            high = math.ceil(axis.of(target.stop - 1)) + 2
            return slice(max(low, 0), min(high, size))

        from_rows = source(rows, photo_from_level.y, height)
        from_cols = source(cols, photo_from_level.x, width)
        part = photos[:, from_rows, from_cols].float()
        part_from_level = coordinates.crop(from_cols.start, from_rows.start).after(photo_from_level)
        pixels = sampling.resample(part, rows, cols, part_from_level)
    return Crop(pixels, (cols.start, rows.start), Window(*covered))
