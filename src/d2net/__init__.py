"""d2net: match photos across night, season and years.

D2-Net (Dusmanu et al., "D2-Net: A Trainable CNN for Joint Description and Detection of Local
Features", CVPR 2019): exact, corrected, fast.

```python
import d2net

model = d2net.D2Net.from_pretrained()
a, b = model.extract("a.jpg"), model.extract("b.jpg")
matches = d2net.match(a, b, verify="fundamental")
d2net.plot_matches("a.jpg", "b.jpg", a, b, matches, output="matches.png")
```

Public names are loaded when first used, so that `import d2net` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from d2net.errors import (
        D2NetError,
        FormatError,
        ImageError,
        InputError,
        MappingError,
        MissingPackageError,
        OutputBusyError,
        OutputError,
        TrainingError,
        WeightsError,
    )
    from d2net.extraction.d2net import D2Net
    from d2net.extraction.folder import extract_folder
    from d2net.features import Features, Matches
    from d2net.io.h5 import FeatureFile, FeatureWriter, MatchFile, MatchWriter
    from d2net.io.image_lists import find_images
    from d2net.io.images import read_image
    from d2net.mapping.localize import Map
    from d2net.mapping.reconstruct import reconstruct
    from d2net.mapping.settings import MappingSettings
    from d2net.matching import match
    from d2net.matching.match_pairs import match_pairs
    from d2net.matching.nearest import mutual_nearest
    from d2net.matching.pair_selection import PairChoice
    from d2net.matching.refine import refine
    from d2net.matching.verification import verify
    from d2net.onnx.export import export_onnx
    from d2net.settings import ExtractionSettings
    from d2net.visualization import plot_keypoints, plot_matches

_HOMES = {
    "D2Net": "extraction.d2net",
    "D2NetError": "errors",
    "ExtractionSettings": "settings",
    "FeatureFile": "io.h5",
    "FeatureWriter": "io.h5",
    "Features": "features",
    "FormatError": "errors",
    "ImageError": "errors",
    "InputError": "errors",
    "Map": "mapping.localize",
    "MappingError": "errors",
    "MappingSettings": "mapping.settings",
    "MatchFile": "io.h5",
    "MatchWriter": "io.h5",
    "Matches": "features",
    "MissingPackageError": "errors",
    "OutputBusyError": "errors",
    "OutputError": "errors",
    "PairChoice": "matching.pair_selection",
    "TrainingError": "errors",
    "WeightsError": "errors",
    "export_onnx": "onnx.export",
    "extract_folder": "extraction.folder",
    "find_images": "io.image_lists",
    "match": "matching",
    "match_pairs": "matching.match_pairs",
    "mutual_nearest": "matching.nearest",
    "plot_keypoints": "visualization",
    "plot_matches": "visualization",
    "read_image": "io.images",
    "reconstruct": "mapping.reconstruct",
    "refine": "matching.refine",
    "verify": "matching.verification",
}

__all__ = [
    "D2Net",
    "D2NetError",
    "ExtractionSettings",
    "FeatureFile",
    "FeatureWriter",
    "Features",
    "FormatError",
    "ImageError",
    "InputError",
    "Map",
    "MappingError",
    "MappingSettings",
    "MatchFile",
    "MatchWriter",
    "Matches",
    "MissingPackageError",
    "OutputBusyError",
    "OutputError",
    "PairChoice",
    "TrainingError",
    "WeightsError",
    "__version__",
    "export_onnx",
    "extract_folder",
    "find_images",
    "match",
    "match_pairs",
    "mutual_nearest",
    "plot_keypoints",
    "plot_matches",
    "read_image",
    "reconstruct",
    "refine",
    "verify",
]


def __getattr__(name: str) -> Any:  # noqa: ANN401 (any public object)
    if name not in _HOMES:
        raise AttributeError(f"module 'd2net' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"d2net.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
