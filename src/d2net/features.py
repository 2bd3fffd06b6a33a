"""What extraction gives and matching takes: `Features` and `Matches`.

Layouts of other programs (hloc's D x N, the release's N x 3, COLMAP's half pixel) are converted in
`d2net.io` and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from d2net.errors import InputError


@dataclass(frozen=True, eq=False)
class Features:
    """The local features of one photo.

    All tensors are on one device and have N rows. N = 0 is an ordinary result.

    Attributes:
        keypoints: N x 2 float32, (x, y) in pixels of the photo as given (upright unless asked
            otherwise); the centre of the top-left pixel is (0, 0).
        scores: N float32, larger is better.
        scales: N float32, size of the receptive cell relative to pyramid level 1.
        descriptors: N x D, unit length, float32 or float16.
        image_size: (width, height) of the photo in pixels.
        uncertainty: N float32, standard deviation of the position in pixels of the photo.
        descriptor: what the descriptors are, as "ots 01e1e8a0 plain": the weights' name and
            checksum, and the form. Only equal ones can be compared. None where nobody knows, as of
            other programs' files.
    """

    keypoints: Tensor
    scores: Tensor
    scales: Tensor
    descriptors: Tensor
    image_size: tuple[int, int]
    uncertainty: Tensor
    descriptor: str | None = None

    def __post_init__(self) -> None:
        n = len(self.keypoints)
        expected = {"keypoints": (n, 2), "scores": (n,), "scales": (n,), "uncertainty": (n,)}
        for name, shape in expected.items():
            tensor = getattr(self, name)
            if tuple(tensor.shape) != shape or tensor.dtype != torch.float32:
                raise InputError(
                    f"{name} must be float32 of shape {shape}, not {tensor.dtype} of shape "
                    f"{tuple(tensor.shape)}"
                )
        d = self.descriptors
        if d.ndim != 2 or len(d) != n or d.dtype not in (torch.float32, torch.float16):
            raise InputError(
                f"descriptors must be float32 or float16 of shape ({n}, D), not {d.dtype} of "
                f"shape {tuple(d.shape)}"
            )

    def __len__(self) -> int:
        return len(self.keypoints)

    def __repr__(self) -> str:
        width, height = self.image_size
        return (
            f"Features({len(self)} keypoints, {self.descriptors.shape[1]}-D "
            f"{str(self.descriptors.dtype).removeprefix('torch.')}, {width} x {height} px)"
        )

    def __getitem__(self, rows: Tensor | slice) -> Features:
        """The features at `rows`: indices, a boolean mask or a slice."""
        return replace(
            self,
            keypoints=self.keypoints[rows],
            scores=self.scores[rows],
            scales=self.scales[rows],
            descriptors=self.descriptors[rows],
            uncertainty=self.uncertainty[rows],
        )

    def best(self, n: int | None) -> Features:
        """The n features with the highest scores, best first; all as they are if n is None."""
        if n is None or len(self) <= n:
            return self
        return self[self.scores.argsort(descending=True, stable=True)[:n]]

    def to(self, device: str | torch.device) -> Features:
        """The same features with all tensors on `device`."""
        return replace(
            self,
            keypoints=self.keypoints.to(device),
            scores=self.scores.to(device),
            scales=self.scales.to(device),
            descriptors=self.descriptors.to(device),
            uncertainty=self.uncertainty.to(device),
        )

    def half(self) -> Features:
        """The same features with float16 descriptors; positions and scores stay float32."""
        return replace(self, descriptors=self.descriptors.half())

    def to_dict(self) -> dict[str, Tensor]:
        """The keys and the batch dimension of LightGlue and kornia.

        Returns:
            `keypoints` 1 x N x 2, `keypoint_scores` 1 x N, `descriptors` 1 x N x D and
            `image_size` 1 x 2 (width, height), all float32.
        """
        size = torch.tensor([self.image_size], dtype=torch.float32, device=self.keypoints.device)
        return {
            "keypoints": self.keypoints[None],
            "keypoint_scores": self.scores[None],
            "descriptors": self.descriptors.float()[None],
            "image_size": size,
        }


class LazyFeatures(Mapping[str, Features]):
    """Features of many photos by name, read when they are asked for and not kept.

    Args:
        load: reads those of one photo.
        names: of the photos, in the order in which they are gone through.
    """

    def __init__(self, load: Callable[[str], Features], names: Sequence[str]) -> None:
        self._load = load
        self._names = dict.fromkeys(names)

    def __getitem__(self, name: str) -> Features:
        if name not in self._names:
            raise KeyError(name)
        return self._load(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


@dataclass(frozen=True, eq=False)
class Matches:
    """Pairs of keypoints of two photos, after verification with the inliers marked.

    Attributes:
        indices: K x 2 int64, rows of the first and of the second photo's features.
        similarity: K float32, cosine of the two descriptors.
        inliers: K bool, or None while nothing has been verified.
        model: what was fitted ("homography", "fundamental", "essential", or "pose": a place in a
            map, which has no matrix), None before.
        matrix: 3 x 3 float64 that the inliers agree with (pixels, centres at integers), None
            where none was found.
    """

    indices: Tensor
    similarity: Tensor
    inliers: Tensor | None = None
    model: str | None = None
    matrix: np.ndarray[Any, np.dtype[np.float64]] | None = None

    def __post_init__(self) -> None:
        k = len(self.indices)
        if tuple(self.indices.shape) != (k, 2) or self.indices.dtype != torch.int64:
            raise InputError(
                f"indices must be int64 of shape (K, 2), not {self.indices.dtype} of shape "
                f"{tuple(self.indices.shape)}"
            )
        if tuple(self.similarity.shape) != (k,):
            raise InputError(f"similarity must have {k} entries, not {len(self.similarity)}")
        marks = self.inliers
        if marks is not None and (tuple(marks.shape) != (k,) or marks.dtype != torch.bool):
            raise InputError(
                f"inliers must be bool of shape ({k},), not {marks.dtype} of shape "
                f"{tuple(marks.shape)}"
            )

    def __len__(self) -> int:
        return len(self.indices)

    def __repr__(self) -> str:
        if self.inliers is None:
            return f"Matches({len(self)})"
        return f"Matches({len(self)}, {self.num_inliers} inliers of a {self.model} model)"

    @property
    def num_inliers(self) -> int:
        """How many matches agree with the fitted model; all of them while none was fitted."""
        return len(self) if self.inliers is None else int(self.inliers.sum())

    def verified(self) -> Matches:
        """Only the inliers; the matches themselves while nothing has been verified."""
        if self.inliers is None:
            return self
        keep = self.inliers
        return replace(
            self,
            indices=self.indices[keep],
            similarity=self.similarity[keep],
            inliers=keep[keep],
        )
