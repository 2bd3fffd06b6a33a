"""The interface of all networks: maps on a grid, keypoints in them, descriptors at any position.

Positions are (x, y) in pixels of the input image; the centre of its top-left pixel is (0, 0).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn

from d2net.errors import InputError
from d2net.geometry.coordinates import GridMap
from d2net.settings import DescriptorType, ExtractionSettings

Maps = tuple[Tensor, ...]
"""The dense maps of a network. The first dimension is the batch; for one photo it is left out."""


@dataclass(frozen=True)
class Grid:
    """The cells of a network's map along either axis of its input image.

    Attributes:
        stride: pixels from one cell to the next.
        first_centre: pixel at which cell 0 is centred; cell c is centred at
            stride * c + first_centre.
        receptive_field: cell c depends on pixels stride * c + receptive_field[0] to
            stride * c + receptive_field[1] and on no others.
        alignment: a part of an image gives the same cells as the whole image if it starts at a
            multiple of this many pixels.
        min_side: shortest side of an image that has a cell.
    """

    stride: int
    first_centre: float
    receptive_field: tuple[int, int]
    alignment: int
    min_side: int

    def cells(self, side: int) -> int:
        """The number of cells along a side of `side` pixels."""
        return max((side - self.min_side) // self.stride + 1, 0)


@dataclass(frozen=True)
class Detections:
    """Keypoints that a detector found in one view, N rows.

    Attributes:
        positions: N x 2 float32 (x, y) in pixels of the view, to a fraction of a pixel.
        scores: N float32, larger is better.
        anchors: N x 2 int64 (x, y), the pixel of the detection, which decides on its tile.
        channels: N int64, the channel of the map of the detection; zero without channels.
        located: N bool, False where the sub-pixel position is outside of its cell or not described.
    """

    positions: Tensor
    scores: Tensor
    anchors: Tensor
    channels: Tensor
    located: Tensor

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, rows: Tensor) -> Detections:
        return Detections(*(getattr(self, item.name)[rows] for item in fields(self)))


@dataclass(frozen=True)
class View:
    """A part of one pyramid level of one photo.

    Attributes:
        pixels: H x W x 3, RGB, 0..255, uint8 or float32.
        maps: the network's maps of these pixels.
        level: number of the level from 1, the coarsest.
        factor: size of the level relative to the photo.
        dtype: precision in which the network computed the maps.
    """

    pixels: Tensor
    maps: Maps
    level: int
    factor: float
    dtype: torch.dtype


class Detector(Protocol):
    """Finds keypoints in a view.

    Attributes:
        border: width in pixels of the border of a level in which detections are dropped.
    """

    border: int

    def detect(self, view: View) -> Detections:
        """All keypoints of a view, in any order."""
        ...

    def uncertainty(self, scales: Tensor) -> Tensor:
        """Standard deviation per axis of positions in pixels of the photo.

        `scales`: N float32, 1 / factor of the level that each was found at.
        """
        ...


class Network(nn.Module, ABC):
    """A network that detects and describes.

    Attributes:
        grid: the cells of its maps.
        cells_per_tile: the largest map that is computed at once.
    """

    grid: ClassVar[Grid]
    cells_per_tile: ClassVar[int]

    @property
    @abstractmethod
    def descriptor_lengths(self) -> dict[DescriptorType, int]:
        """Length of each type of descriptor that these weights can make, the default first."""

    def statistics(self, photos: Tensor) -> Tensor:
        """B x K numbers of whole photos (B x H x W x 3) that the maps of a part also need."""
        return photos.new_empty(len(photos), 0, dtype=torch.float32)

    @abstractmethod
    def compute_maps(
        self, images: Tensor, dtype: torch.dtype, statistics: Tensor | None = None
    ) -> Maps:
        """The dense maps of a batch of images, B x H x W x 3, RGB, 0..255, uint8 or float32.

        `dtype` is the precision of the computation. `statistics` are those of the whole photos that
        contain the images; None: the images are whole photos.
        """

    @abstractmethod
    def detector(self, *, original: bool) -> Detector:
        """The network's own detector; an InputError if it cannot detect as the 2019 release did."""

    @abstractmethod
    def describe(self, maps: Maps, positions: Tensor, descriptor: DescriptorType) -> Tensor:
        """Descriptors, N x D float32 of unit length, at any positions of one image.

        The positions are N x 2 float32 (x, y) in its pixels. `descriptor` is one of
        `descriptor_lengths`.
        """

    @abstractmethod
    def score_map(self, maps: Maps) -> Tensor:
        """Detection scores of the cells of one image, h x w float32, for display."""

    def add_coarser_level(
        self, maps: Maps, coarser: Maps, coarser_from_maps: GridMap, level: int, *, original: bool
    ) -> None:
        """Add the maps of the coarser pyramid level to those of the next one, in place.

        `coarser_from_maps` maps cells of `maps` to cells of `coarser`. `level` is the number of the
        level of `maps` from 1, the coarsest. `original` adds as the 2019 release does.
        """

    def resolve(self, settings: ExtractionSettings) -> ExtractionSettings:
        """Settings with the network's defaults; InputError if it cannot make the descriptors."""
        if settings.original:
            self.detector(original=True)
        available = self.descriptor_lengths
        descriptor = settings.descriptor or (
            "plain" if settings.original else next(iter(available))
        )
        if descriptor not in available:
            raise InputError(
                f"these weights have no descriptors of type {descriptor!r}, only "
                f"{', '.join(available)}: choose one of these, or other weights"
            )
        return settings.updated(descriptor=descriptor)
