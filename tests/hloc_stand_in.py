"""As much of hloc as extractors and matchers meet, after its contract, for tests without hloc.

`write` makes a package `hloc` of it. The rules are those of hloc c13273b: utils/base_model.py,
extract_features.py.
"""

from __future__ import annotations

from pathlib import Path

BASE_MODEL = '''
import abc
import inspect

import torch


class BaseModel(torch.nn.Module, metaclass=abc.ABCMeta):
    default_conf = {}
    required_inputs = []

    def __init__(self, conf):
        super().__init__()
        self.conf = {**self.default_conf, **conf}
        self._init(self.conf)

    def forward(self, data):
        assert all(key in data for key in self.required_inputs)
        return self._forward(data)

    @abc.abstractmethod
    def _init(self, conf): ...

    @abc.abstractmethod
    def _forward(self, data): ...


def dynamic_load(root, model):
    """The one model that was defined in the module of this name."""
    path = f"{root.__name__}.{model}"
    module = __import__(path, fromlist=[""])
    classes = [c for _, c in inspect.getmembers(module, inspect.isclass) if c.__module__ == path]
    (found,) = [c for c in classes if issubclass(c, BaseModel)]
    return found
'''

EXTRACT_FEATURES = """
from pathlib import Path

import h5py
import numpy as np
import PIL.Image
import torch

from . import extractors
from .utils.base_model import dynamic_load


@torch.no_grad()
def main(conf, image_dir, export_dir, as_half=True):
    output = Path(export_dir, conf["output"] + ".h5")
    output.parent.mkdir(exist_ok=True, parents=True)
    model = dynamic_load(extractors, conf["model"]["name"])(conf["model"]).eval().to("cpu")
    limit = conf["preprocessing"]["resize_max"]
    assert conf["preprocessing"]["interpolation"] == "pil_bilinear"
    for path in sorted(image_dir.iterdir()):
        photo = PIL.Image.open(path).convert("RGB")
        original = size = np.array(photo.size)
        if limit and max(size) > limit:
            size = np.array([int(round(x * limit / max(size))) for x in size])
            photo = photo.resize(size, PIL.Image.BILINEAR)
        image = torch.from_numpy(np.array(photo, np.float32).transpose(2, 0, 1) / 255)
        found = {k: v[0].cpu().numpy() for k, v in model({"image": image[None]}).items()}
        scales = (original / size).astype(np.float32)
        found["keypoints"] = (found["keypoints"] + 0.5) * scales[None] - 0.5
        uncertainty = getattr(model, "detection_noise", 1) * scales.mean()
        found["image_size"] = original
        with h5py.File(output, "a") as file:
            group = file.create_group(path.name)
            for key, value in found.items():
                half = as_half and value.dtype == np.float32
                group.create_dataset(key, data=value.astype(np.float16) if half else value)
            group["keypoints"].attrs["uncertainty"] = uncertainty
    return output
"""


def write(folder: Path) -> None:
    """Make the package `hloc` in `folder`."""
    for name, text in {
        "__init__.py": "import pycolmap\n",
        "extractors/__init__.py": "",
        "matchers/__init__.py": "",
        "utils/__init__.py": "",
        "utils/base_model.py": BASE_MODEL,
        "extract_features.py": EXTRACT_FEATURES,
    }.items():
        path = folder / "hloc" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
