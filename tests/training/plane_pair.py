"""A training pair of which every pixel's partner is known."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from d2net.geometry.homography import transfer
from d2net.training.sources.base import TrainingPair

PHOTO = Path(__file__).parents[1] / "data" / "graf1.jpg"
H = np.array([[0.9, -0.2, 30.0], [0.15, 1.1, -12.0], [2e-4, -1e-4, 1.0]])


def grid(step: float, size: int = 256) -> np.ndarray:
    axis = np.arange(step / 2 - 0.5, size, step)
    return np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)


def warped_pair(noise: float = 0.0) -> TrainingPair:
    """OpenCV's sample photo and what a homography makes of it."""
    photo = cv2.imread(str(PHOTO))
    assert photo is not None
    a = np.ascontiguousarray(photo[200:456, 200:456])
    b = np.asarray(cv2.warpPerspective(a, H, (256, 256)), np.uint8)
    if noise:
        b = np.random.default_rng(0).integers(0, 256, b.shape).astype(np.uint8)
    known = grid(8).astype(np.float32)
    return TrainingPair(a, b, known, transfer(H, known).astype(np.float32), "graf", ("a", "b"))
