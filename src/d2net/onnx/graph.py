"""From the pixels of a photo to all its keypoints, as one graph that torch can export.

The graph uses the same detectors and descriptors as `extraction`, at one scale and without tiles.
`runner` selects the keypoints.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from d2net.extraction.d2net import D2Net
from d2net.extraction.keypoints import detectors
from d2net.networks.base import View
from d2net.settings import DescriptorType, ExtractionSettings

INPUT = "image"
OUTPUTS = ("keypoints", "scores", "uncertainty", "detectors", "descriptors")


class Graph(nn.Module):
    """A model at one scale, for photos of at least 16 x 16 pixels at their own size.

    Args:
        model: its network.
        settings: resolved; detector, descriptor and precision are used.
    """

    def __init__(self, model: D2Net, settings: ExtractionSettings) -> None:
        super().__init__()
        self.dtype = getattr(torch, settings.precision)
        self.network = copy.deepcopy(model.network).to("cpu")
        for module in self.network.modules():
            if isinstance(module, nn.Conv2d):
                module.to(self.dtype)
        self.detectors = detectors(self.network, settings)
        assert settings.descriptor is not None  # noqa: S101 (resolved)
        self.descriptor: DescriptorType = settings.descriptor

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """All keypoints of a photo, one detector's after the other's.

        Args:
            image: H x W x 3, RGB, uint8.

        Returns:
            The `OUTPUTS`: N x 2 positions (x, y) in pixels, the centre of the top-left pixel being
            (0, 0); N scores; N standard deviations of the position in pixels; N int64, the number
            of the detector; and N x D descriptors of unit length. All others are float32.
        """
        pixels = image.float()
        maps = tuple(part[0] for part in self.network.compute_maps(pixels[None], self.dtype))
        # On a constant image the network responds only to its own zero padding.
        varied = (image != image[:1, :1]).any()
        size = torch.tensor([image.shape[1], image.shape[0]])
        parts = []
        for number, detector in enumerate(self.detectors):
            found = detector.detect(View(pixels, maps, 1, 1.0, self.dtype))
            inside = (found.anchors >= detector.border) & (found.anchors < size - detector.border)
            found = found[found.located & inside.all(dim=1) & varied]
            uncertainty = detector.uncertainty(torch.ones_like(found.scores))
            parts.append((found.positions, found.scores, uncertainty, found.channels * 0 + number))
        positions, scores, uncertainty, numbers = (
            torch.cat(part) for part in zip(*parts, strict=True)
        )
        descriptors = self.network.describe(maps, positions, self.descriptor)
        return positions, scores, uncertainty, numbers, descriptors
