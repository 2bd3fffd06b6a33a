"""The backbone as training sees it: layers that stay as they are, then layers that learn."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from d2net.networks.catalogue import Normalisation
from d2net.networks.vgg_backbone import VGGBackbone
from d2net.training.settings import TrainingSettings


class Learner(nn.Module):
    """A backbone of which the last layers learn.

    What comes before them is computed without a graph. Weights stay float32 and are rounded to the
    precision of the convolutions as they are used.

    Args:
        backbone: the network; its parameters are the learner's own.
        normalisation: what its weights want.
        settings: which layers learn, in which precision, and whether the start is remembered.
    """

    def __init__(
        self, backbone: VGGBackbone, normalisation: Normalisation, settings: TrainingSettings
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.normalisation = normalisation
        first = backbone.names.index(settings.layers[0])
        self.frozen, self.learning = backbone.names[:first], backbone.names[first:]
        self.stride = settings.stride
        self.dtype: torch.dtype = getattr(torch, settings.precision)
        backbone.requires_grad_(False)
        for name in self.learning:
            backbone.convolution(name).requires_grad_(True)
        self.start = copy.deepcopy(backbone).requires_grad_(False) if settings.retention else None
        for convolution in backbone.children():
            convolution.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Dense maps, and how far descriptors have moved.

        Args:
            images: N x H x W x 3, RGB, uint8.

        Returns:
            N x C x h x w before the ReLU, differentiable, in the settings' stride and precision;
            and the mean of 1 - cosine between each cell's descriptor and the one of the starting
            weights (0 where these are not remembered).
        """
        with torch.no_grad():
            # On a CPU one image at a time: its widest maps nearly fit into the cache.
            step = 1 if images.device.type == "cpu" else len(images)
            parts = [images[i : i + step] for i in range(0, len(images), step)]
            entered = torch.cat([self._frozen(part) for part in parts])
        maps = self.backbone.layers(entered, self.learning, self.stride)
        if self.start is None:
            return maps, maps.new_zeros((), dtype=torch.float32)
        with torch.no_grad():
            before = self.start.layers(entered, self.learning, self.stride)
        kept = F.cosine_similarity(maps.float(), before.float(), dim=1)
        return maps, (1 - kept).mean()

    def _frozen(self, images: Tensor) -> Tensor:
        # channels last, as they come: the layout in which convolutions are fast
        x = self.normalisation(images.permute(0, 3, 1, 2).float())
        x = x.to(self.dtype).contiguous(memory_format=torch.channels_last)
        return self.backbone.layers(x, self.frozen, self.stride)
