"""The multi-scale pyramid: level images, summed maps and barred cells, on one geometry.

D2-Net, section 4.2: the network runs on the photo at 0.5, 1 and 2 times its size; the map of each
level is added, resized, to the next, and a level finds nothing where a coarser one already has.

A level knows how its cells lie in the photo. Everything is computed for a window of cells, so a
photo can be done in one piece or in tiles by the same code.

`original` places levels and cells as the 2019 release did (ORIGINAL rules of
`geometry.coordinates`); otherwise every grid is where it truly is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from d2net.geometry import coordinates
from d2net.geometry.coordinates import GridMap, Size
from d2net.networks import sampling
from d2net.networks.catalogue import Normalisation
from d2net.networks.vgg import EXTRACTION_STRIDE, RECEPTIVE_FIELD, Trunk

PYRAMID = (0.5, 1.0, 2.0)


@dataclass(frozen=True)
class Window:
    """Cells of a level's map: rows and columns as half-open ranges."""

    rows: range
    cols: range

    def grown(self, margin: int, cells: tuple[int, int]) -> Window:
        """The window with `margin` cells more on every side, inside a map of (rows, columns)."""

        def grow(r: range, size: int) -> range:
            return range(max(r.start - margin, 0), min(r.stop + margin, size))

        return Window(grow(self.rows, cells[0]), grow(self.cols, cells[1]))

    def __bool__(self) -> bool:
        return len(self.rows) > 0 and len(self.cols) > 0


@dataclass(frozen=True)
class Level:
    """One level of the pyramid.

    Attributes:
        number: from 1, the coarsest.
        factor: size relative to the photo that enters the pyramid.
        size: (width, height) of the level's image.
        cells: (rows, columns) of its map.
        level_from_photo: where the level's image takes its pixels from.
        photo_from_cells: where a position on the map lies in the photo.
        previous_from_cells: where a position on the map lies on the map of the level before.
    """

    number: int
    factor: float
    size: Size
    cells: tuple[int, int]
    level_from_photo: GridMap
    photo_from_cells: GridMap
    previous_from_cells: GridMap | None

    @property
    def whole(self) -> Window:
        """All cells of the level."""
        return Window(range(self.cells[0]), range(self.cells[1]))


def levels(size: Size, factors: tuple[float, ...], *, original: bool) -> list[Level]:
    """The pyramid's levels for a photo of (width, height)."""
    result: list[Level] = []
    for factor in factors:
        level_size = (int(size[0] * factor), int(size[1] * factor))
        rows, cols = (max(side // EXTRACTION_STRIDE - 1, 0) for side in level_size[::-1])
        if rows == 0 or cols == 0:
            continue  # too small for a single cell
        if original:
            level_from_photo = coordinates.resize_corners(size, level_size)
            photo_from_level = coordinates.resize_ratio(level_size, size)
            pixels_from_cells = coordinates.ORIGINAL_EXTRACTION_CELLS
        else:
            level_from_photo = coordinates.resize(size, level_size)
            photo_from_level = level_from_photo.inverse()
            pixels_from_cells = coordinates.EXTRACTION_CELLS
        photo_from_cells = photo_from_level.after(pixels_from_cells)
        previous_from_cells = None
        if result:
            before = result[-1]
            if original:
                previous_from_cells = coordinates.resize_corners(
                    before.cells[::-1], (cols, rows)
                ).inverse()
            else:
                previous_from_cells = before.photo_from_cells.inverse().after(photo_from_cells)
        result.append(
            Level(
                len(result) + 1,
                factor,
                level_size,
                (rows, cols),
                level_from_photo,
                photo_from_cells,
                previous_from_cells,
            )
        )
    return result


@dataclass(frozen=True)
class Crop:
    """The pixels of a level that a window of cells depends on.

    Attributes:
        pixels: B x rows x cols x 3, RGB, 0..255, float32.
        rows, cols: of the level's image.
    """

    pixels: Tensor
    rows: range
    cols: range


def level_crop(photo: Tensor, level: Level, window: Window) -> Crop:
    """What the maps of a window are made from.

    Args:
        photo: B x H x W x 3, RGB, 0..255, uint8 or float32.
        level: the level.
        window: cells to compute.
    """
    rows, cols = (
        _pixels_seen(cells, side)
        for cells, side in zip((window.rows, window.cols), level.size[::-1], strict=True)
    )
    return Crop(_level_pixels(photo, level, rows, cols), rows, cols)


def level_maps(
    trunk: Trunk, normalisation: Normalisation, crop: Crop, window: Window, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """The dense maps of one level in a window, as if cut out of the whole level's maps.

    Args:
        trunk: the network.
        normalisation: what its weights want.
        crop: the window's `level_crop`.
        window: cells to compute.
        dtype: precision of the network.

    Returns:
        The deep map, B x rows x cols x C, and the shallow one, B x (rows + 1) x (cols + 1) x C'.
    """
    both = trunk.extract_both(normalisation(crop.pixels.permute(0, 3, 1, 2)).to(dtype))
    top, left = (
        cells.start - span.start // EXTRACTION_STRIDE
        for cells, span in zip((window.rows, window.cols), (crop.rows, crop.cols), strict=True)
    )
    height, width = len(window.rows), len(window.cols)
    deep, shallow = (
        maps[:, top : top + height + more, left : left + width + more]
        for maps, more in zip(both, (0, 1), strict=True)
    )
    return deep, shallow


def _pixels_seen(cells: range, side: int) -> range:
    """Pixels that a range of cells depends on, within an image of `side` pixels.

    The range starts at a multiple of the stride, so that the pools of a window fall as those of
    the whole image.
    """
    before, after = RECEPTIVE_FIELD
    start = EXTRACTION_STRIDE * (cells.start + before // EXTRACTION_STRIDE)
    return range(max(start, 0), min(EXTRACTION_STRIDE * (cells.stop - 1) + after + 1, side))


def _level_pixels(photo: Tensor, level: Level, rows: range, cols: range) -> Tensor:
    """A window of the level's image, B x rows x cols x 3 float32."""
    width, height = photo.shape[2], photo.shape[1]
    if level.size == (width, height):
        return photo[:, rows.start : rows.stop, cols.start : cols.stop].float()
    photo_from_level = level.level_from_photo.inverse()

    def source(target: range, axis: coordinates.AxisMap, size: int) -> range:
        low = math.floor(axis.of(target.start)) - 1
        high = math.ceil(axis.of(target.stop - 1)) + 2
        return range(max(low, 0), min(high, size))

    from_rows = source(rows, photo_from_level.y, height)
    from_cols = source(cols, photo_from_level.x, width)
    part = photo[:, from_rows.start : from_rows.stop, from_cols.start : from_cols.stop].float()
    part_from_level = coordinates.crop(from_cols.start, from_rows.start).after(photo_from_level)
    return sampling.resample(part, rows, cols, part_from_level)


def add_previous(
    maps: Tensor,
    window: Window,
    previous: Tensor,
    previous_window: Window,
    level: Level,
    *,
    original: bool,
) -> Tensor:
    """Add the map of the level before, resized; in place.

    The release sums; the default takes the mean, so that values keep one scale over the levels.
    """
    assert level.previous_from_cells is not None  # noqa: S101 (for the type checker)
    crop = coordinates.crop(previous_window.cols.start, previous_window.rows.start)
    source_from_target = crop.after(level.previous_from_cells)
    if not original:
        weight = 1 / level.number
        maps *= weight
        previous = previous * (1 - weight)
    return sampling.resample(previous, window.rows, window.cols, source_from_target, out=maps)
