"""Protocols on pairs of photos: match each pair, judge its matches, and count the errors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike

from d2net.evaluation.cache import CachedPhotos, CachedSource
from d2net.evaluation.results import Drawing, Figures, PairResult
from d2net.features import Features, Matches
from d2net.geometry.coordinates import Array
from d2net.progress import Progress


@dataclass(frozen=True)
class PhotoPair:
    """Two photos with ground truth, which subclasses add.

    Attributes:
        group: sequence, scene or kind, over which figures are averaged.
        photos: both files.
    """

    group: str
    photos: tuple[Path, Path]


P = TypeVar("P", bound=PhotoPair)


def evaluate_pairs(
    source: CachedSource,
    folder: Path,
    pairs: Sequence[P],
    judge: Callable[[P, Features, Features, Matches], tuple[Figures, Drawing | None]],
    progress: Progress,
) -> list[PairResult]:
    """Match the photos of each pair, and judge the matches.

    `judge` gives figures of a pair from the features of both photos and their matches. The numbers
    of `features` (mean of both photos) and `matches` are added.
    """
    names = {path: path.relative_to(folder).as_posix() for pair in pairs for path in pair.photos}
    by_names = {(names[pair.photos[0]], names[pair.photos[1]]): pair for pair in pairs}
    results = []
    files = {name: path for path, name in names.items()}
    with CachedPhotos(source, folder, files, progress) as photos:
        photos.match(by_names, progress)
        for done, ((first, second), pair) in enumerate(by_names.items()):
            progress(f"evaluating: {pair.group}", done, len(pairs))
            a, b = photos.features(first), photos.features(second)
            matches = photos.matches(first, second)
            figures, drawing = judge(pair, a, b, matches)
            figures["features"] = (len(a) + len(b)) / 2
            figures["matches"] = float(len(matches))
            results.append(PairResult(pair.group, (first, second), figures, drawing))
    progress("evaluating", len(pairs), len(pairs))
    return results


def matched_points(a: Features, b: Features, matches: Matches) -> tuple[Array, Array]:
    """Keypoints of both photos (K x 2) in the order of the matches."""
    rows_a, rows_b = matches.indices.T.numpy()
    return a.keypoints.double().numpy()[rows_a], b.keypoints.double().numpy()[rows_b]


def accuracy(errors: ArrayLike, thresholds: Sequence[float]) -> Array:
    """Share of errors at most each threshold; 0 where there are no errors (D2-Net's protocol)."""
    values = np.asarray(errors, dtype=np.float64)
    if values.size == 0:
        return np.zeros(len(thresholds))
    return np.array([(values <= threshold).mean() for threshold in thresholds])


def auc(errors: ArrayLike, thresholds: Sequence[float]) -> Array:
    """Area under the recall curve up to each threshold, as a share of the threshold.

    The usual exact integral (SuperGlue, Sarlin et al., CVPR 2020): errors sorted, the recall
    rising linearly between them. Failed estimates count as infinite errors.
    """
    values = np.sort(np.asarray(errors, dtype=np.float64))
    if values.size == 0:
        return np.zeros(len(thresholds))
    values, recall = np.append(0.0, values), np.arange(len(values) + 1) / len(values)
    areas = []
    for threshold in thresholds:
        last = int(np.searchsorted(values, threshold))
        x = np.append(values[:last], threshold)
        y = np.append(recall[:last], recall[last - 1])
        areas.append(float(((y[1:] + y[:-1]) / 2 * np.diff(x)).sum()) / threshold)
    return np.array(areas)
