"""Keypoints of the network light, described by it and by a VGG."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from d2net.networks.base import Detector, Maps, Network
from d2net.networks.light import Light
from d2net.networks.vgg import VGG
from d2net.settings import DescriptorType


class Combined(Network):
    """Light detects, and the descriptors of both networks are concatenated.

    Its maps are those of light, then those of the VGG. Light's grid serves both: each of its cells
    covers two by two of the VGG's, and its receptive field contains the VGG's. The VGG describes
    with its default type of descriptor.
    """

    grid = Light.grid
    cells_per_tile = VGG.cells_per_tile // 4  # a cell of light is as large as four of the VGG

    def __init__(self, light: Light, vgg: VGG) -> None:
        super().__init__()
        self.light = light
        self.vgg = vgg

    @property
    def descriptor_lengths(self) -> dict[DescriptorType, int]:
        """Length of the one type of descriptor."""
        of_vgg = next(iter(self.vgg.descriptor_lengths.values()))
        return {"combined": self.light.widths.dimension + of_vgg}

    def statistics(self, photos: Tensor) -> Tensor:
        """The statistics that light needs."""
        return self.light.statistics(photos)

    def compute_maps(
        self, images: Tensor, dtype: torch.dtype, statistics: Tensor | None = None
    ) -> Maps:
        """The four maps of light and the two of the VGG."""
        of_light = self.light.compute_maps(images, dtype, statistics)
        return of_light + self.vgg.compute_maps(images, dtype)

    def detector(self, *, original: bool) -> Detector:
        """The detector of light."""
        return self.light.detector(original=original)

    def describe(self, maps: Maps, positions: Tensor, descriptor: DescriptorType) -> Tensor:
        """The descriptors of both networks, with equal weight."""
        of_vgg = next(iter(self.vgg.descriptor_lengths))
        parts = (
            self.light.describe(maps[:4], positions, "light"),
            self.vgg.describe(maps[4:], positions, of_vgg),
        )
        return F.normalize(torch.cat(parts, dim=1), dim=1)

    def score_map(self, maps: Maps) -> Tensor:
        """The score map of light."""
        return self.light.score_map(maps)
