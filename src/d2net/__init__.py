"""d2net: match photos across day and night, seasons and years.

D2-Net (Dusmanu et al., "D2-Net: A Trainable CNN for Joint Description and Detection of Local
Features", CVPR 2019): reproduced exactly, or with its faults corrected.

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
import zlib  # noqa: F401 (if pycolmap loads the library first, pillow crashes when it writes PNG)
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from d2net.errors import D2NetError as D2NetError
    from d2net.errors import FormatError as FormatError
    from d2net.errors import ImageError as ImageError
    from d2net.errors import InputError as InputError
    from d2net.errors import MappingError as MappingError
    from d2net.errors import MissingPackageError as MissingPackageError
    from d2net.errors import OutputBusyError as OutputBusyError
    from d2net.errors import OutputError as OutputError
    from d2net.errors import TrainingError as TrainingError
    from d2net.errors import WeightsError as WeightsError
    from d2net.extraction.d2net import D2Net as D2Net
    from d2net.extraction.folder import extract_folder as extract_folder
    from d2net.features import Features as Features
    from d2net.features import Matches as Matches
    from d2net.io.h5 import FeatureFile as FeatureFile
    from d2net.io.h5 import FeatureWriter as FeatureWriter
    from d2net.io.h5 import MatchFile as MatchFile
    from d2net.io.h5 import MatchWriter as MatchWriter
    from d2net.io.image_lists import find_images as find_images
    from d2net.io.images import read_image as read_image
    from d2net.mapping.localize import Map as Map
    from d2net.mapping.reconstruct import reconstruct as reconstruct
    from d2net.mapping.settings import MappingSettings as MappingSettings
    from d2net.matching import match as match
    from d2net.matching.match_pairs import match_pairs as match_pairs
    from d2net.matching.nearest import mutual_nearest as mutual_nearest
    from d2net.matching.pair_selection import PairChoice as PairChoice
    from d2net.matching.refine import refine as refine
    from d2net.matching.verification import verify as verify
    from d2net.onnx.export import export_onnx as export_onnx
    from d2net.settings import ExtractionSettings as ExtractionSettings
    from d2net.visualization import plot_keypoints as plot_keypoints
    from d2net.visualization import plot_matches as plot_matches

_PUBLIC = {
    "errors": (
        *("D2NetError", "FormatError", "ImageError", "InputError", "MappingError"),
        *("MissingPackageError", "OutputBusyError", "OutputError", "TrainingError", "WeightsError"),
    ),
    "extraction.d2net": ("D2Net",),
    "extraction.folder": ("extract_folder",),
    "features": ("Features", "Matches"),
    "io.h5": ("FeatureFile", "FeatureWriter", "MatchFile", "MatchWriter"),
    "io.image_lists": ("find_images",),
    "io.images": ("read_image",),
    "mapping.localize": ("Map",),
    "mapping.reconstruct": ("reconstruct",),
    "mapping.settings": ("MappingSettings",),
    "matching": ("match",),
    "matching.match_pairs": ("match_pairs",),
    "matching.nearest": ("mutual_nearest",),
    "matching.pair_selection": ("PairChoice",),
    "matching.refine": ("refine",),
    "matching.verification": ("verify",),
    "onnx.export": ("export_onnx",),
    "settings": ("ExtractionSettings",),
    "visualization": ("plot_keypoints", "plot_matches"),
}
_MODULES = {name: module for module, names in _PUBLIC.items() for name in names}

__all__ = ["__version__", *_MODULES]  # noqa: PLE0604 (the keys are strings)


def __getattr__(name: str) -> Any:  # noqa: ANN401 (any public object)
    if name not in _MODULES:
        raise AttributeError(f"module 'd2net' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"d2net.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
