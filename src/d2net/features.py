"""The results of extraction and matching: `Features` and `Matches`.

Only `d2net.io` converts other layouts: hloc's D x N, the release's N x 3, COLMAP's half pixel.
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

    All tensors are on one device, have N >= 0 rows and no gradient. Never change them in place.

    Attributes:
        keypoints: N x 2 float32, (x, y) in pixels of the photo as given (upright unless asked
            otherwise); the centre of the top-left pixel is (0, 0).
        scores: N float32, larger is better.
        scales: N float32, 1 / factor of the pyramid level, relative to the photo after the size
            limits: 2 for a keypoint found at half that size.
        descriptors: N x D, unit length, float32 or float16.
        image_size: (width, height) of the photo in pixels.
        uncertainty: N float32, standard deviation of the position in pixels of the photo.
        descriptor_id: name and checksum of the weights and type of the descriptors, such as
            "ots 01e1e8a0 plain". Only descriptors with equal ids can be compared. None if unknown,
            as in files of other programs.
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
        _check("keypoints", self.keypoints, (n, 2), torch.float32)
        for name in ("scores", "scales", "uncertainty"):
            _check(name, getattr(self, name), (n,), torch.float32)
        length = self.descriptors.shape[-1] if self.descriptors.ndim == 2 else "D"
        _check("descriptors", self.descriptors, (n, length), torch.float32, torch.float16)
        for name in _ARRAYS:
            array = getattr(self, name).detach()
            if name != "descriptors" and not array.isfinite().all():
                raise InputError(f"{name} must be finite, but some are NaN or infinite")
            if name in ("scales", "uncertainty") and (array < 0).any():
                raise InputError(f"{name} must be 0 or more, but the minimum is {array.min():g}")
            object.__setattr__(self, name, array)
        width, height = (int(edge) for edge in self.image_size)
        if min(width, height) < 1:
            raise InputError(f"image_size must be (width, height) in pixels, not {self.image_size}")
        object.__setattr__(self, "image_size", (width, height))

    def __len__(self) -> int:
        return len(self.keypoints)

    def __repr__(self) -> str:
        width, height = self.image_size
        kind = f"{self.descriptors.shape[1]}-D {_name(self.descriptors.dtype)}"
        return f"Features({len(self)} keypoints, {kind}, {width} x {height} px)"

    def __getitem__(self, rows: Tensor | slice) -> Features:
        """The features at `rows`: indices, a boolean mask or a slice."""
        if isinstance(rows, slice | np.ndarray):  # torch takes no negative steps
            rows = torch.from_numpy(np.arange(len(self))[rows].copy())
        return replace(self, **{name: getattr(self, name)[rows] for name in _ARRAYS})

    def best(self, n: int | None) -> Features:
        """The n features with the highest scores, best first; `self` if it has no more than n."""
        if n is None or len(self) <= n:
            return self
        if n < 0:
            raise InputError(f"n must be 0 or more, not {n}")
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
        """A list of `cv2.KeyPoint` and descriptors N x D float32, as OpenCV's detectors return."""
        import cv2

        rows = torch.column_stack([self.keypoints, 4 * self.scales, self.scores]).tolist()
        keypoints = [cv2.KeyPoint(x, y, size, -1.0, score) for x, y, size, score in rows]
        return keypoints, self.descriptors.float().cpu().numpy()

    def to_dict(self) -> dict[str, Tensor]:
        """Float32 tensors with the keys and the batch dimension of LightGlue and kornia.

        `keypoints` 1 x N x 2, `keypoint_scores` 1 x N, `descriptors` 1 x N x D and `image_size`
        1 x 2 (width, height).
        """
        return {
            "keypoints": self.keypoints[None],
            "keypoint_scores": self.scores[None],
            "descriptors": self.descriptors.float()[None],
            "image_size": self.keypoints.new_tensor([self.image_size]),
        }


class LazyFeatures(Mapping[str, Features]):
    """Features of the photos `names`. `load` reads them on each access; none stay in memory."""

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
        matrix: the fitted 3 x 3 float64 matrix (pixels, centres at integers), or None without one.
        significance: see `geometry.significance`: minus log10 of the probability that matches of
            two different places agree with a model equally well; None before verification.
        confidence: K float32, the calibrated probability that a match is right; None without one.
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
        _check("indices", self.indices, (k, 2), torch.int64)
        for name in ("similarity", "confidence", "inliers"):
            if (values := getattr(self, name)) is not None:
                _check(name, values, (k,), torch.bool if name == "inliers" else torch.float32)

    def __len__(self) -> int:
        return len(self.indices)

    def __repr__(self) -> str:
        if self.inliers is None:
            return f"Matches({len(self)})"
        return f"Matches({len(self)}, {self.num_inliers} inliers, {self.model} model)"

    def points(
        self, a: Features, b: Features
    ) -> tuple[np.ndarray[Any, np.dtype[np.float32]], np.ndarray[Any, np.dtype[np.float32]]]:
        """Positions of the matched keypoints of both photos, as OpenCV takes them.

        Two K x 2 float32 arrays of (x, y) in pixels; add 0.5 for pycolmap's cameras.
        `matches.verified().points(a, b)` gives the positions of the inliers.
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


def _check(name: str, tensor: Tensor, shape: tuple[int | str, ...], *dtypes: torch.dtype) -> None:
    if not isinstance(tensor, Tensor):
        raise InputError(f"{name} must be a tensor, not {type(tensor).__name__}")
    if tuple(tensor.shape) != shape or tensor.dtype not in dtypes:
        given = f"{_name(tensor.dtype)} of shape {tuple(tensor.shape)}"
        expected = f"{' or '.join(map(_name, dtypes))} of shape {shape}"
        raise InputError(f"{name} must be {expected}, not {given}")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
