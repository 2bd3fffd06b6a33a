"""A transformer that matches the keypoints of two photos, and says how sure each match is.

This follows LightGlue (Lindenberger et al., ICCV 2023, section 3), but the scores start from the
similarity of the descriptors, and the layers add to it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from d2net.errors import InputError
from d2net.settings import Settings

_CROSS_GAIN = 1.3
"""Initial gain of the cross-attention's keys: a true partner stands out, and others are visible."""

_MIN_MATCHABILITY = 0.05
"""Keypoints with a lower probability to have a partner leave after a layer (LightGlue, 3.3)."""

_WAVES = 32
"""Number of plane waves that encode a position in a keypoint's first state."""


@dataclass(frozen=True)
class MatcherSettings(Settings):
    """Widths of the matcher; they are saved with the weights."""

    descriptor_length: int = 192
    """Length of the descriptors."""

    width: int = 128
    """Channels of a keypoint's state."""

    heads: int = 1
    """Attention heads; each has width / heads channels. Most of the time on a CPU goes into their
    softmaxes."""

    layers: int = 3
    """Number of layers."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_least(1, *self.to_dict())
        if self.width % (2 * self.heads):
            raise InputError(f"width must be a multiple of 2 x heads, not {self.width}")


class KeypointBatch(NamedTuple):
    """Keypoints of B photos, padded to N rows.

    Attributes:
        descriptors: B x N x D, unit length.
        positions: B x N x 2 (x, y) in pixels.
        sizes: B x 2 (width, height) in pixels.
        valid: B x N bool, False for padding; None if there is none.
    """

    descriptors: Tensor
    positions: Tensor
    sizes: Tensor
    valid: Tensor | None = None

    @property
    def normalised(self) -> Tensor:
        """Positions relative to the centre, in halves of the longer edge."""
        half = self.sizes[:, None] / 2
        return (self.positions + 0.5 - half) / half.amax(-1, keepdim=True)


@dataclass(frozen=True)
class Assignment:
    """Scores of all pairs of keypoints after a layer.

    Attributes:
        similarity: B x N x M, the logits of both softmaxes.
        matchability_a: B x N, logits: whether a keypoint has a partner.
        matchability_b: B x M, likewise.
    """

    similarity: Tensor
    matchability_a: Tensor
    matchability_b: Tensor

    def mutual_best(self) -> tuple[Tensor, Tensor]:
        """Pairs that are each other's most probable partner (equation 7), for one pair of photos.

        Returns:
            K x 2 int64 rows of both photos, and K probabilities.
        """
        # The whole matrix of probabilities is never computed, because that would take long.
        logits = self.similarity[0]
        if logits.numel() == 0:
            return logits.new_empty(0, 2, dtype=torch.int64), logits.new_empty(0)
        of_a = F.logsigmoid(self.matchability_a[0]) - logits.logsumexp(1)
        of_b = F.logsigmoid(self.matchability_b[0]) - logits.logsumexp(0)
        logits = 2 * logits
        best_b = (logits + of_b).argmax(1)
        best_a = (logits + of_a[:, None]).argmax(0)
        rows = torch.arange(logits.shape[0], device=logits.device)
        mutual = best_a[best_b] == rows
        rows, cols = rows[mutual], best_b[mutual]
        probability = (logits[rows, cols] + of_a[rows] + of_b[cols]).exp()
        return torch.stack([rows, cols], dim=1), probability


class FeedForward(nn.Module):
    """Updates states with messages: two linear layers with a skip connection."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(2 * width, 2 * width),
            nn.LayerNorm(2 * width),
            nn.GELU(),
            nn.Linear(2 * width, width),
        )
        # Training starts from updates of zero, so that no layer disturbs the next ones.
        nn.init.zeros_(cast(Tensor, self.layers[-1].weight))
        nn.init.zeros_(cast(Tensor, self.layers[-1].bias))

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
        self.cross_key = nn.Linear(width, width)
        self.cross_value = nn.Linear(width, width)
        self.cross_output = nn.Linear(width, width)
        self.cross_update = FeedForward(width)
        nn.init.orthogonal_(self.cross_key.weight, _CROSS_GAIN)
        nn.init.zeros_(self.cross_key.bias)

    def forward(
        self,
        states: Sequence[Tensor],
        rotations: Sequence[Tensor],
        valid: Sequence[Tensor | None],
    ) -> tuple[Tensor, Tensor]:
        """Update the states of both photos, B x N x C and B x M x C."""
        a, b = (
            self._attend_within(x, rotation, mask)
            for x, rotation, mask in zip(states, rotations, valid, strict=True)
        )
        key_a, key_b = self._split(self.cross_key(a)), self._split(self.cross_key(b))
        value_a, value_b = self._split(self.cross_value(a)), self._split(self.cross_value(b))
        to_a = self.cross_output(_attend(key_a, key_b, value_b, valid[1]))
        to_b = self.cross_output(_attend(key_b, key_a, value_a, valid[0]))
        return self.cross_update(a, to_a), self.cross_update(b, to_b)

    def _attend_within(self, x: Tensor, rotation: Tensor, valid: Tensor | None) -> Tensor:
        query, key, value = (self._split(part) for part in self.query_key_value(x).chunk(3, -1))
        message = _attend(_rotate(query, rotation), _rotate(key, rotation), value, valid)
        return cast(Tensor, self.self_update(x, self.self_output(message)))

    def _split(self, x: Tensor) -> Tensor:
        """B x N x C to B x heads x N x C / heads."""
        batch, n, width = x.shape
        return x.view(batch, n, self.heads, width // self.heads).transpose(1, 2)


class AssignmentHead(nn.Module):
    """Scores of all pairs from the states and from the descriptors."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.project = nn.Linear(width, width)
        self.matchability = nn.Linear(width, 1)
        self.descriptor_scale = nn.Parameter(torch.tensor(math.log(22.0)))
        self.state_scale = nn.Parameter(torch.tensor(0.1))
        nn.init.constant_(self.matchability.bias, 1.0)

    def forward(self, states: Sequence[Tensor], a: KeypointBatch, b: KeypointBatch) -> Assignment:
        """The assignment of states B x N x C and B x M x C."""
        x, y = (self.project(state) for state in states)
        similarity = (self.state_scale / x.shape[-1] ** 0.25) * x @ y.mT
        similarity = similarity + (self.descriptor_scale.exp() * a.descriptors) @ b.descriptors.mT
        if a.valid is not None:
            similarity = similarity.masked_fill(~a.valid[:, :, None], -1e4)
        if b.valid is not None:
            similarity = similarity.masked_fill(~b.valid[:, None, :], -1e4)
        return Assignment(similarity, *(self.matchability(state)[..., 0] for state in states))


class MatchingTransformer(nn.Module):
    """The matcher."""

    calibration: Tensor

    def __init__(self, settings: MatcherSettings | None = None) -> None:
        super().__init__()
        self.settings = settings or MatcherSettings()
        width, heads = self.settings.width, self.settings.heads
        self.project = nn.Linear(self.settings.descriptor_length, width)
        self.position = nn.Linear(2 * _WAVES, width)
        self.waves = nn.Linear(2, _WAVES, bias=False)
        self.frequencies = nn.Linear(2, width // heads // 2, bias=False)
        self.layers = nn.ModuleList(Layer(width, heads) for _ in range(self.settings.layers))
        self.heads = nn.ModuleList(AssignmentHead(width) for _ in range(self.settings.layers))
        # Calibrated probability: sigmoid(scale * logit + shift), fitted after training.
        self.register_buffer("calibration", torch.tensor([1.0, 0.0]))
        nn.init.orthogonal_(self.project.weight)
        nn.init.zeros_(self.project.bias)
        nn.init.normal_(self.waves.weight, std=5.0)
        nn.init.normal_(self.frequencies.weight, std=1.0)

    def forward(self, a: KeypointBatch, b: KeypointBatch) -> list[Assignment]:
        """The assignments after each layer."""
        states = self._first_state(a), self._first_state(b)
        rotations = self._rotation(a), self._rotation(b)
        assignments = []
        for layer, head in zip(self.layers, self.heads, strict=True):
            states = layer(states, rotations, (a.valid, b.valid))
            assignments.append(head(states, a, b))
        return assignments

    def match(self, a: KeypointBatch, b: KeypointBatch) -> tuple[Tensor, Tensor]:
        """Match one pair of photos. Keypoints that find no partner leave after each layer.

        Returns:
            K x 2 int64 rows of both photos, and K calibrated probabilities that they match.
        """
        photos, states = [a, b], [self._first_state(a), self._first_state(b)]
        rotations = [self._rotation(a), self._rotation(b)]
        rows = [torch.arange(x.positions.shape[1], device=x.positions.device) for x in photos]
        for layer, head in zip(self.layers, self.heads, strict=True):
            states = list(layer(states, rotations, (None, None)))
            if head is self.heads[-1]:
                break
            for side in (0, 1):
                matchability = cast(AssignmentHead, head).matchability(states[side])[0, :, 0]
                stay = matchability.sigmoid() > _MIN_MATCHABILITY
                descriptors, positions, sizes, _ = photos[side]
                photos[side] = KeypointBatch(descriptors[:, stay], positions[:, stay], sizes)
                states[side], rows[side] = states[side][:, stay], rows[side][stay]
                rotations[side] = rotations[side][..., stay, :]
        pairs, probability = head(states, *photos).mutual_best()
        matched = torch.stack([r[p] for r, p in zip(rows, pairs.T, strict=True)], dim=1)
        return matched, self.calibrated(probability)

    def calibrated(self, probability: Tensor) -> Tensor:
        """Calibrated probabilities that matches are right, from those of `Assignment`."""
        logit = probability.clamp(1e-6, 1 - 1e-6).logit()
        return torch.sigmoid(self.calibration[0] * logit + self.calibration[1])

    def _first_state(self, keypoints: KeypointBatch) -> Tensor:
        """B x N x C from descriptors and positions; their elements have a variance of about 1."""
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
    """Attention over the valid keys, B x heads x N x C / heads to B x N x C."""
    mask = None if valid is None else valid[:, None, None, :]
    message = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    return message.transpose(1, 2).flatten(-2)
