"""What bfloat16 costs in matching accuracy, where the Oxford sequences are at hand."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.table import Row
from d2net import D2Net, Features, mutual_nearest

OXFORD = Path(
    os.environ.get(
        "D2NET_OXFORD", Path(__file__).parents[2] / "shared" / "data" / "eval" / "oxford"
    )
)
THRESHOLDS = (3.0, 10.0)
LARGEST_LOSS = 0.005


def rows() -> list[Row]:
    """Mean matching accuracy in both precisions; none without the photos."""
    if not OXFORD.is_dir():
        return []
    model = D2Net.from_pretrained("ots")
    accuracy = {p: accuracies(model, precision=p) for p in ("float32", "bfloat16")}
    found = []
    for i, threshold in enumerate(THRESHOLDS):
        exact, rough = accuracy["float32"][i], accuracy["bfloat16"][i]
        found.append(
            Row(
                f"matching accuracy at {threshold:.0f} px on Oxford: bfloat16 minus float32",
                f"{100 * (rough - exact):+.2f} percentage points",
                "within 0.5 percentage points",
                abs(rough - exact) <= LARGEST_LOSS,
                f"{rough:.4f} and {exact:.4f}",
            )
        )
    return found


def accuracies(model: D2Net, **settings: Any) -> np.ndarray:  # noqa: ANN401
    """Share of right matches per threshold, mean over all pairs (1, k) of all sequences."""
    pairs = []
    for sequence in sorted(path for path in OXFORD.iterdir() if path.is_dir()):
        photos = {int(path.stem[-1]): path for path in sequence.iterdir() if _is_photo(path)}
        features = {k: model.extract(path, **settings) for k, path in photos.items()}
        for k in sorted(photos)[1:]:
            H = np.loadtxt(next(sequence.glob(f"H*1*{k}*")))
            pairs.append(_pair_accuracy(features[1], features[k], H))
    return np.asarray(np.mean(pairs, axis=0))


def _is_photo(path: Path) -> bool:
    return path.suffix.lower() in (".ppm", ".pgm", ".png", ".jpg")


def _pair_accuracy(a: Features, b: Features, H: np.ndarray) -> list[float]:
    matches = mutual_nearest(a.descriptors, b.descriptors)
    points = a.keypoints[matches.indices[:, 0]].double()
    ones = torch.ones(len(points), 1, dtype=torch.float64)
    warped = torch.cat([points, ones], dim=1) @ torch.from_numpy(H).T
    error = (warped[:, :2] / warped[:, 2:] - b.keypoints[matches.indices[:, 1]]).norm(dim=1)
    return [float((error <= t).double().mean()) if len(matches) else 0.0 for t in THRESHOLDS]
