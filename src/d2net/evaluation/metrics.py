"""Accuracy at thresholds, and the area under the recall curve."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Values = NDArray[np.float64]


def accuracy(errors: ArrayLike, thresholds: Sequence[float]) -> Values:
    """Share of errors at most each threshold; 0 where there are no errors (D2-Net's protocol)."""
    values: NDArray[Any] = np.asarray(errors, dtype=np.float64)
    if values.size == 0:
        return np.zeros(len(thresholds))
    return np.array([(values <= threshold).mean() for threshold in thresholds])


def auc(errors: ArrayLike, thresholds: Sequence[float]) -> Values:
    """Area under the recall curve up to each threshold, as a share of the threshold.

    The field's exact integral (SuperGlue, Sarlin et al., CVPR 2020): errors sorted, the recall
    rising linearly between them. Failed estimates count as infinite errors.
    """
    values = np.sort(np.asarray(errors, dtype=np.float64))
    if values.size == 0:
        return np.zeros(len(thresholds))
    recall = np.arange(1, len(values) + 1) / len(values)
    values, recall = np.append(0.0, values), np.append(0.0, recall)
    areas = []
    for threshold in thresholds:
        last = int(np.searchsorted(values, threshold))
        x = np.append(values[:last], threshold)
        y = np.append(recall[:last], recall[last - 1])
        areas.append(float(((y[1:] + y[:-1]) / 2 * np.diff(x)).sum()) / threshold)
    return np.array(areas)
