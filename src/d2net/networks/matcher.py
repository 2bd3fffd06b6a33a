"""A transformer that matches the keypoints of two photos, with a confidence per match.

This is LightGlue (Lindenberger et al., ICCV 2023, section 3) with changes that make it fast on a
CPU or let it learn from few pairs (docs/experiments.md has the figures):

- The similarity of two keypoints is that of their descriptors plus that of their states. So the
  untrained network matches by the descriptors.
- Three layers with one attention head of 128 channels replace nine layers with four heads of 64.
  Most of the time on a CPU goes into the softmax of each head.
- The first state also encodes the absolute position of a keypoint. As in the paper, self-attention
  has a rotary encoding, and cross-attention has none.
- Descriptors are scaled to unit variance, updates start from zero, and the key weights of
  cross-attention start orthogonal. So the layers learn from the first steps.
- Pruning depends on the matchability alone. There is no confidence classifier, and so no early
  exit: three layers leave little to skip.
- The probability of a match is calibrated after training.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from d2net.errors import InputError
from d2net.settings import Settings

TensorPair: TypeAlias = Sequence[Tensor]  # one tensor for each of the two photos
MaskPair: TypeAlias = Sequence[Tensor | None]  # likewise, see `KeypointBatch.valid`

_CROSS_GAIN = 1.3
"""Initial gain of the cross-attention's key weights. Orthogonal ones keep the states' similarity.
With this gain, attention prefers a true partner and still sees other keypoints."""

_MIN_MATCHABILITY = 0.05
"""Keypoints that have a partner with a lower probability are pruned after a layer (LightGlue,
section 3.3: 0.01). It saves a sixth of the time and costs few right matches."""

_WAVES = 32  # plane waves (Fourier features) that encode a position in a keypoint's first state


@dataclass(frozen=True)
class MatcherSettings(Settings):
    """Widths of the matcher; they are saved with the weights."""

    descriptor_length: int = 192  # D
    width: int = 128  # C, the channels of a keypoint's state
    heads: int = 1  # attention heads; each has C / heads channels
    layers: int = 3  # each is self-attention and then cross-attention

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_least(1, *self.to_dict())
        if self.width % (2 * self.heads):
            raise InputError(f"width must be a multiple of 2 x heads, not {self.width}")


class KeypointBatch(NamedTuple):
    """Keypoints of B photos, padded to N rows.

    Attributes:
        descriptors: B x N x D float32, unit length.
        positions: B x N x 2 (x, y) in pixels; the centre of the top-left pixel is (0, 0).
        sizes: B x 2 (width, height) in pixels.
        valid: B x N bool, False for padding; None if there is none.
    """

    descriptors: Tensor
    positions: Tensor
    sizes: Tensor
    valid: Tensor | None = None

    @property
    def normalised(self) -> Tensor:
        """B x N x 2 positions relative to the photo's centre, in halves of its longer edge."""
        half = self.sizes[:, None] / 2
        return (self.positions + 0.5 - half) / half.amax(-1, keepdim=True)


class Prepared(NamedTuple):
    """The keypoints of one photo (B = 1) after the first self-attention, to be kept in memory."""

    rotation: Tensor  # 2 x 1 x 1 x N x C / heads / 2
    states: Tensor  # 1 x N x C


@dataclass(frozen=True)
class Assignment:
    """The soft partial assignment after a layer (LightGlue, section 3.2).

    The probability P that two keypoints match is the product of their matchabilities and of the
    softmaxes of the similarity over both dimensions.

    Attributes:
        similarity: B x N x M, logits of both softmaxes.
        matchability_a: B x N, logits of the probability that a keypoint has a partner.
        matchability_b: B x M, likewise.
    """

    similarity: Tensor
    matchability_a: Tensor
    matchability_b: Tensor

    def mutual_best(self) -> tuple[Tensor, Tensor]:
        """Keypoints that are each other's most probable partner; B = 1, and N and M are not 0.

        Returns:
            K x 2 int64 rows of both photos, and K probabilities, not calibrated.
        """
        similarity = self.similarity[0]
        log_a = F.logsigmoid(self.matchability_a[0]) - similarity.logsumexp(1)
        log_b = F.logsigmoid(self.matchability_b[0]) - similarity.logsumexp(0)
        log_p = 2 * similarity + (log_a[:, None] + log_b)  # in an order that swapping keeps
        best_b, best_a = log_p.argmax(1), log_p.argmax(0)
        rows = torch.arange(similarity.shape[0], device=similarity.device)
        mutual = best_a[best_b] == rows
        rows, cols = rows[mutual], best_b[mutual]
        return torch.stack([rows, cols], dim=1), log_p[rows, cols].exp()


class FeedForward(nn.Module):
    """Updates states with messages: a skip connection around two linear layers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(2 * width, 2 * width),
            nn.LayerNorm(2 * width),
            nn.GELU(),
            nn.Linear(2 * width, width),
        )
        # Updates start with zero, so that no untrained layer disturbs the next ones.
        for parameter in self.layers[-1].parameters():
            nn.init.zeros_(parameter)

    def forward(self, states: Tensor, messages: Tensor) -> Tensor:
        """B x N x C states and messages to B x N x C states."""
        return states + cast(Tensor, self.layers(torch.cat([states, messages], dim=-1)))


class Layer(nn.Module):
    """Self-attention within each photo, then cross-attention between both."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query_key_value = nn.Linear(width, 3 * width)
        self.self_output = nn.Linear(width, width)
        self.self_update = FeedForward(width)
        self.cross_key = nn.Linear(width, width, dtype=torch.float32)  # orthogonal_ needs it
        self.cross_value = nn.Linear(width, width)
        self.cross_output = nn.Linear(width, width)
        self.cross_update = FeedForward(width)
        nn.init.orthogonal_(self.cross_key.weight, _CROSS_GAIN)
        nn.init.zeros_(self.cross_key.bias)

    def forward(
        self, states: TensorPair, rotations: TensorPair, valid: MaskPair
    ) -> tuple[Tensor, Tensor]:
        """Update the states of both photos, B x N x C and B x M x C.

        `rotations` are those of `_rotation`, and `valid` those of `KeypointBatch`.
        """
        a, b = map(self.attend_within, states, rotations, valid)
        return self.attend_across(a, b, valid)

    def attend_across(
        self, a: Tensor, b: Tensor, valid: MaskPair = (None, None)
    ) -> tuple[Tensor, Tensor]:
        """Cross-attention, which follows self-attention."""
        # Keys serve as queries, too, so both directions have the same attention scores.
        key_a, key_b = self._split(self.cross_key(a)), self._split(self.cross_key(b))
        value_a, value_b = self._split(self.cross_value(a)), self._split(self.cross_value(b))
        to_a = self.cross_output(_attend(key_a, key_b, value_b, valid[1]))
        to_b = self.cross_output(_attend(key_b, key_a, value_a, valid[0]))
        return self.cross_update(a, to_a), self.cross_update(b, to_b)

    def attend_within(self, x: Tensor, rotation: Tensor, valid: Tensor | None = None) -> Tensor:
        """Self-attention of one photo."""
        query, key, value = (self._split(part) for part in self.query_key_value(x).chunk(3, -1))
        message = _attend(_rotate(query, rotation), _rotate(key, rotation), value, valid)
        return cast(Tensor, self.self_update(x, self.self_output(message)))

    def _split(self, x: Tensor) -> Tensor:
        """B x N x C to B x heads x N x C / heads."""
        batch, n, width = x.shape
        return x.view(batch, n, self.heads, width // self.heads).transpose(1, 2)


class AssignmentHead(nn.Module):
    """The assignment from states and descriptors; each layer has its own head."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.project = nn.Linear(width, width)
        self.matchability = nn.Linear(width, 1)
        # A logarithm. Untrained, a scale of 22 gives a smaller loss than 15 and 30.
        self.descriptor_scale = nn.Parameter(torch.tensor(math.log(22.0)))
        self.state_scale = nn.Parameter(torch.tensor(0.1))
        nn.init.constant_(self.matchability.bias, 1.0)

    def forward(self, states: TensorPair, descriptors: TensorPair, valid: MaskPair) -> Assignment:
        """The assignment of states B x N x C and B x M x C; see `KeypointBatch` for the others."""
        x, y = (self.project(state) for state in states)
        # LightGlue divides both by C ** 0.25. The learned scale absorbs the difference.
        similarity = (self.state_scale / x.shape[-1] ** 0.25) * x @ y.mT
        a, b = descriptors
        similarity = similarity + (self.descriptor_scale.exp() * a) @ b.mT
        for mask, dimension in zip(valid, (2, 1), strict=True):
            if mask is not None:  # finite, because a row of infinities would become NaN
                similarity = similarity.masked_fill(~mask.unsqueeze(dimension), -1e4)
        return Assignment(similarity, *(self.matchability(state)[..., 0] for state in states))


class MatchingTransformer(nn.Module):
    """The network: the first states, the layers, and an assignment head after each layer."""

    calibration: Tensor
    """Scale and shift of the logit of a probability, fitted after training (Platt, 1999)."""

    def __init__(self, settings: MatcherSettings | None = None) -> None:
        super().__init__()
        self.settings = settings or MatcherSettings()
        width, heads = self.settings.width, self.settings.heads
        self.project = nn.Linear(self.settings.descriptor_length, width, dtype=torch.float32)
        self.position = nn.Linear(2 * _WAVES, width)
        self.waves = nn.Linear(2, _WAVES, bias=False)  # of the absolute encoding
        self.frequencies = nn.Linear(2, width // heads // 2, bias=False)  # of the rotary encoding
        self.layers = nn.ModuleList(Layer(width, heads) for _ in range(self.settings.layers))
        self.heads = nn.ModuleList(AssignmentHead(width) for _ in range(self.settings.layers))
        self.register_buffer("calibration", torch.tensor([1.0, 0.0]))
        nn.init.orthogonal_(self.project.weight)
        nn.init.zeros_(self.project.bias)
        nn.init.normal_(self.waves.weight, std=5.0)  # radians per half of the longer edge
        nn.init.normal_(self.frequencies.weight, std=1.0)

    def forward(self, a: KeypointBatch, b: KeypointBatch) -> list[Assignment]:
        """The assignment after each layer, for the loss. Nothing is pruned."""
        states = self._first_state(a), self._first_state(b)
        rotations = self._rotation(a), self._rotation(b)
        descriptors, valid = (a.descriptors, b.descriptors), (a.valid, b.valid)
        assignments = []
        for layer, head in zip(self.layers, self.heads, strict=True):
            states = layer(states, rotations, valid)
            assignments.append(head(states, descriptors, valid))
        return assignments

    def prepare(self, photo: KeypointBatch) -> Prepared:
        """The part of matching that does not depend on the other photo, for one photo (B = 1)."""
        rotation, states = self._rotation(photo), self._first_state(photo)
        if states.numel():  # attention over empty tensors can fail on MPS
            states = cast(Layer, self.layers[0]).attend_within(states, rotation)
        return Prepared(rotation, states)

    def match(
        self, a: Prepared, b: Prepared, descriptors: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Match one pair of photos (B = 1). All layers but the last prune keypoints.

        `descriptors` of the photos are N x D and M x D float32.

        Returns:
            K x 2 int64 rows of both photos, and K calibrated probabilities that they match.
        """
        states, rotations = [a.states, b.states], [a.rotation, b.rotation]
        rows = [torch.arange(x.shape[1], device=x.device) for x in states]
        for layer, head in zip(self.layers, self.heads, strict=True):
            if not all(map(len, rows)):
                return torch.stack([r[:0] for r in rows], dim=1), states[0].new_empty(0)
            layer = cast(Layer, layer)
            if layer is not self.layers[0]:
                states = list(map(layer.attend_within, states, rotations))
            states = list(layer.attend_across(states[0], states[1]))
            if head is self.heads[-1]:
                break
            for side in (0, 1):
                matchability = cast(AssignmentHead, head).matchability(states[side])[0, :, 0]
                stay = matchability.sigmoid() > _MIN_MATCHABILITY
                states[side], rows[side] = states[side][:, stay], rows[side][stay]
                rotations[side] = rotations[side][..., stay, :]
        kept = [d[None, r] for d, r in zip(descriptors, rows, strict=True)]
        pairs, probability = head(states, kept, (None, None)).mutual_best()
        matched = torch.stack([r[p] for r, p in zip(rows, pairs.T, strict=True)], dim=1)
        return matched, self.calibrated(probability)

    def calibrated(self, probability: Tensor) -> Tensor:
        """K calibrated probabilities that matches are right, from those of `mutual_best`."""
        logit = probability.clamp(1e-6, 1 - 1e-6).logit()
        return torch.sigmoid(self.calibration[0] * logit + self.calibration[1])

    def _first_state(self, keypoints: KeypointBatch) -> Tensor:
        """B x N x C, from descriptors and positions."""
        # From unit length to unit variance.
        descriptors = keypoints.descriptors * math.sqrt(keypoints.descriptors.shape[-1])
        phases = self.waves(keypoints.normalised)
        waves = torch.cat([phases.cos(), phases.sin()], dim=-1)
        return cast(Tensor, self.project(descriptors) + self.position(waves))

    def _rotation(self, keypoints: KeypointBatch) -> Tensor:
        """Rotary encoding of positions, 2 x B x 1 x N x C / heads / 2: cosine and sine."""
        angles = self.frequencies(keypoints.normalised)[:, None]
        return torch.stack([angles.cos(), angles.sin()])


def _rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Rotate the pairs (channel c, channel c + half) by the angles of a keypoint's position."""
    cosine, sine = rotation
    first, second = x.chunk(2, -1)
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)


def _attend(query: Tensor, key: Tensor, value: Tensor, valid: Tensor | None) -> Tensor:
    """Messages, B x N x C, by attention over M keys; inputs are B x heads x ..., `valid` B x M."""
    mask = None if valid is None else valid[:, None, None, :]
    message = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    return message.transpose(1, 2).flatten(-2)
