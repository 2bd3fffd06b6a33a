"""The small network `light`: keypoints and descriptors in a sixteenth of the default's time.

`d2net distill` trains it to imitate larger networks. All maps are centred: cell 0 of a map of
stride s lies at pixel (s - 1) / 2: a convolution of stride 2 has a kernel of 4, and a padding of 1.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from d2net.errors import InputError
from d2net.networks import winograd
from d2net.networks.base import Detections, Detector, Grid, Maps, Network, View
from d2net.networks.detection import largest_around
from d2net.settings import DescriptorType, Settings

SCORE_CELL = 4  # the score is a distribution over the 4 x 4 pixels of a cell and "no keypoint"

_COARSEST_STRIDE = 32
_PEAK_RADIUS = 2  # a keypoint is the most probable pixel of the 5 x 5 around it

_MIN_PROBABILITY = 1e-4
"""Smallest probability of a keypoint. In flat areas rounding in bfloat16 alone gives up to 5e-5. In
structured photos the best 4,096 keypoints exceed this limit."""

_UNCERTAINTY = 0.5  # standard deviation per axis of a keypoint, in pixels of its level

_ROWS_AT_ONCE = 256
_WINOGRAD_CHANNELS = 128  # of a block's input; Winograd does not speed up narrower ones
_CELLS_AT_ONCE = 4000  # of the map at 1/8, in a band of the score head
_BAND_BORDER = 2  # rows at 1/8 beside a band that its logits depend on


@dataclass(frozen=True)
class LightSettings(Settings):
    """Widths of the network; they are saved with the weights."""

    channels: tuple[int, int, int, int, int] = (16, 32, 64, 128, 128)
    """Channels of the stages at 1/2, 1/4, 1/8, 1/16 and 1/32 of the image."""

    neck: int = 128
    """Channels of the fused map at 1/8."""

    hidden: int = 256
    """Width of the hidden layer of the descriptor head."""

    dimension: int = 192
    """Length of the descriptors."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(*self.channels, self.neck, self.hidden, self.dimension) < 1:
            raise InputError(f"widths must be at least 1, not {self.to_dict()}")


class ConvBlock(nn.Sequential):
    """Convolution, batch normalisation, ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1, *, relu: bool = True) -> None:
        kernel = 3 if stride == 1 else 4
        convolution = nn.Conv2d(inputs, outputs, kernel, stride, 1, bias=False)
        activation = nn.ReLU(inplace=True) if relu else nn.Identity()
        super().__init__(convolution, nn.BatchNorm2d(outputs), activation)
        self._is_wide = stride == 1 and inputs >= _WINOGRAD_CHANNELS
        self._winograd = winograd.Convolution()

    def forward(self, x: Tensor) -> Tensor:
        """In float32 on a CPU, wide blocks without normalisation use Winograd convolution."""
        convolution = cast(nn.Conv2d, self[0])
        weight, bias = convolution.weight, convolution.bias
        # The Winograd convolution has no gradient.
        direct = torch.is_autocast_enabled("cpu") or torch.is_grad_enabled()
        direct |= torch.compiler.is_exporting()
        if not self._is_wide or bias is None or direct or x.device.type != "cpu":
            return cast(Tensor, super().forward(x))  # type: ignore[no-untyped-call]
        return cast(Tensor, self[2](self._winograd(x, weight, bias)))


class Residual(nn.Module):
    """Two 3 x 3 convolutions with a skip connection (He et al., CVPR 2016)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = ConvBlock(channels, channels)
        self.second = ConvBlock(channels, channels, relu=False)

    def forward(self, x: Tensor) -> Tensor:
        """B x C x h x w to the same shape."""
        return F.relu(self.second(self.first(x)) + x)


class Backbone(nn.Module):
    """Five stages of plain convolutions; each halves the resolution."""

    def __init__(self, c1: int, c2: int, c3: int, c4: int, c5: int) -> None:
        super().__init__()
        self.stages = nn.ModuleList(
            [
                nn.Sequential(ConvBlock(3, c1, 2), ConvBlock(c1, c1)),
                nn.Sequential(ConvBlock(c1, c2, 2), Residual(c2)),
                nn.Sequential(ConvBlock(c2, c3, 2), Residual(c3), ConvBlock(c3, c3)),
                nn.Sequential(ConvBlock(c3, c4, 2), Residual(c4), ConvBlock(c4, c4)),
                nn.Sequential(ConvBlock(c4, c5, 2), Residual(c5)),
            ]
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """B x 3 x H x W to the maps of the five stages, finest first."""
        maps = [x]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        return maps[1:]


class Neck(nn.Module):
    """A feature pyramid at 1/8 (Lin et al., "Feature Pyramid Networks", CVPR 2017)."""

    def __init__(self, channels: tuple[int, ...], outputs: int) -> None:
        super().__init__()
        self.lateral = nn.ModuleList([nn.Conv2d(c, outputs, 1) for c in channels])
        self.fuse = nn.Sequential(ConvBlock(outputs, outputs), ConvBlock(outputs, outputs))

    def forward(self, maps: list[Tensor]) -> Tensor:
        """The maps at 1/8, 1/16 and 1/32 to B x C x H/8 x W/8."""
        at8, at16, at32 = (layer(m) for layer, m in zip(self.lateral, maps, strict=True))
        return cast(Tensor, self.fuse(at8 + upsample(at16 + upsample(at32))))


class ScoreHead(nn.Module):
    """The keypoint score of each pixel: four logits per cell of the map at 1/2.

    Outside of training it computes bands of rows one after the other: the same logits in less time
    and a fraction of the memory, because the bands stay in cache.
    """

    def __init__(self, fine: int, middle: int, coarse: int, width: int = 32) -> None:
        super().__init__()
        self.from_middle = nn.Conv2d(middle, width, 1)
        self.from_coarse = nn.Conv2d(coarse, width, 1)
        self.narrow = nn.Conv2d(width, width // 2, 1)
        self.mix = ConvBlock(fine + width // 2, width)
        self.logits = nn.Conv2d(width, 4, 3, 1, 1)
        self.nothing = nn.Parameter(torch.tensor(3.0))  # the logit of "no keypoint in this cell"

    def forward(self, fine: Tensor, middle: Tensor, coarse: Tensor) -> Tensor:
        """The maps at 1/2, 1/4 and 1/8 to B x 16 x H/4 x W/4 logits of the pixels of a cell."""
        rows = coarse.shape[2]
        if self.training or torch.compiler.is_exporting():
            return self._logits(fine, middle, coarse)
        step, parts = max(_CELLS_AT_ONCE // coarse.shape[3], 2 * _BAND_BORDER), []
        for first in range(0, rows, step):
            low, stop = max(first - _BAND_BORDER, 0), min(first + step, rows)
            high = stop + _BAND_BORDER
            part = self._logits(
                fine[:, :, 4 * low : 4 * high],
                middle[:, :, 2 * low : 2 * high],
                coarse[:, :, low:high],
            )
            parts.append(part[:, :, 2 * (first - low) : 2 * (stop - low)])
        return torch.cat(parts, 2)

    def _logits(self, fine: Tensor, middle: Tensor, coarse: Tensor) -> Tensor:
        context = F.relu(self.from_middle(middle) + upsample(self.from_coarse(coarse)))
        mixed = self.mix(torch.cat([fine, upsample(self.narrow(context))], 1))
        # Computed as one stride-2 convolution with 16 outputs, equal to `logits` on 2 x 2 cells:
        # CPUs are slow at four outputs.
        w, bias = self.logits.weight, cast(Tensor, self.logits.bias)
        shifted = torch.stack([F.pad(w, (x, 1 - x, y, 1 - y)) for y in (0, 1) for x in (0, 1)])
        kernels = shifted.view(2, 2, 2, 2, *shifted.shape[2:]).transpose(1, 2).flatten(0, 3)
        biases = bias.view(1, 2, 1, 2).expand(2, 2, 2, 2).flatten()
        return F.conv2d(mixed, kernels, biases, 2, 1)

    def log_probability(self, score: Tensor) -> Tensor:
        """B x 16 x h x w logits to B x 17 x h x w; the last channel is "no keypoint"."""
        nothing = self.nothing.to(score.dtype).expand(len(score), 1, *score.shape[-2:])
        return torch.cat([score, nothing], 1).log_softmax(1)


class DescriptorHead(nn.Module):
    """A descriptor from samples of three maps, by two linear layers."""

    def __init__(self, inputs: int, hidden: int, dimension: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, dimension)
        )

    def forward(self, samples: Tensor) -> Tensor:
        """... x inputs to ... x dimension, unit length."""
        return F.normalize(self.layers(samples), dim=-1)


class Light(Network):
    """The network `light`.

    Its maps are the maps at 1/2, 1/4 and 1/8 of the image, and 16 logits of each 4 x 4 pixels.
    """

    grid = Grid(
        stride=8,
        first_centre=3.5,
        receptive_field=(-240, 247),
        alignment=_COARSEST_STRIDE,
        min_side=1,
    )
    cells_per_tile = 40_000

    def __init__(self, widths: LightSettings | None = None) -> None:
        super().__init__()
        self.widths = widths or LightSettings()
        fine, middle, *deep = self.widths.channels
        coarse = self.widths.neck
        self.backbone = Backbone(*self.widths.channels)
        self.neck = Neck(tuple(deep), coarse)
        self.score_head = ScoreHead(fine, middle, coarse)
        self.descriptor_head = DescriptorHead(
            fine + middle + coarse, self.widths.hidden, self.widths.dimension
        )

    @property
    def descriptor_lengths(self) -> dict[DescriptorType, int]:
        """Length of the one type of descriptor."""
        return {"light": self.widths.dimension}

    def statistics(self, photos: Tensor) -> Tensor:
        """Mean and deviation of each photo over all pixels and channels, B x 2 float32."""
        # Bands of rows bound the memory of the intermediates.
        bands = [photos] if torch.compiler.is_exporting() else torch.split(photos, _ROWS_AT_ONCE, 1)
        total = torch.zeros(len(photos), 2, dtype=torch.float64)  # on the CPU: MPS has none
        for band in bands:
            rows = band.float().flatten(2)  # ONNX Runtime sums whole photos inexactly
            total += torch.stack([rows.sum(2), rows.square().sum(2)], dim=1).cpu().double().sum(2)
        mean, square = (total / photos[0].numel()).unbind(1)
        deviation = (square - mean.square()).clamp_min(0).sqrt()
        return torch.stack([mean, deviation], dim=1).float().to(photos.device)

    def compute_maps(
        self, images: Tensor, dtype: torch.dtype, statistics: Tensor | None = None
    ) -> Maps:
        """The maps of parts of photos, standardised by the statistics of the whole photos."""
        statistics = self.statistics(images) if statistics is None else statistics
        mean, deviation = statistics[:, :, None, None, None].unbind(1)
        x = images
        # A partial cell at the right or bottom border repeats the last pixel. (The exporter to ONNX
        # rounds negative quotients up, so the usual -(-a // b) would be wrong here.)
        for axis in (1, 2):
            size = (x.shape[axis] + _COARSEST_STRIDE - 1) // _COARSEST_STRIDE * _COARSEST_STRIDE
            if torch.compiler.is_exporting() or size > x.shape[axis]:
                places = torch.arange(size, device=x.device).clamp(max=x.shape[axis] - 1)
                x = x.index_select(axis, places)
        x = (x.permute(0, 3, 1, 2) - mean).div_(deviation + 1e-4)
        # An exported graph has weights of that precision instead.
        mixed = dtype != torch.float32 and not torch.compiler.is_exporting()
        with torch.autocast(x.device.type, dtype=dtype, enabled=mixed):
            x = x.to(dtype).contiguous(memory_format=torch.channels_last)
            fine, middle, *deep = self.backbone(x)
            del x  # frees memory
            coarse = self.neck(deep)
            return fine, middle, coarse, self.score_head(fine, middle, coarse)

    def detector(self, *, original: bool) -> Detector:
        """The detector of the score head."""
        if original:
            raise InputError(
                "the network light cannot reproduce the 2019 release: leave out original, or "
                "choose weights of a VGG, such as 'ots'"
            )
        return LightDetector(self)

    def describe(self, maps: Maps, positions: Tensor, descriptor: DescriptorType) -> Tensor:
        """Descriptors at any positions of an image; those outside a map count as on its border."""
        return self.describe_batch(tuple(part[None] for part in maps), positions[None])[0]

    def describe_batch(self, maps: Maps, positions: Tensor) -> Tensor:
        """Descriptors, B x N x D, at B x N x 2 positions (x, y) in pixels, differentiable."""
        strides = zip(maps[:3], (2, 4, 8), strict=True)
        samples = [sample_centred(part, positions, stride) for part, stride in strides]
        return cast(Tensor, self.descriptor_head(torch.cat(samples, -1)))

    def score_map(self, maps: Maps) -> Tensor:
        """The probability of a keypoint at each pixel, H x W, padded to a multiple of 32."""
        probability = self.score_head.log_probability(maps[3][None].float())[:, :-1].exp()
        return F.pixel_shuffle(probability, SCORE_CELL)[0, 0]

    def for_inference(self) -> Light:
        """A copy whose batch normalisation is folded into the convolutions."""
        network = copy.deepcopy(self).eval()
        for block in network.modules():
            if isinstance(block, ConvBlock) and isinstance(block[1], nn.BatchNorm2d):
                block[0] = fuse_conv_bn_eval(cast(nn.Conv2d, block[0]), block[1])
                block[1] = nn.Identity()
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return network


class LightDetector:
    """Keypoints are local maxima of the score's probability."""

    border = 4  # pixels

    def __init__(self, network: Light) -> None:
        self._network = network

    def detect(self, view: View) -> Detections:
        """All local maxima, moved to the probability-weighted mean of their 3 x 3 pixels."""
        probability = self._network.score_map(view.maps)
        height, width = view.pixels.shape[:2]
        peak = probability == largest_around(probability, _PEAK_RADIUS)
        peak &= probability >= _MIN_PROBABILITY
        y, x = peak[1 : height - 1, 1 : width - 1].nonzero(as_tuple=True)
        y, x = y + 1, x + 1
        steps = torch.arange(-1, 2, device=x.device)
        rows, cols = y[:, None, None] + steps[:, None], x[:, None, None] + steps
        patch = probability.flatten()[rows * probability.shape[1] + cols]
        share = patch / patch.sum((1, 2), keepdim=True).clamp_min(1e-30)
        shift = torch.stack([(share.sum(1) * steps).sum(1), (share.sum(2) * steps).sum(1)], 1)
        anchors = torch.stack([x, y], 1)
        return Detections(
            positions=anchors + shift,
            scores=patch[:, 1, 1],
            anchors=anchors,
            channels=torch.zeros_like(x),
            located=torch.ones_like(x, dtype=torch.bool),
        )

    def uncertainty(self, scales: Tensor) -> Tensor:
        """Standard deviation per axis of positions found at `scales`, in pixels of the photo."""
        return scales * _UNCERTAINTY


def upsample(x: Tensor) -> Tensor:
    """Twice the resolution, bilinear."""
    return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)


def sample_centred(maps: Tensor, positions: Tensor, stride: int) -> Tensor:
    """Bilinear samples, B x N x C float32, of a map B x C x h x w of any float type.

    Cell 0 of the map is at pixel (stride - 1) / 2. Positions are B x N x 2 (x, y) in pixels; those
    outside the map count as on its border.
    """
    height, width = maps.shape[-2:]
    x, y = ((2 * positions + 1) / stride).unbind(-1)
    grid = torch.stack([x / width - 1, y / height - 1], -1)[:, None]
    sampled = F.grid_sample(maps.float(), grid, padding_mode="border", align_corners=False)
    return sampled[:, :, 0].transpose(1, 2)
