"""VGG-16 to conv4_3: one set of weights in two strides.

Simonyan and Zisserman, ICLR 2015, cut as in D2-Net (Dusmanu et al., CVPR 2019, section 3 and
section 4.1 "Feature extraction"):

- stride 8, for training: three 2x2 max pools;
- stride 4, for extraction: the third pool is a 2x2 average of stride 1 (the map loses one row and
  one column) and conv4_1 to conv4_3 have dilation 2. This equals four interleaved maps of stride 8.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from d2net.networks import winograd

VGG16_STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512))
"""Output channels of the convolutions of each stage; a pool stands between two stages."""

LAYERS = tuple(
    f"conv{i}_{j}" for i, widths in enumerate(VGG16_STAGES, 1) for j in range(1, len(widths) + 1)
)
"""conv1_1 to conv4_3."""

EXTRACTION_STRIDE = 4
TRAINING_STRIDE = 8

RECEPTIVE_FIELD = (-42, 49)
"""Cell c of the stride-4 map depends on pixels 4c - 42 to 4c + 49 and on no others."""

MIN_SIDE = 8  # shortest side of an image, in pixels, that leaves one cell at both strides

_BAND_BYTES = 8 << 20
_WINOGRAD_FROM = {torch.float32: 128 * 256, torch.bfloat16: 256 * 512}
"""Fewest channels (input times output) at which Winograd beats a direct convolution on a CPU: from
conv3_1 on in float32, from conv4_1 on in bfloat16 (measured on two cores)."""


class VGGBackbone(nn.Module):
    """The convolutions conv1_1 to conv4_3; `stages` has their output channels, stage by stage."""

    def __init__(self, stages: Sequence[Sequence[int]] = VGG16_STAGES) -> None:
        super().__init__()
        channels = 3
        self.stages: list[list[str]] = []
        for i, widths in enumerate(stages, 1):
            self.stages.append([f"conv{i}_{j}" for j in range(1, len(widths) + 1)])
            for name, width in zip(self.stages[-1], widths, strict=True):
                self.add_module(name, nn.Conv2d(channels, width, 3, padding=1))
                channels = width
        self.names = [name for names in self.stages for name in names]
        self.channels = channels
        self.shallow_channels = stages[-2][-1]
        self._winograd = {name: winograd.Convolution() for name in self.names}

    def convolution(self, name: str) -> nn.Conv2d:
        """The layer called `name`, such as conv4_3."""
        return cast(nn.Conv2d, getattr(self, name))

    def forward(self, images: Tensor, stride: int = TRAINING_STRIDE) -> Tensor:
        """Dense map before the last ReLU, differentiable, in plain torch.

        Images are B x 3 x H x W, normalised as the weights want it. The map is B x C x h x w with
        h = H // 8 at stride 8 (training), and h = H // 4 - 1 at stride 4 (extraction).
        """
        return self.layers(images, self.names, stride)

    def layers(self, x: Tensor, names: Sequence[str], stride: int = TRAINING_STRIDE) -> Tensor:
        """Some consecutive convolutions, with the ReLUs and pools between them.

        Training computes the frozen layers without a graph and continues with the others. `x` are
        the images for conv1_1, else the output of the layer before the first one, in the precision
        of the computation. The result is the map of the last convolution, before its ReLU.
        """
        for name in names:
            i, stage = next((i, stage) for i, stage in enumerate(self.stages) if name in stage)
            dilation = 2 if i == len(self.stages) - 1 and stride == EXTRACTION_STRIDE else 1
            if name == stage[0] and i > 0:
                # Max pool and ReLU commute, and after the pool there is less to do.
                average = dilation == 2
                x = F.avg_pool2d(F.relu(x), 2, 1) if average else F.relu(F.max_pool2d(x, 2, 2))
            elif name != self.names[0]:
                x = F.relu(x)
            weight, bias = (array.to(x.dtype) for array in self.convolution(name).parameters())
            x = F.conv2d(x, weight, bias, padding=dilation, dilation=dilation)
        return x

    @torch.no_grad()
    def extract(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The deep and the shallow map at stride 4, after their ReLUs, for inference.

        On a CPU it works in bands of rows and uses Winograd convolution where that is faster: the
        same maps as `forward` up to rounding, in a fraction of the time and memory.

        `images` are B x 3 x H x W, normalised as the weights want it, in the precision of the
        computation (float32, or bfloat16 and float16 where the device has them). The deep map
        (conv4_3) is B x h x w x C, h = H // 4 - 1, contiguous, cell c at pixel 4c + 3.5. The
        shallow map (conv3_3, not pooled) is B x (h + 1) x (w + 1) x C', cell c at pixel 4c + 1.5.
        Both have the precision of `images` or float32. Below 8 pixels h or w is 0.
        """
        batch, _, height, width = images.shape
        if min(height, width) < MIN_SIDE:
            rows, cols = (max(side // 4 - 1, 0) for side in (height, width))
            return (
                images.new_empty(batch, rows, cols, self.channels),
                images.new_empty(batch, rows + 1, cols + 1, self.shallow_channels),
            )
        x = images.contiguous(memory_format=torch.channels_last)
        last = len(self.stages) - 1
        for i in range(last):
            x = self._stage(x, self.stages[i], step=2 if i < last - 1 else 1)
        # The average pool of stride 1 and the dilated convolutions: four interleaved maps, one
        # after the other to save memory.
        rows, cols = x.shape[2] - 1, x.shape[3] - 1
        deep = x.new_empty(0)
        for i in range(min(2, rows)):
            for j in range(min(2, cols)):
                y = _average_pool(x[:, :, i:, j:])
                for name in self.stages[-1]:
                    y = self._convolve(y, name, images.dtype)
                if not len(deep):
                    deep = y.new_empty(batch, rows, cols, self.channels)
                deep[:, i::2, j::2] = y.permute(0, 2, 3, 1)
        return deep, x.permute(0, 2, 3, 1)

    def _stage(self, x: Tensor, names: Sequence[str], *, step: int) -> Tensor:
        """The convolutions of a stage and its max pool of stride `step`.

        On a CPU it works on a band of rows at a time, which stays in cache, so the widest maps are
        never whole in memory. Rows that a band's convolutions need from its neighbours are computed
        twice. (Winograd has its own blocks.)
        """

        def compute(x: Tensor) -> Tensor:
            for name in names:
                x = self._convolve(x, name, x.dtype)
            return F.max_pool2d(x, 2, 2) if step == 2 else x

        batch, _, height, width = x.shape
        channels = self.convolution(names[-1]).out_channels
        out_height, out_width = height // step, width // step
        band = max(16, _BAND_BYTES // (step * batch * width * channels * x.element_size()))
        by_winograd = any(self._by_winograd(name, x.device, x.dtype) for name in names)
        if x.device.type != "cpu" or by_winograd or band >= out_height:
            return compute(x)
        out = x.new_empty(batch, out_height, out_width, channels).permute(0, 3, 1, 2)
        halo = step * -(-len(names) // step)
        for first in range(0, out_height, band):
            end = min(first + band, out_height)
            low = max(first * step - halo, 0)
            y = compute(x[:, :, low : min(end * step + halo, height)])
            skip = first - low // step
            out[:, :, first:end] = y[:, :, skip : skip + end - first]
        return out

    def _by_winograd(self, name: str, device: torch.device, dtype: torch.dtype) -> bool:
        layer = self.convolution(name)
        fewest = _WINOGRAD_FROM.get(dtype, torch.inf) if device.type == "cpu" else torch.inf
        return layer.in_channels * layer.out_channels >= fewest

    def _convolve(self, x: Tensor, name: str, dtype: torch.dtype) -> Tensor:
        """Convolution and ReLU of B x C x H x W in channels-last memory.

        Winograd's inputs and outputs are float32; its products are in `dtype`.
        """
        weight, bias = self.convolution(name).parameters()
        if not self._by_winograd(name, x.device, dtype):
            kernel = weight.to(dtype, memory_format=torch.channels_last)
            return F.conv2d(x, kernel, bias.to(dtype), padding=1).relu_()
        return self._winograd[name](x, weight, bias, dtype).relu_()


def _average_pool(x: Tensor) -> Tensor:
    """2x2 averages of stride 2, without torch's copy of an x that is a slice."""
    rows, cols = (side // 2 * 2 for side in x.shape[2:])
    total = x[:, :, 0:rows:2, 0:cols:2].float() + x[:, :, 0:rows:2, 1:cols:2]
    total += x[:, :, 1:rows:2, 0:cols:2]
    total += x[:, :, 1:rows:2, 1:cols:2]
    return total.mul_(0.25).to(x.dtype)
