"""From the pixels of a photo to all its keypoints, as one graph that torch can export.

The same functions as in `extraction`, without what a graph cannot hold or does not need: tiles, a
pyramid, bands and Winograd. Which keypoints are kept is left to `runner`.
"""

from __future__ import annotations

import copy
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from d2net.extraction.corners import FRAME, detect_corners_at_once, to_grey
from d2net.extraction.d2net import D2Net
from d2net.extraction.detectors import CORNER_SCORE, PROPOSERS, Proposer, deviation
from d2net.geometry.coordinates import EXTRACTION_CELLS
from d2net.networks.detection import detect_everywhere
from d2net.networks.sampling import Form, describe
from d2net.networks.vgg import EXTRACTION_STRIDE
from d2net.settings import ExtractionSettings

INPUT = "image"
OUTPUTS = ("keypoints", "scores", "uncertainty", "kinds", "descriptors")


class Graph(nn.Module):
    """A model at one scale, for photos of at least 16 x 16 pixels at their own size.

    Args:
        model: its network and normalisation.
        settings: who proposes, what describes, and the network's precision.
    """

    def __init__(self, model: D2Net, settings: ExtractionSettings) -> None:
        super().__init__()
        self.dtype = getattr(torch, settings.precision)
        self.trunk = copy.deepcopy(model.trunk).to("cpu", self.dtype)
        self.normalisation = model.normalisation
        self.proposers = PROPOSERS[settings.detector or "both"]
        self.form = cast("Form", settings.descriptor)
        self.whitening = copy.deepcopy(model.whitening)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """All keypoints of a photo, each proposer's in its order.

        Args:
            image: H x W x 3, RGB, uint8.

        Returns:
            The `OUTPUTS`: N x 2 positions (x, y) in pixels, the centre of the top-left pixel being
            (0, 0); N scores; N standard deviations of the position in pixels; N int64, the
            proposer's number; and N x D descriptors of unit length. All else float32.
        """
        pixels = image.float()
        deep, shallow = self._maps(pixels)
        # Of a photo without contrast the network sees only the zeros around it.
        varied = (image != image[:1, :1]).any()
        found = [self._propose(proposer, pixels, deep, varied) for proposer in self.proposers]
        keypoints, scores, uncertainty = (torch.cat(part) for part in zip(*found, strict=True))
        kinds = [
            torch.full_like(part[1], number, dtype=torch.int64) for number, part in enumerate(found)
        ]
        positions = EXTRACTION_CELLS.inverse()(keypoints)
        descriptors = describe(deep, shallow, positions, self.form, self.whitening)
        return keypoints, scores, uncertainty, torch.cat(kinds), descriptors

    def _maps(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """The deep and the shallow map at stride 4 after their ReLUs, h x w x C."""
        images = self.normalisation(pixels.permute(2, 0, 1)[None]).to(self.dtype)
        names, last = self.trunk.names, len(self.trunk.stages[-1])
        shallow = self.trunk.layers(images, names[:-last], EXTRACTION_STRIDE)
        deep = self.trunk.layers(shallow, names[-last:], EXTRACTION_STRIDE)
        return F.relu(deep)[0].permute(1, 2, 0), F.relu(shallow)[0].permute(1, 2, 0)

    @staticmethod
    def _propose(
        proposer: Proposer, pixels: Tensor, deep: Tensor, wanted: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Positions in pixels, scores and deviations; none where they are not wanted."""
        if proposer == "corner":
            corners = detect_corners_at_once(to_grey(pixels))
            height, width = pixels.shape[:2]
            keep = (corners.rows >= FRAME) & (corners.rows < height - FRAME)
            keep &= (corners.cols >= FRAME) & (corners.cols < width - FRAME)
            keep &= wanted
            positions, scores = corners.positions[keep], corners.scores[keep] * CORNER_SCORE
        else:
            passed, cells = detect_everywhere(deep)
            cells = cells[passed & cells.located & wanted]
            positions, scores = EXTRACTION_CELLS(cells.positions), cells.values
        return positions, scores, deviation(proposer, torch.ones_like(scores))
