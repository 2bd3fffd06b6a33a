"""D2-Net as an extractor of hloc, and the learned matcher as one of its matchers.

Importing this module registers both in hloc, under the name `d2net_package` (hloc's own `d2net` is
the 2019 release as a submodule); docs/hloc.md has an example. Source:
https://github.com/cvg/Hierarchical-Localization, hloc/utils/base_model.py, hloc/extract_features.py
and hloc/match_features.py.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Unpack

from d2net.errors import InputError, MissingPackageError
from d2net.extraction.d2net import D2Net
from d2net.features import Features
from d2net.io.h5 import typical_uncertainty
from d2net.matching import match
from d2net.networks.catalogue import CATALOGUE, expand_user
from d2net.networks.weights import file_names
from d2net.settings import ExtractionOptions, ExtractionSettings

try:  # hloc imports pycolmap, which must be imported after numpy; numpy is loaded by now
    from hloc.utils.base_model import BaseModel
except ImportError as error:
    raise MissingPackageError(
        f"d2net.hloc needs hloc, which cannot be imported ({error}). hloc is not on the package "
        "index: pip install git+https://github.com/cvg/Hierarchical-Localization"
    ) from error

NAME = "d2net_package"  # hloc's name of the extractor and of the matcher

_EXTRACTORS, _MATCHERS = f"hloc.extractors.{NAME}", f"hloc.matchers.{NAME}"


def conf(
    *,
    weights: str | Path = "default",
    resize_max: int | None = 1600,
    **settings: Unpack[ExtractionOptions],
) -> dict[str, Any]:
    """Make a configuration for hloc's `extract_features.main`.

    The name of its output contains all settings that differ from the defaults, and the beginning of
    the checksums of weights files, because hloc skips photos that a features file contains.

    Args:
        weights: as for `D2Net.from_pretrained`.
        resize_max: longest edge in pixels; hloc reduces larger photos, as `D2Net.extract` with
            `max_sum_edges=None`. None for no limit.
        **settings: of `ExtractionSettings`, without `max_edge`, `max_sum_edges` and `upright`:
            hloc reads the photos itself.

    Raises:
        InputError: a setting is unknown, impossible or one of the three above.
    """
    _check(settings)
    given: dict[str, Any] = {} if weights == "default" else {"weights": _identity(weights)}
    given |= settings
    parts = [f"r{resize_max}", *(f"{key}={value}" for key, value in given.items())]
    return {
        "output": "-".join(["feats-d2net", *parts]),
        "model": {"name": NAME, "weights": str(weights), **settings},
        "preprocessing": {
            "grayscale": False,
            "resize_max": resize_max,
            "interpolation": "pil_bilinear",
        },
    }


def matcher_conf(weights: str | Path) -> dict[str, Any]:
    """Make a configuration for hloc's `match_features.main`; `weights` is "learned" or a file."""
    return {
        "output": f"matches-d2net-{_identity(weights)}",
        "model": {"name": NAME, "weights": str(weights)},
    }


def _identity(weights: str | Path) -> str:
    """The names of the weights without folders; files have a part of their checksum."""
    names = []
    for part in file_names(weights):
        path = expand_user(part)
        is_file = part not in CATALOGUE and path.is_file()
        checksum = f"-{sha256(path.read_bytes()).hexdigest()[:8]}" if is_file else ""
        names.append(path.name + checksum)
    return "+".join(names)


class Extractor(BaseModel):  # type: ignore[misc] # hloc has no types
    """`D2Net` with hloc's interface; hloc makes it from the configuration.

    Attributes:
        detection_noise: standard deviation of the keypoints of the last image, in its pixels.
    """

    __module__ = _EXTRACTORS  # hloc looks for a class that was defined in the module of this name

    # Defaults of the other settings depend on `original`, and are left to `ExtractionSettings`.
    default_conf = {"weights": "default"}  # noqa: RUF012 (hloc's interface)
    required_inputs = ["image"]  # noqa: RUF012

    def _init(self, conf: Mapping[str, Any]) -> None:
        settings = {k: v for k, v in conf.items() if k not in ("name", "weights")}
        _check(settings)
        self.net = D2Net.from_pretrained(conf["weights"], **settings)

    def _forward(self, data: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Extract the features of an image, 1 x 3 x H x W in [0, 1], at its own size.

        Returns:
            `keypoints` 1 x N x 2 float64, (x, y) in pixels of the image, the centre of the top-left
            pixel at (0, 0); `scores` 1 x N and `descriptors` 1 x D x N float32.
        """
        image = data["image"].clamp(0, 1)  # some of hloc's interpolations overshoot
        features = self.net.extract(image, max_edge=None, max_sum_edges=None)
        self.detection_noise = typical_uncertainty(features)
        return {
            # hloc's default as_half converts float32 to float16, which is half a pixel wrong beyond
            # 1024. It does not convert float64.
            "keypoints": features.keypoints.double()[None],
            "scores": features.scores[None],
            "descriptors": features.descriptors.T[None],
        }


def _check(settings: Mapping[str, Any]) -> None:
    for name in settings:
        if name in ("max_edge", "max_sum_edges", "upright"):
            raise InputError(
                f"{name} is not a setting of the extractor: hloc reads the photos itself, as "
                "stored, and reduces them to resize_max"
            )
    ExtractionSettings.from_dict(settings)


class Matcher(BaseModel):  # type: ignore[misc]
    """The learned matcher with hloc's interface; hloc makes it from the configuration."""

    __module__ = _MATCHERS
    required_inputs = [  # noqa: RUF012
        f"{name}{i}" for i in (0, 1) for name in ("image", "keypoints", "scores", "descriptors")
    ]

    def _init(self, conf: Mapping[str, Any]) -> None:
        self.weights = str(conf["weights"])

    def _forward(self, data: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Match the features of a pair.

        Returns:
            `matches0` 1 x N: the row of the second photo, or -1; `matching_scores0` 1 x N: the
            probability that the match is right.
        """
        a, b = (self._features(data, i) for i in (0, 1))
        found = match(a, b, matcher=self.weights)
        rows = torch.full((len(a),), -1, device=a.keypoints.device)
        scores = torch.zeros_like(a.scores)
        rows[found.indices[:, 0]] = found.indices[:, 1]
        scores[found.indices[:, 0]] = found.scores
        return {"matches0": rows[None], "matching_scores0": scores[None]}

    def _features(self, data: Mapping[str, Tensor], i: int) -> Features:
        keypoints, scores = data[f"keypoints{i}"][0].float(), data[f"scores{i}"][0].float()
        height, width = data[f"image{i}"].shape[-2:]
        ones = torch.ones_like(scores)
        descriptors = data[f"descriptors{i}"][0].T.float()
        return Features(keypoints, scores, ones, descriptors, (width, height), ones)


sys.modules[_EXTRACTORS] = sys.modules[_MATCHERS] = sys.modules[__name__]
