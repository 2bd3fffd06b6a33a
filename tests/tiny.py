"""The real code around a network so small that it takes milliseconds, and small photos for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from d2net import D2Net
from d2net.networks.vgg import VGG
from d2net.networks.vgg_backbone import VGGBackbone
from d2net.settings import ExtractionSettings

DATA = Path(__file__).with_name("data")
SIZE = (96, 80)


def make_tiny_network() -> VGGBackbone:
    """Few channels and random weights, with activations that are alive."""
    torch.manual_seed(0)
    backbone = VGGBackbone(((8, 8), (8, 8), (8, 8, 8), (16, 16, 16)))
    with torch.no_grad():
        for parameter in backbone.parameters():
            if parameter.ndim == 4:
                torch.nn.init.kaiming_normal_(parameter)
            else:
                parameter.zero_()
    return backbone


def make_tiny_model(**settings: Any) -> D2Net:
    return D2Net(VGG(make_tiny_network()), settings=ExtractionSettings.from_dict(settings))


def write_photos(folder: Path, *names: str) -> Path:
    """Write a different part of a real photo under each name."""
    with Image.open(DATA / "graf1.jpg") as photo:
        for i, name in enumerate(names):
            left, top = 60 + 90 * (i % 7), 150 + 70 * (i // 7)
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            photo.crop((left, top, left + SIZE[0], top + SIZE[1])).save(folder / name)
    return folder


@contextmanager
def default_type(dtype: torch.dtype) -> Iterator[None]:
    """Let torch make tensors of this type unless it is told another one."""
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)
