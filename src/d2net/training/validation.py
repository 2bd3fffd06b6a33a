"""Validation: how well weights match fixed pairs, with extraction as users run it.

The training loss does not show what a user gets: it is computed at stride 8, at points that are
known to correspond. Here keypoints are detected at stride 4 and matched with each other. A match is
right at t px if its second keypoint lies within t px of the true partner of the first, which is
interpolated from the pair's correspondences. Where that is impossible, a match is not judged.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from d2net.extraction.d2net import D2Net
from d2net.features import Features, Matches
from d2net.matching.nearest import mutual_nearest
from d2net.training.batches import Mixture, open_part
from d2net.training.correspondences import interpolate
from d2net.training.crops import Array
from d2net.training.pictures import ScoreMap, draw_pairs
from d2net.training.settings import RunSettings
from d2net.training.sources import TrainingPair, pair_generator
from d2net.visualization import plot_matches

Validate = Callable[[D2Net], Mapping[str, float]]
"""Judges a model. The figure `score` is higher for better weights."""

THRESHOLDS = (3, 10)
"""Maximum errors of a right match in pixels."""

_SEED = 0  # the fixed pairs are the same for all runs, whatever their seed


def fixed_pairs(settings: RunSettings, data: Path) -> list[TrainingPair]:
    """Draw the validation pairs of a run: equally many from each source, always the same.

    Raises:
        D2NetError: a source cannot be opened or gives no usable pair.
    """
    pairs = []
    for row, source in enumerate(settings.validation_sources):
        mixture = Mixture([open_part(source, settings.crop, data, held_out=True)])
        for number in range(settings.validation_pairs):
            pairs.append(mixture.draw(pair_generator(_SEED, number, row)).content)
    return pairs


class Validation:
    """Judges weights on fixed pairs.

    Args:
        pairs: at least one.
        loss: computes the training loss of a pair.
    """

    def __init__(
        self, pairs: Sequence[TrainingPair], loss: Callable[[TrainingPair], float]
    ) -> None:
        self.pairs, self._loss = tuple(pairs), loss

    def __call__(self, model: D2Net) -> dict[str, float]:
        """Compute the figures of a model.

        Returns:
            `loss`; `accuracy@3` and `accuracy@10`, the shares of right matches among those judged
            (0 if there are none); and `right@10`, the number of right matches. Each is the mean
            over the sources of the mean over their pairs, and is also given per source as
            `loss/NAME`. `score` is the mean of both accuracies.
        """
        rows = defaultdict(list)
        for pair in self.pairs:
            errors = match_pair(model, pair)[1]
            errors = errors[np.isfinite(errors)]
            row = {"loss": self._loss(pair)}
            for t in THRESHOLDS:
                row[f"accuracy@{t}"] = float((errors <= t).mean()) if len(errors) else 0.0
            row[f"right@{max(THRESHOLDS)}"] = float((errors <= max(THRESHOLDS)).sum())
            rows[pair.source].append(row)
        figures: dict[str, float] = {}
        for name in list(next(iter(rows.values()))[0]):
            means = {source: float(np.mean([row[name] for row in rows[source]])) for source in rows}
            figures[name] = float(np.mean(list(means.values())))
            figures.update({f"{name}/{source}": mean for source, mean in means.items()})
        figures["score"] = float(np.mean([figures[f"accuracy@{t}"] for t in THRESHOLDS]))
        return figures

    def pictures(self, model: D2Net, score_map: ScoreMap) -> dict[str, Image.Image]:
        """Draw the matches and the soft scores of the first pair of each source.

        Right matches are in colour.
        """
        first: dict[str, TrainingPair] = {}
        for pair in self.pairs:
            first.setdefault(pair.source, pair)
        pictures = {}
        for source, pair in first.items():
            (a, b, matches), errors = match_pair(model, pair)
            right = torch.from_numpy(errors <= max(THRESHOLDS)).to(matches.indices.device)
            marked = Matches(matches.indices, matches.similarity, inliers=right)
            pictures[f"matches/{source}"] = plot_matches(pair.image_a, pair.image_b, a, b, marked)
            pictures[f"scores/{source}"] = draw_pairs([pair], score_map)
        return pictures


def match_pair(
    model: D2Net, pair: TrainingPair
) -> tuple[tuple[Features, Features, Matches], Array]:
    """Extract and match the crops of a pair.

    Returns:
        The features of both crops with their matches, and the error of each match in pixels, NaN
        where the true partner is not known.
    """
    a, b = model.extract_batch([pair.image_a, pair.image_b])
    matches = mutual_nearest(a.descriptors, b.descriptors)
    rows_a, rows_b = matches.indices.cpu().unbind(1)
    partners = interpolate(a.keypoints.cpu()[rows_a].numpy(), pair.points_a, pair.points_b)
    errors = np.linalg.norm(partners - b.keypoints.cpu()[rows_b].numpy(), axis=1)
    return (a, b, matches), np.asarray(errors, np.float64)
