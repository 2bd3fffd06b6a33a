"""Figures whose values can be worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from d2net.evaluation.pair_protocol import accuracy, auc


def test_accuracy_counts_errors_up_to_the_threshold() -> None:
    assert accuracy([0.5, 1, 2, 4], [1, 3, 10]).tolist() == [0.5, 0.75, 1.0]
    assert accuracy([], [1, 3]).tolist() == [0, 0]
    assert accuracy([np.inf, 1], [5]).tolist() == [0.5]


@pytest.mark.parametrize(
    ("errors", "threshold", "expected"),
    [
        ([0, 0], 5, 1),  # every error zero: the whole area
        ([100, np.inf], 5, 0),  # none below
        ([2.5], 5, 0.75),  # a line from 0 to 1 over half the range, then 1
        ([2.5, np.inf], 5, 0.375),
        ([], 5, 0),
    ],
)
def test_auc_of_known_curves(errors: list[float], threshold: float, expected: float) -> None:
    assert auc(errors, [threshold])[0] == pytest.approx(expected)


def test_auc_against_a_fine_sum() -> None:
    """The exact integral against a Riemann sum of the interpolated recall."""
    errors = np.sort(np.random.default_rng(0).gamma(2, 3, 200))
    x = np.linspace(0, 10, 200_001)
    recall = np.interp(x, np.append(0, errors), np.arange(201) / 200)
    last = np.searchsorted(errors, 10) / 200
    recall = np.minimum(recall, last)
    assert auc(errors, [10])[0] == pytest.approx(recall.mean(), abs=1e-3)
