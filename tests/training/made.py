"""A source of pairs for tests of the loop: small, made on the spot, and sometimes wrong."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from d2net.errors import ImageError
from d2net.training.sources import KINDS
from d2net.training.sources.base import SourceOptions, TrainingPair

DATA = Path(__file__).parents[1] / "data"


@dataclass(frozen=True)
class MadeOptions(SourceOptions):
    empty: int = 0
    """Every n-th pair has no correspondences; 0: none."""

    broken: int = 0
    """Every n-th pair cannot be read; 0: none."""


class Made:
    """Crops of OpenCV's sample photo and the same crops in other light."""

    name = "made"

    def __init__(self, _: Path, options: MadeOptions, crop: int) -> None:
        photo = cv2.imread(str(DATA / "graf1.jpg"))
        assert photo is not None
        self.photo, self.options, self.crop = photo, options, crop

    def __len__(self) -> int:
        return 12

    def pair(self, index: int, rng: np.random.Generator) -> TrainingPair | None:
        if self.options.broken and index % self.options.broken == 0:
            raise ImageError(f"the photo {index}.jpg is missing")
        height, width = self.photo.shape[:2]
        x, y = (int(rng.integers(size - self.crop)) for size in (width, height))
        a = np.ascontiguousarray(self.photo[y : y + self.crop, x : x + self.crop])
        b = np.clip(a * rng.uniform(0.6, 1.2) + rng.normal(0, 8, a.shape), 0, 255).astype(np.uint8)
        cells = np.arange(self.crop // 8) * 8 + 3.5
        points = np.stack(np.meshgrid(cells, cells), axis=-1).reshape(-1, 2).astype(np.float32)
        if self.options.empty and index % self.options.empty == 0:
            points = points[:0]
        return TrainingPair(a, b, points, points, "made", ("graf1.jpg", "graf1.jpg"))


KINDS["made"] = (Made, MadeOptions)
