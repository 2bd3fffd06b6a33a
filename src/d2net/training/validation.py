"""Fixed pairs, and how well weights match them on the path that extraction really takes.

The loss alone does not tell what a user sees: it is computed at stride 8, at places that are
known to correspond. Here keypoints are detected at stride 4 and matched with each other. A match is
right at t px if the second keypoint lies within t of where the first one's point really is.

Where that is follows from the pair's correspondences around it, see `transfer`; where it does not,
a keypoint is not judged.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from d2net.extraction.d2net import D2Net
from d2net.features import Features, Matches
from d2net.matching.nearest import mutual_nearest
from d2net.networks.detection import soft_scores
from d2net.networks.vgg import VGG
from d2net.training.batches import collate, draw, open_part
from d2net.training.loss import matching_loss
from d2net.training.pictures import draw_pairs
from d2net.training.settings import TrainingSettings
from d2net.training.sources import Mixture, TrainingPair, generator
from d2net.training.transfer import transferred
from d2net.training.views import Crop
from d2net.visualization import plot_matches

Points = NDArray[Any]  # N x 2
Validate = Callable[[D2Net], Mapping[str, float]]
"""Judges weights; `score` is what the best ones have most of."""

THRESHOLDS = (3, 10)
"""Errors of a right match, in pixels."""

_SEED = 0  # of the fixed pairs: the same for all runs, whatever their seed


def fixed_pairs(settings: TrainingSettings, data: Path) -> list[TrainingPair]:
    """The fixed pairs that weights are judged on: as many from each source, always the same.

    Raises:
        D2NetError: a source cannot be opened or gives no usable pair.
    """
    pairs = []
    for place, source in enumerate(settings.validated_on):
        only = Mixture([open_part(source, settings.crop, data, held_out=True)])
        for number in range(settings.validation_pairs):
            pairs.append(draw(only, generator(_SEED, number, place))[0])
    return pairs


@dataclass(frozen=True, eq=False)
class Judged:
    """One pair's features and matches.

    Attributes:
        features: of both crops.
        matches: all of them; `inliers` marks those right at the largest threshold.
        errors: distance from the truth in pixels, of the matches that can be judged.
    """

    features: tuple[Features, Features]
    matches: Matches
    errors: Points


class Validation:
    """Judges weights on fixed pairs: the loss, and the share of right matches.

    Args:
        pairs: at least one.
        settings: of the run, for the loss.
    """

    def __init__(self, pairs: Sequence[TrainingPair], settings: TrainingSettings) -> None:
        self.pairs, self.settings = tuple(pairs), settings

    def __call__(self, model: D2Net) -> dict[str, float]:
        """Figures of weights.

        Returns:
            `loss`, `accuracy@3`, `accuracy@10` (share of right matches among the judged ones, 0
            for a pair without any) and `right@10` (right matches per pair), each the mean over the
            sources of its mean over their pairs, and per source as `loss/NAME`; `score`, the mean
            of both accuracies.
        """
        rows = defaultdict(list)
        for pair in self.pairs:
            rows[pair.source].append(
                {"loss": self._loss(model, pair), **_figures(judge(model, pair))}
            )
        figures: dict[str, float] = {}
        names = list(next(iter(rows.values()))[0])
        for name in names:
            means = {source: float(np.mean([row[name] for row in rows[source]])) for source in rows}
            figures[name] = float(np.mean(list(means.values())))
            figures.update({f"{name}/{source}": mean for source, mean in means.items()})
        figures["score"] = float(np.mean([figures[f"accuracy@{t}"] for t in THRESHOLDS]))
        return figures

    def pictures(self, model: D2Net) -> dict[str, Image.Image]:
        """Matches of the first pair of each source, right ones in colour, and its soft scores."""
        first: dict[str, TrainingPair] = {}
        for pair in self.pairs:
            first.setdefault(pair.source, pair)
        drawn = {}
        for source, pair in first.items():
            judged = judge(model, pair)
            images = pair.image_a, pair.image_b
            drawn[f"matches/{source}"] = plot_matches(*images, *judged.features, judged.matches)
            drawn[f"scores/{source}"] = draw_pairs([pair], partial(_soft_scores, model))
        return drawn

    @torch.no_grad()
    def _loss(self, model: D2Net, pair: TrainingPair) -> float:
        batch = collate([pair]).to(model.device)
        images = batch.images.permute(0, 3, 1, 2).float()
        dtype = getattr(torch, self.settings.precision)
        network = model.network
        assert isinstance(network, VGG)  # noqa: S101 (training makes no other)
        maps = network.backbone(network.normalisation(images).to(dtype))
        loss = matching_loss(maps, batch.correspondences, sampling=self.settings.sampling)
        return float(loss.mean())


@torch.no_grad()
def _soft_scores(model: D2Net, crop: Crop) -> NDArray[np.float32]:
    """The h x w soft scores of a crop at stride 8."""
    image = torch.from_numpy(crop).to(model.device).permute(2, 0, 1)[None].float()
    network = model.network
    assert isinstance(network, VGG)  # noqa: S101 (training makes no other)
    maps = network.backbone(network.normalisation(image))
    scores: NDArray[np.float32] = soft_scores(maps)[0].cpu().numpy()
    return scores


def judge(model: D2Net, pair: TrainingPair) -> Judged:
    """Extract, match and compare with what is known of a pair."""
    a, b = model.extract_batch([pair.image_a, pair.image_b])
    matches = mutual_nearest(a.descriptors, b.descriptors)
    rows_a, rows_b = matches.indices.cpu().unbind(1)
    truth = transferred(a.keypoints.cpu()[rows_a].numpy(), pair.points_a, pair.points_b)
    errors = np.linalg.norm(truth - b.keypoints.cpu()[rows_b].numpy(), axis=1)
    right = torch.from_numpy(errors <= max(THRESHOLDS)).to(matches.indices.device)
    marked = Matches(matches.indices, matches.similarity, inliers=right)
    return Judged((a, b), marked, errors[np.isfinite(errors)])


def _figures(judged: Judged) -> dict[str, float]:
    errors = judged.errors
    figures = {
        f"accuracy@{t}": float((errors <= t).mean()) if len(errors) else 0.0 for t in THRESHOLDS
    }
    return {**figures, f"right@{max(THRESHOLDS)}": float((errors <= max(THRESHOLDS)).sum())}
