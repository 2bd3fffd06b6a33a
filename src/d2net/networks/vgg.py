"""The paper's network: VGG-16, its detector and its descriptors (Dusmanu et al., CVPR 2019)."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from d2net.geometry.coordinates import EXTRACTION_CELLS, SHALLOW_CELLS, GridMap
from d2net.networks.base import Detections, Detector, Grid, Maps, Network, View
from d2net.networks.catalogue import CAFFE, Normalisation
from d2net.networks.detection import MIN_RISE, MIN_RISE_ORIGINAL, detect, soft_scores
from d2net.networks.sampling import resample, sample
from d2net.networks.vgg_backbone import (
    EXTRACTION_STRIDE,
    MIN_SIDE,
    RECEPTIVE_FIELD,
    VGG16_STAGES,
    VGGBackbone,
)
from d2net.settings import DescriptorType

WHITENING_INPUTS = 2 * VGG16_STAGES[-1][-1] + VGG16_STAGES[-2][-1]
"""Length of a descriptor before whitening: deep map, shallow map, and context in the deep map."""

SHALLOW_WEIGHT = 0.8
"""Length of the shallow map's part of a fused descriptor. The deep map's part has length 1."""

_CONTEXT = (-7 / 3, 0.0, 7 / 3)
"""Offsets in cells along either axis. Samples of the deep map at all nine pairs of offsets stand
for the mean of the 7 x 7 cells (28 px) around a position."""

_DEEP_UNCERTAINTY = 1.5
"""Standard deviation per axis of a detection at level 1, in pixels. It grows with the square root
of the scale. Measured as the median absolute deviation, over sqrt 2, of right matches under random
homographies with photometric change: 1.2 px at scale 0.5, 1.4 to 1.6 at 1, 2.1 to 2.4 at 2."""


class Whitening(nn.Module):
    """A linear map of descriptors to the directions that tell places apart.

    Linear discriminant analysis; for local features: Mikolajczyk and Matas, "Improving descriptors
    for fast tree matching by optimal linear projection", ICCV 2007. `training.whitening` learns the
    map in closed form. `weight` is D x `WHITENING_INPUTS` float32, and `bias` D float32.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)

    def forward(self, descriptors: Tensor) -> Tensor:
        """N x `WHITENING_INPUTS` to N x D, float32; not normalised."""
        return descriptors @ self.weight.T + self.bias


class VGG(Network):
    """VGG-16 to conv4_3 at stride 4, with D2-Net's detector.

    Its maps are the deep map (conv4_3, B x h x w x C) and the shallow map (conv3_3, B x (h + 1) x
    (w + 1) x C'), both after the ReLU. Without a `backbone` it is untrained. `normalisation` is
    that of the photos that the backbone was trained with, and `whitening` that of descriptors.
    """

    grid = Grid(
        stride=EXTRACTION_STRIDE,
        first_centre=EXTRACTION_CELLS.x.shift,
        receptive_field=RECEPTIVE_FIELD,
        alignment=EXTRACTION_STRIDE,
        min_side=MIN_SIDE,
    )
    cells_per_tile = 130_000  # 266 MB at 512 channels in float32: 1600 x 1200 pixels are one tile

    def __init__(
        self,
        backbone: VGGBackbone | None = None,
        normalisation: Normalisation = CAFFE,
        whitening: Whitening | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone or VGGBackbone()
        self.normalisation = normalisation
        self.whitening = whitening

    @property
    def descriptor_lengths(self) -> dict[DescriptorType, int]:
        """Length of each type of descriptor that these weights can make, the default first."""
        deep, shallow = self.backbone.channels, self.backbone.shallow_channels
        lengths: dict[DescriptorType, int] = {"fused": deep + shallow, "plain": deep, "root": deep}
        if self.whitening is None:
            return lengths
        return {"whitened": len(self.whitening.bias), **lengths}

    def compute_maps(
        self, images: Tensor, dtype: torch.dtype, statistics: Tensor | None = None
    ) -> Maps:
        """The deep map and the shallow map of a batch of images."""
        x = self.normalisation(images.permute(0, 3, 1, 2).float()).to(dtype)
        if not torch.compiler.is_exporting():
            return self.backbone.extract(x)
        names, last = self.backbone.names, len(self.backbone.stages[-1])
        shallow = self.backbone.layers(x, names[:-last], EXTRACTION_STRIDE)
        deep = self.backbone.layers(shallow, names[-last:], EXTRACTION_STRIDE)
        return F.relu(deep).permute(0, 2, 3, 1), F.relu(shallow).permute(0, 2, 3, 1)

    def detector(self, *, original: bool) -> Detector:
        """D2-Net's detector."""
        return DeepDetector(original)

    def describe(self, maps: Maps, positions: Tensor, descriptor: DescriptorType) -> Tensor:
        """Descriptors at any positions of an image; positions outside a map count as on its border.

        plain: the deep map, L2-normalised (D2-Net, section 3). root: its square root, normalised
        again, so that no strong channel outvotes the others (as RootSIFT: Arandjelovic and
        Zisserman, CVPR 2012). fused: root of the deep and of the shallow map, which has a smaller
        receptive field and sharper positions. whitened: both, and the root of the deep map's mean
        around the position, reduced by the whitening. Zero maps give zeros in the other types.
        """
        deep, shallow = maps
        plain = F.normalize(sample(deep, EXTRACTION_CELLS.inverse()(positions)), dim=1)
        if descriptor == "plain":
            return plain
        if descriptor == "root":
            return _root(plain)
        if descriptor == "fused":
            of_shallow = F.normalize(sample(shallow, SHALLOW_CELLS.inverse()(positions)), dim=1)
            parts = [_root(plain), SHALLOW_WEIGHT * _root(of_shallow)]
            return F.normalize(torch.cat(parts, dim=1), dim=1)
        assert self.whitening is not None  # noqa: S101 (`resolve` has refused it otherwise)
        return F.normalize(self.whitening(self.describe_unwhitened(maps, positions)), dim=1)

    def describe_unwhitened(self, maps: Maps, positions: Tensor) -> Tensor:
        """N x `WHITENING_INPUTS`: the roots of the deep map, shallow map and context."""
        deep, shallow = maps
        cells = EXTRACTION_CELLS.inverse()(positions)
        of_shallow = sample(shallow, SHALLOW_CELLS.inverse()(positions))
        samples = [sample(deep, cells), of_shallow, sample(deep, cells, _CONTEXT)]
        parts = [_root(F.normalize(part, dim=1)) for part in samples]
        return F.normalize(torch.cat(parts, dim=1), dim=1)

    def score_map(self, maps: Maps) -> Tensor:
        """Soft detection scores (equations 4 to 7), h x w; they sum to one."""
        return soft_scores(maps[0].permute(2, 0, 1)[None].float())[0]

    def add_coarser_level(
        self, maps: Maps, coarser: Maps, coarser_from_maps: GridMap, level: int, *, original: bool
    ) -> None:
        """Add the deep map of the coarser level (D2-Net, section 4.2).

        The release adds the maps. By default the result is the mean of all levels so far.
        """
        deep, added = maps[0], coarser[0]
        if not original:
            deep *= 1 / level
            added = added * (1 - 1 / level)
        resample(added, range(deep.shape[1]), range(deep.shape[2]), coarser_from_maps, out=deep)


def _root(descriptors: Tensor) -> Tensor:
    return F.normalize(descriptors.sqrt(), dim=1)


class DeepDetector:
    """D2-Net's detector: cells where the strongest channel has a local maximum are keypoints."""

    border = 0  # cells at the border of the map are no detections anyway

    def __init__(self, original: bool) -> None:
        self._original = original

    def detect(self, view: View) -> Detections:
        """All detections in the deep map of a view."""
        exact = self._original and view.dtype == torch.float32
        min_rise = MIN_RISE_ORIGINAL if exact else MIN_RISE
        found = detect(view.maps[0], original=self._original, min_rise=min_rise)
        # The release sums the maps of all levels and divides by the level's number. By default the
        # maps are means, weighted by the square root of the resolution: of the exponents tried, it
        # gives the most accurate matches of the best 500 (0.57 at 3 px; plain 0.52).
        factor = 1 / view.level if self._original else math.sqrt(view.factor)
        return replace(
            found,
            positions=EXTRACTION_CELLS(found.positions),
            scores=found.scores * factor,
            anchors=found.anchors * EXTRACTION_STRIDE + int(EXTRACTION_CELLS.x.shift),
        )

    def uncertainty(self, scales: Tensor) -> Tensor:
        """Standard deviation per axis of positions found at `scales`, in pixels of the photo."""
        return scales.sqrt() * _DEEP_UNCERTAINTY
