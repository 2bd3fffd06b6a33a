"""The results of extraction and matching: `Features` and `Matches`.

Other layouts (hloc's D x N, the release's N x 3, COLMAP's half pixel) are converted in `d2net.io`
and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from d2net.errors import InputError
from d2net.geometry.significance import Verdict, verdict

_ARRAYS = ("keypoints", "scores", "scales", "descriptors", "uncertainty")


@dataclass(frozen=True, eq=False)
class Features:
    """The local features of one photo.

    All tensors are on one device and have N rows. N = 0 is an ordinary result.

    Attributes:
        keypoints: N x 2 float32, (x, y) in pixels of the photo as given (upright unless asked
            otherwise); the centre of the top-left pixel is (0, 0).
        scores: N float32, larger is better.
        scales: N float32, size of the receptive cell relative to the photo at its own size: 2 for
            a keypoint found in the photo at half its size.
        descriptors: N x D, unit length, float32 or float16.
        image_size: (width, height) of the photo in pixels.
        uncertainty: N float32, standard deviation of the position in pixels of the photo.
        descriptor_id: weights and type of the descriptors, such as "ots 01e1e8a0 plain": the
            name and checksum of the weights and the descriptor type. Only descriptors with equal
            ids can be compared. None if unknown, as in files of other programs.
    """

    keypoints: Tensor
    scores: Tensor
    scales: Tensor
    descriptors: Tensor
    image_size: tuple[int, int]
    uncertainty: Tensor
    descriptor_id: str | None = None

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
        return replace(self, **{name: getattr(self, name)[rows] for name in _ARRAYS})

    def best(self, n: int | None) -> Features:
        """The n features with the highest scores, best first; all as they are if n is None."""
        if n is None or len(self) <= n:
            return self
        return self[self.scores.argsort(descending=True, stable=True)[:n]]

    def to(self, device: str | torch.device) -> Features:
        """The same features with all tensors on `device`."""
        return replace(self, **{name: getattr(self, name).to(device) for name in _ARRAYS})

    def half(self) -> Features:
        """The same features with float16 descriptors; positions and scores stay float32."""
        return replace(self, descriptors=self.descriptors.half())

    def numpy(self) -> dict[str, np.ndarray[Any, Any]]:
        """All arrays by attribute name (keypoints, scores, scales, descriptors, uncertainty)."""
        return {name: getattr(self, name).cpu().numpy() for name in _ARRAYS}

    def to_opencv(self) -> tuple[list[Any], np.ndarray[Any, np.dtype[np.float32]]]:
        """Keypoints and descriptors as OpenCV's detectors return them.

        Returns:
            A list of `cv2.KeyPoint` (`size` is the side of the receptive cell, `response` the
            score) and descriptors N x D float32. Both use the same pixel coordinates as here.
        """
        import cv2

        arrays = self.numpy()
        keypoints = [
            cv2.KeyPoint(float(x), float(y), float(4 * scale), -1.0, float(score))
            for (x, y), scale, score in zip(
                arrays["keypoints"], arrays["scales"], arrays["scores"], strict=True
            )
        ]
        return keypoints, arrays["descriptors"].astype(np.float32)

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
    """Features of many photos by name. They are read on access and not kept in memory.

    Args:
        load: reads the features of the photo of a given name.
        names: the photos, in iteration order.
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
    """Pairs of keypoints of two photos. Verification marks the inliers.

    Attributes:
        indices: K x 2 int64, rows of the first and of the second photo's features.
        similarity: K float32, cosine of the two descriptors.
        inliers: K bool, or None before verification.
        model: the fitted model ("homography", "fundamental", "essential", or "pose" for the pose
            of a photo in a map, which has no matrix), or None before verification.
        matrix: the fitted 3 x 3 float64 matrix (pixels, centres at integers), or None if no model
            was found.
        significance: minus log10 of the probability that the matches of two photos of different
            places agree with a model as well, see `geometry.significance`; None before
            verification.
        confidence: K float32, the calibrated probability that a match is right; None if the matcher
            does not know it, as nearest neighbours.
    """

    indices: Tensor
    similarity: Tensor
    inliers: Tensor | None = None
    model: str | None = None
    matrix: np.ndarray[Any, np.dtype[np.float64]] | None = None
    significance: float | None = None
    confidence: Tensor | None = None

    def __post_init__(self) -> None:
        k = len(self.indices)
        if tuple(self.indices.shape) != (k, 2) or self.indices.dtype != torch.int64:
            raise InputError(
                f"indices must be int64 of shape (K, 2), not {self.indices.dtype} of shape "
                f"{tuple(self.indices.shape)}"
            )
        for name in ("similarity", "confidence"):
            values = getattr(self, name)
            if values is not None and tuple(values.shape) != (k,):
                raise InputError(f"{name} must have {k} entries, not {len(values)}")
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

    def points(
        self, a: Features, b: Features
    ) -> tuple[np.ndarray[Any, np.dtype[np.float32]], np.ndarray[Any, np.dtype[np.float32]]]:
        """Positions of the matched keypoints, as OpenCV and pycolmap take them.

        Args:
            a: features of the first photo.
            b: features of the second photo.

        Returns:
            Two K x 2 float32 arrays of (x, y) in pixels. `matches.verified().points(a, b)` gives
            those of the inliers.
        """
        first, second = self.indices.cpu().unbind(1)
        return a.keypoints.cpu()[first].numpy(), b.keypoints.cpu()[second].numpy()

    @property
    def scores(self) -> Tensor:
        """K float32, larger for better matches: `confidence`, or `similarity` if it is unknown."""
        return self.similarity if self.confidence is None else self.confidence

    @property
    def num_inliers(self) -> int:
        """The number of inliers; before verification, the number of matches."""
        return len(self) if self.inliers is None else int(self.inliers.sum())

    @property
    def verdict(self) -> Verdict | None:
        """Whether the photos show the same place; None before verification."""
        return None if self.significance is None else verdict(self.significance)

    def verified(self) -> Matches:
        """The inliers only; before verification, all matches."""
        if self.inliers is None:
            return self
        keep = self.inliers
        return replace(
            self,
            indices=self.indices[keep],
            similarity=self.similarity[keep],
            confidence=None if self.confidence is None else self.confidence[keep],
            inliers=keep[keep],
        )
