"""D2-Net as an extractor of hloc, without editing hloc.

Importing this module registers the extractor in hloc. `conf` makes the configuration for hloc's
`extract_features.main`:

```python
import d2net.hloc
from hloc import extract_features

conf = d2net.hloc.conf(max_keypoints=4096)
features = extract_features.main(conf, photos, output)
```

The extractor is called `d2net_package`, because hloc has an extractor `d2net` of its own: the 2019
release as a submodule. docs/hloc.md continues to a reconstruction.

Source: https://github.com/cvg/Hierarchical-Localization, hloc/utils/base_model.py and
hloc/extract_features.py.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from d2net.errors import InputError, MissingPackageError
from d2net.extraction.d2net import D2Net
from d2net.io.h5 import typical_uncertainty
from d2net.settings import ExtractionSettings

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from d2net.settings import ExtractionOptions

try:  # hloc imports pycolmap, which must be imported after numpy; numpy is loaded by now
    from hloc.utils.base_model import BaseModel
except ImportError as error:
    raise MissingPackageError(
        f"d2net.hloc needs hloc, which cannot be imported ({error}). hloc is not on the package "
        "index: pip install git+https://github.com/cvg/Hierarchical-Localization"
    ) from error

NAME = "d2net_package"
"""hloc's name of the extractor."""

_MODULE = f"hloc.extractors.{NAME}"
_SETTINGS_OF_HLOC = ("max_edge", "max_sum_edges", "upright")


def conf(
    *,
    weights: str = "default",
    resize_max: int | None = 1600,
    **settings: Unpack[ExtractionOptions],
) -> dict[str, Any]:
    """Make a configuration for hloc's `extract_features.main`.

    The name of its output contains all that differs from the defaults, because hloc skips photos
    that a features file contains, whatever their settings were.

    Args:
        weights: as for `D2Net.from_pretrained`.
        resize_max: longest edge in pixels; hloc reduces larger photos, to the same pixels as
            `D2Net.extract`. None for no limit.
        **settings: of `ExtractionSettings`, without `max_edge`, `max_sum_edges` and `upright`:
            hloc reads the photos itself.

    Raises:
        InputError: a setting is unknown or impossible, or hloc reads the photos itself.
    """
    _check(settings)
    given: dict[str, Any] = {"weights": weights} if weights != "default" else {}
    given |= settings
    # Of a weights file the name is enough; a path would make folders.
    values = {key: Path(v).name if isinstance(v, str) else v for key, v in given.items()}
    parts = [f"r{resize_max}", *(f"{key}={value}" for key, value in values.items())]
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
    """`D2Net` with hloc's interface; hloc makes it from the configuration.

    Attributes:
        detection_noise: standard deviation of the keypoints of the last image, in its pixels.
    """

    __module__ = _MODULE  # hloc looks for a class that was defined in the module of this name

    # Defaults of the other settings depend on `original`, and are left to `ExtractionSettings`.
    default_conf = {"weights": "default"}  # noqa: RUF012 (hloc's interface)
    required_inputs = ["image"]  # noqa: RUF012

    def _init(self, conf: Mapping[str, Any]) -> None:
        """Load the network; `conf` has hloc's `name`, `weights` and our settings."""
        settings = {k: v for k, v in conf.items() if k not in ("name", "weights")}
        _check(settings)
        self.net = D2Net.from_pretrained(conf["weights"], **settings)

    def _forward(self, data: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Extract the features of one image.

        Args:
            data: `image`, 1 x 3 x H x W float in [0, 1], used at its own size.

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
        if name in _SETTINGS_OF_HLOC:
            raise InputError(
                f"{name} is not a setting of the extractor: hloc reads the photos itself, as "
                "stored, and reduces them to resize_max"
            )
    ExtractionSettings.from_dict(settings)


sys.modules[_MODULE] = sys.modules[__name__]
