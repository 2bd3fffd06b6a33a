"""Training of the learned matcher, on the features of a frozen network.

Keypoints are extracted from the crops of training pairs once, as users extract them, and stored.
The pair's correspondences determine which keypoints match. The loss is LightGlue's (section 3.4):
at every layer, the negative log-likelihood of true matches and of unmatched keypoints.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from itertools import combinations, permutations
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor

from d2net.errors import InputError, TrainingError
from d2net.extraction.d2net import D2Net
from d2net.features import Features
from d2net.geometry.homography import transfer
from d2net.io.arrays import evenly_spaced
from d2net.matching.learned_matcher import MIN_CONFIDENCE, as_batch, distinct_keypoints
from d2net.networks.matcher import Assignment, MatcherSettings, MatchingTransformer
from d2net.networks.weights import load_matcher, save_weights
from d2net.progress import Progress, no_progress
from d2net.training.correspondences import interpolate
from d2net.training.objective import Objective, fixed_pairs, mean_over_processes
from d2net.training.settings import MatcherTrainingSettings, RunSettings
from d2net.training.sources.base import TrainingPair
from d2net.training.state import TrainingState
from d2net.training.stored_pairs import (
    NO_MATCH_DISTANCE,
    GroundTruth,
    Labels,
    MatcherBatch,
    PartBatches,
    StoredPairs,
    are_different,
    no_matches,
    places_of,
)

MATCH_DISTANCE = 3.0
"""Two keypoints match if each is within this many pixels of where the other appears in its photo.
Keypoints between this distance and `NO_MATCH_DISTANCE` are ignored."""

_EXACT = 0.05  # px; correspondences by a homography fit it up to rounding, others do not
_WEIGHT_DECAY = 1e-4
_MIN_JUDGED = 200  # right matches, and as many wrong ones, that a calibration needs
_BINS = 15  # of the calibration error
_VALIDATION_SCALE = 1.5
"""Edge of a validation crop relative to a training crop. A user's photos have more keypoints than
training crops, and a calibration holds for about the number of keypoints that it was fitted on."""


def ground_truth(
    a: Tensor, b: Tensor, known_a: NDArray[np.float32], known_b: NDArray[np.float32]
) -> GroundTruth:
    """Which of N and M keypoints (x, y) of two crops match, by known correspondences."""
    if min(len(a), len(b)) == 0:
        return GroundTruth(torch.empty(len(a), len(b)), no_matches(len(a), len(b)))

    def errors(x: Tensor, y: Tensor, of_x: NDArray[Any], of_y: NDArray[Any]) -> Tensor:
        expected = torch.from_numpy(_partners(x.cpu().numpy(), of_x, of_y)).to(y)
        distances: Tensor = torch.linalg.vector_norm(expected[:, None] - y, dim=-1)
        return distances

    in_b, in_a = errors(a, b, known_a, known_b), errors(b, a, known_b, known_a).T
    both = torch.maximum(in_a, in_b).nan_to_num(torch.inf)
    best_b, best_a = both.argmin(1), both.argmin(0)
    rows = torch.arange(len(a), device=a.device)
    rows = rows[(best_a[best_b] == rows) & (both[rows, best_b] < MATCH_DISTANCE)]
    labels = Labels(
        torch.stack([rows, best_b[rows]], dim=1),
        in_b.amin(1) > NO_MATCH_DISTANCE,
        in_a.amin(0) > NO_MATCH_DISTANCE,
    )
    return GroundTruth(in_b, labels)


def _partners(
    points: NDArray[Any], known_a: NDArray[Any], known_b: NDArray[Any]
) -> NDArray[np.float64]:
    """True places of N x 2 points in crop b, perhaps outside of it; NaN where they are unknown.

    Crops of one photo are related by a homography, which holds everywhere.
    """
    if len(known_a) > 8:
        homography, _ = cv2.findHomography(known_a, known_b, 0)
        if homography is not None:
            matrix = np.asarray(homography, np.float64)
            if np.abs(transfer(matrix, known_a.astype(np.float64)) - known_b).max() < _EXACT:
                return transfer(matrix, points.astype(np.float64))
    return interpolate(points, known_a, known_b)


def assignment_loss(assignment: Assignment, labels: Sequence[Labels]) -> Tensor:
    """The loss of each of B pairs for one layer's assignment (LightGlue, section 3.4)."""
    similarity = assignment.similarity.float()
    of_a, of_b = assignment.matchability_a.float(), assignment.matchability_b.float()
    over_b, over_a = similarity.logsumexp(2), similarity.logsumexp(1)

    def mean(values: Tensor) -> Tensor:
        return values.sum() / max(1, values.numel())

    losses = []
    for row, (matches, unmatched_a, unmatched_b) in enumerate(labels):
        first, second = matches.unbind(1)
        matched = 2 * similarity[row, first, second] - over_b[row, first] - over_a[row, second]
        matched = matched + F.logsigmoid(of_a[row, first]) + F.logsigmoid(of_b[row, second])
        # softplus(z) is the negative logarithm of 1 - sigmoid(z)
        alone_a = F.softplus(of_a[row, : len(unmatched_a)][unmatched_a])
        alone_b = F.softplus(of_b[row, : len(unmatched_b)][unmatched_b])
        losses.append((mean(alone_a) + mean(alone_b)) / 2 - mean(matched))
    return torch.stack(losses)


class Example(NamedTuple):
    """The features of two crops, of one place or of `different` ones, and which of them match."""

    a: Features
    b: Features
    truth: GroundTruth
    different: bool


class MatcherObjective(Objective):
    """A matcher that learns on the features of a frozen network."""

    settings: MatcherTrainingSettings
    network: MatchingTransformer

    def __init__(
        self,
        settings: MatcherTrainingSettings,
        data: Path,
        folder: Path,
        progress: Progress = no_progress,
    ) -> None:
        super().__init__()
        self.settings, self.data, self._progress = settings, data, progress
        self.extractor = D2Net.from_pretrained(
            settings.start, precision=settings.precision
        ).requires_grad_(False)
        self.descriptor_id = self.extractor.descriptor_id()
        self.start = dict(self.extractor.weights)
        if settings.matcher:
            network, loaded = load_matcher(settings.matcher)
            if (given := loaded.metadata["descriptor_id"]) != self.descriptor_id:
                raise InputError(
                    f"{settings.matcher} is a matcher of descriptors {given!r}, not "
                    f"{self.descriptor_id!r}: give the weights of those as start"
                )
            self.network = network.requires_grad_(True)
            self.network.calibration.copy_(torch.tensor([1.0, 0.0]))  # it is fitted anew
            self.start["matcher"] = loaded.sha256
        else:
            lengths = self.extractor.network.descriptor_lengths
            default, *_ = lengths
            length = lengths[self.extractor.settings.descriptor or default]
            torch.manual_seed(settings.seed)
            self.network = MatchingTransformer(
                MatcherSettings.from_dict({**settings.widths, "descriptor_length": length})
            )
        if settings.different:
            folders = [str(data / source.path) for source in settings.training_sources]
            places = [places_of([folder], settings, data) for folder in folders]
            if not any(are_different(a, b) for a, b in combinations(places, 2)):
                raise InputError(
                    f"different is {settings.different}, but no two of the sources are folders of "
                    "different places: name another source, or set different = 0"
                )
        self._stored = StoredPairs(folder, data, settings)

    def dataset(self, rank: int, processes: int) -> PartBatches:
        """See `Objective.dataset`. Features that are not stored yet are extracted first."""
        numbers = range(rank, self.settings.pairs, processes)
        features = partial(self._features, keypoints=self.settings.keypoints)
        self._stored.extract(numbers, features, self._progress)
        if processes > 1:
            torch.distributed.barrier()
        return PartBatches(self.settings, self._stored, rank, processes)

    def _features(
        self, pair: TrainingPair, keypoints: int
    ) -> tuple[Features, Features, GroundTruth]:
        both = self.extractor.extract_batch([pair.image_a, pair.image_b], max_keypoints=keypoints)
        a, b = (features[distinct_keypoints(features)] for features in both)
        return a, b, ground_truth(a.keypoints, b.keypoints, pair.points_a, pair.points_b)

    def optimizer(self, settings: RunSettings) -> torch.optim.Optimizer:
        """See `Objective.optimizer`."""
        return torch.optim.AdamW(
            self.network.parameters(), lr=settings.learning_rate, weight_decay=_WEIGHT_DECAY
        )

    def forward(self, batch: MatcherBatch) -> tuple[Tensor, dict[str, float]]:
        """The loss, averaged over layers and pairs; `recall` is of the best similarity per row."""
        dtype: torch.dtype = getattr(torch, self.settings.precision)
        with torch.autocast(batch.a.positions.device.type, dtype, dtype != torch.float32):
            layers = self.network(batch.a, batch.b)
        losses = torch.stack([assignment_loss(layer, batch.labels) for layer in layers])
        best = layers[-1].similarity.detach().argmax(2)
        found = [best[row, m[:, 0]] == m[:, 1] for row, (m, *_) in enumerate(batch.labels)]
        return mean_over_processes(losses.mean(0)), {
            "last_layer": float(losses[-1].detach().mean()),
            "matches": float(np.mean([len(labels.matches) for labels in batch.labels])),
            "recall": float(torch.cat(found).float().mean().nan_to_num()),
        }

    def validate(self) -> Mapping[str, float] | None:
        """See `Objective.validate`.

        Returns:
            `loss` of the last layer; `score`, its negative. Of the matches with a raw probability
            above 0.5: `precision`; `recall`, right ones (within MATCH_DISTANCE in b) per labelled
            match; and `different`, their mean number in a pair of different places.
        """
        if not self.settings.validation_sources:
            return None
        right, judged, true, of_different, losses = 0, 0, 0, [], []
        for example in self._fixed_examples:
            loss, probability, labels = _judge(self.network, example)
            losses.append(loss)
            labels = labels[probability > 0.5]
            if example.different:
                of_different.append(len(labels))
            else:
                right, judged = right + int((labels == 1).sum()), judged + int((labels >= 0).sum())
                true += len(example.truth.labels.matches)
        return {
            "score": -float(np.mean(losses)),
            "loss": float(np.mean(losses)),
            "precision": right / max(1, judged),
            "recall": right / max(1, true),
            "different": float(np.mean(of_different)) if of_different else 0.0,
        }

    @cached_property
    def _fixed_examples(self) -> list[Example]:
        """The examples of the validation pairs. Their features are extracted once."""
        settings, scale = self.settings, _VALIDATION_SCALE
        crop = round(settings.crop * scale / 8) * 8
        keypoints = round(settings.keypoints * scale**2)
        pairs = fixed_pairs(settings.updated(crop=crop), self.data)
        examples = [Example(*self._features(p, keypoints), different=False) for p in pairs]
        places = [places_of(pair.photos, settings, self.data) for pair in pairs]
        two = permutations(range(len(pairs)), 2)
        rows = [(i, j) for i, j in two if are_different(places[i], places[j])]
        share = settings.different / (1 - settings.different)
        for n in evenly_spaced(len(rows), round(len(pairs) * share)):
            a, b = examples[rows[n][0]].a, examples[rows[n][1]].b
            errors = torch.full((len(a), len(b)), torch.inf, device=a.keypoints.device)
            truth = GroundTruth(errors, no_matches(len(a), len(b)))
            examples.append(Example(a, b, truth, different=True))
        usable = [e for e in examples if len(e.a) and len(e.b)]
        if not usable:
            raise InputError("no validation pair has keypoints in both crops")
        return usable

    def save(self, path: Path, state: TrainingState) -> None:
        """See `Objective.save`."""
        about = self.header(path, state, f"features of {self.start['name']}")
        save_weights(path, self.network, {**about, "descriptor_id": self.descriptor_id})

    def finish(self, path: Path, progress: Progress) -> None:
        """Fit the calibration on half of the validation pairs, and measure it on the others."""
        if not self.settings.validation_sources:
            raise TrainingError(
                "the confidence is not calibrated: give validation sources, or hold_out"
            )
        network, loaded = load_matcher(path)
        network = network.to(next(self.network.parameters()).device)
        judged = []
        examples = self._fixed_examples
        for number, example in enumerate(examples):
            _, probability, labels = _judge(network, example)
            half = torch.full_like(labels, number % 2)
            judged.append(torch.stack([probability, labels, half], dim=1)[labels >= 0].cpu())
            progress("calibration", number + 1, len(examples))
        probability, right, half = torch.cat(judged).unbind(1)
        fitted = half == 0
        counts = [int((right[fitted] == label).sum()) for label in (1, 0)]
        if min(counts) < _MIN_JUDGED:
            raise TrainingError(
                f"the confidence is not calibrated: that needs {_MIN_JUDGED} right and "
                f"{_MIN_JUDGED} wrong matches, but half of the validation pairs gave {counts[0]} "
                f"and {counts[1]}; raise validation_pairs"
            )
        network.cpu().calibration.copy_(fit_calibration(probability[fitted], right[fitted]))
        error = calibration_error(network.calibrated(probability[~fitted]), right[~fitted])
        save_weights(path, network, {**loaded.metadata, "calibration_error": f"{error:.4f}"})


@torch.no_grad()
def _judge(network: MatchingTransformer, example: Example) -> tuple[float, Tensor, Tensor]:
    """The loss of the last layer and the matches of an example, found without pruning.

    Returns:
        The loss, K probabilities, and K labels: 1 for right, 0 for wrong, -1 for unknown.
    """
    assignment = network(as_batch(example.a), as_batch(example.b))[-1]
    pairs, probability = assignment.mutual_best()
    errors = example.truth.errors[pairs[:, 0], pairs[:, 1]]
    labels = torch.where(errors.isnan(), -1, (errors <= MATCH_DISTANCE).long())
    return float(assignment_loss(assignment, [example.truth.labels])), probability, labels


def fit_calibration(probability: Tensor, right: Tensor) -> Tensor:
    """Scale and shift of the logit that calibrate N probabilities (Platt, 1999).

    `right` is 1 for right matches and 0 for wrong ones.
    """
    logit = probability.double().clamp(1e-6, 1 - 1e-6).logit().numpy()

    def loss(parameters: NDArray[np.float64]) -> float:
        z = parameters[0] * logit + parameters[1]
        return float((np.logaddexp(0, z) - right.numpy() * z).mean())

    return torch.from_numpy(minimize(loss, np.array([1.0, 0.0])).x).float()


def calibration_error(confidence: Tensor, right: Tensor) -> float:
    """Expected calibration error of N matches (Guo et al., ICML 2017), with bins of equal width.

    Matches that a user does not get, because their confidence is too low, do not count.
    """
    given = confidence >= MIN_CONFIDENCE
    right, confidence = right[given], confidence[given]
    bins = (confidence * _BINS).long().clamp(max=_BINS - 1)
    gaps = torch.bincount(bins, right.double() - confidence.double())
    return float(gaps.abs().sum() / max(1, len(right)))
