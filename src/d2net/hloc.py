"""D2-Net as an extractor of hloc, without editing hloc.

Importing this module makes hloc know the extractor, and `conf` makes the configuration that hloc's
`extract_features.main` takes:

```python
import d2net.hloc
from hloc import extract_features

conf = d2net.hloc.conf(max_keypoints=4096)
features = extract_features.main(conf, photos, output)
```

hloc's own extractor `d2net`, the 2019 release as a submodule, stays what it is: this one is called
`d2net_package`. docs/hloc.md goes on to a reconstruction.

Source: https://github.com/cvg/Hierarchical-Localization, hloc/utils/base_model.py and
hloc/extract_features.py.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from d2net.errors import InputError, MissingPackageError
from d2net.extraction.d2net import D2Net
from d2net.io.h5 import typical_uncertainty
from d2net.settings import ExtractionSettings

try:  # hloc imports pycolmap, which must not come before numpy: that is loaded by now
    from hloc.utils.base_model import BaseModel
except ImportError as error:
    raise MissingPackageError(
        f"d2net.hloc is a part for hloc, which cannot be imported ({error}); it is not on the "
        "package index: pip install git+https://github.com/cvg/Hierarchical-Localization"
    ) from error

NAME = "d2net_package"
"""What hloc calls the extractor."""

_MODULE = f"hloc.extractors.{NAME}"
_BY_HLOC = ("max_edge", "max_sum_edges", "upright")
"""Settings that are hloc's business, for it reads the photos."""


def conf(
    *,
    weights: str = "default",
    resize_max: int | None = 1600,
    **settings: Any,  # noqa: ANN401 (fields of ExtractionSettings)
) -> dict[str, Any]:
    """A configuration for hloc's `extract_features.main`.

    Its output is named by all that is chosen here: hloc keeps what is in a features file already,
    however that was made.

    Args:
        weights: as for `D2Net.from_pretrained`.
        resize_max: longest edge in pixels; hloc reduces larger photos, with the pixels that
            `D2Net.extract` has too. None for no limit.
        **settings: `keypoints`, `descriptor`, `original`, `multiscale`, `turns`, `max_keypoints`,
            `score_threshold`, `precision` of `ExtractionSettings`.

    Raises:
        InputError: a setting is unknown, impossible, or hloc's business.
    """
    _checked(settings)
    chosen: dict[str, Any] = {"weights": weights} if weights != "default" else {}
    chosen |= settings
    parts = [f"r{resize_max}", *(f"{key}={_short(value)}" for key, value in chosen.items())]
    return {
        "output": "-".join(["feats-d2net", *parts]),
        "model": {"name": NAME, "weights": weights, **settings},
        "preprocessing": {
            "grayscale": False,
            "resize_max": resize_max,
            "interpolation": "pil_bilinear",
        },
    }


class Extractor(BaseModel):  # type: ignore[misc] # hloc has no types
    """`D2Net` under hloc's contract; hloc makes it, by `conf`.

    Attributes:
        detection_noise: standard deviation of the last image's positions, pixels of that image.
    """

    __module__ = _MODULE  # hloc takes the one class that was defined under the name it asked for

    # The other settings' defaults depend on `original`: `ExtractionSettings` knows them.
    default_conf = {"weights": "default"}  # noqa: RUF012 (hloc's contract)
    required_inputs = ["image"]  # noqa: RUF012

    def _init(self, conf: Mapping[str, Any]) -> None:
        """Make the network of a configuration: hloc's `name`, `weights`, and settings."""
        settings = {k: v for k, v in conf.items() if k not in ("name", "weights")}
        self.net = D2Net.from_pretrained(conf["weights"], **_checked(settings))

    def _forward(self, data: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Features of one image.

        Args:
            data: `image`, 1 x 3 x H x W float in [0, 1], used at its own size.

        Returns:
            `keypoints` 1 x N x 2 float64, (x, y) in pixels of the image, the centre of the top-left
            pixel at (0, 0); `scores` 1 x N and `descriptors` 1 x D x N float32.
        """
        image = data["image"].clamp(0, 1)  # some of hloc's ways to resize overshoot
        features = self.net.extract(image, max_edge=None, max_sum_edges=None)
        self.detection_noise = typical_uncertainty(features)
        return {
            # hloc's as_half, its default, would store float32 as float16: half a pixel wrong
            # beyond 1024. float64 it leaves alone.
            "keypoints": features.keypoints.double()[None],
            "scores": features.scores[None],
            "descriptors": features.descriptors.T[None],
        }


def _checked(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """The same settings, if they are ones that the extractor can take."""
    for name in settings:
        if name in _BY_HLOC:
            raise InputError(
                f"{name} is no setting of the extractor: hloc reads the photos itself, as stored, "
                "and reduces them to resize_max"
            )
    ExtractionSettings.from_dict(settings)
    return settings


def _short(value: object) -> str:
    """A value as it can stand in a file's name."""
    return Path(value).name if isinstance(value, str) else str(value)


sys.modules[_MODULE] = sys.modules[__name__]
