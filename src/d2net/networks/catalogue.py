"""The named weights, and the input normalisations that weights are trained with."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import Tensor


@dataclass(frozen=True)
class Normalisation:
    """Normalisation of an image for the first convolution.

    Attributes:
        name: "caffe" or "torch", as in files and in the release's training options.
        order: order of the colour channels.
        scale: factor on values of 0 to 255; it is applied first.
        mean: subtracted from each channel, in `order`.
        std: divisor of each channel, in `order`.
    """

    name: str
    order: Literal["BGR", "RGB"]
    scale: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __call__(self, images: Tensor) -> Tensor:
        """Normalise `images`, ... x 3 x H x W float32 in RGB order, 0 to 255."""
        x = images.flip(-3) if self.order == "BGR" else images
        mean = x.new_tensor(self.mean)[:, None, None]
        std = x.new_tensor(self.std)[:, None, None]
        return (x * self.scale - mean) / std


CAFFE = Normalisation("caffe", "BGR", 1.0, (103.939, 116.779, 123.68), (1.0, 1.0, 1.0))
"""Normalisation of the 2014 VGG models and of all weights by the authors of D2-Net."""

TORCH = Normalisation("torch", "RGB", 1 / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Normalisation of torchvision's VGG-16, the release's other `--preprocessing`."""

NORMALISATIONS: Mapping[str, Normalisation] = {"caffe": CAFFE, "torch": TORCH}


def expand_user(path: str | os.PathLike[str]) -> Path:
    """Replace ~ by the home folder. Without such a folder the path stays as it is."""
    return Path(os.path.expanduser(path))  # noqa: PTH111 (pathlib raises if there is none)


def cache_folder() -> Path:
    """`$D2NET_CACHE`, `$XDG_CACHE_HOME/d2net`, `~/.cache/d2net`; without a home a temporary one."""
    own, xdg = os.environ.get("D2NET_CACHE"), os.environ.get("XDG_CACHE_HOME")
    folder = expand_user(own or (Path(xdg) / "d2net" if xdg else "~/.cache/d2net"))
    return Path(tempfile.gettempdir(), "d2net") if str(folder).startswith("~") else folder


PACKAGED = Path(__file__).with_name("pretrained")


@dataclass(frozen=True, kw_only=True)
class WeightsRecord:
    """A named file of weights.

    Attributes:
        name: the name.
        url: address of the download; None for packaged weights.
        sha256: checksum of the unpacked file; None if the source states none.
        bytes: size of the unpacked file; None if the source states none.
        licence: the licence, and the part of the weights that it covers.
        training_data: description of the training data.
        advice: the use that the weights are made for.
    """

    name: str
    url: str | None = None
    sha256: str | None = None
    bytes: int | None = None
    licence: str
    training_data: str
    advice: str

    @property
    def path(self) -> Path:
        """Path of the file, which may have to be downloaded first."""
        if self.url is None:
            return PACKAGED / f"{self.name}.safetensors"
        return cache_folder() / f"{self.name}.pth"

    @property
    def state(self) -> Literal["packaged", "cached", "downloadable"]:
        """Where the file is."""
        if self.url is None:
            return "packaged"
        return "cached" if self.path.exists() else "downloadable"


def _of_the_authors(name: str, training_data: str, advice: str) -> WeightsRecord:
    return WeightsRecord(
        name=name,
        url=f"https://dusmanu.com/files/d2-net/{name}.pth",
        licence=(
            "not stated for the file itself; the authors' repository, which links to it, is under "
            "the Clear BSD licence, and the VGG-16 it starts from under CC BY 4.0"
        ),
        training_data=training_data,
        advice=advice,
    )


_IMAGENET = "ImageNet (ILSVRC-2014), image classification"
_OF_D2NET = (
    "CC BY 4.0 for what is d2net's; photos without a stated licence were trained on: see "
    "MODEL_CARD.md"
)

CATALOGUE: Mapping[str, WeightsRecord] = {
    record.name: record
    for record in (
        WeightsRecord(
            name="seasons",
            sha256="698be4e93bbfcbf5d587960d8e06cf80cd76e2ebb831c7a9afaf0d54cb8c9155",
            bytes=16_261_520,
            licence=(
                "CC BY 4.0 for what is the authors' of VGG-16 and of d2net; photos without a "
                "stated licence were trained on: see MODEL_CARD.md"
            ),
            training_data=f"{_IMAGENET}; then conv4_1 to conv4_3 on the photos in MODEL_CARD.md",
            advice="trained on photos of many seasons, hours and sensors; packaged",
        ),
        WeightsRecord(
            name="light",
            sha256="b8211f31ed2a8118b09a737c81e3b3e9044fe946e7d9f1663240832346945dac",
            bytes=3_511_914,
            licence=_OF_D2NET,
            training_data=(
                "outputs of ALIKED-n16, ALIKED-n16rot (BSD-3-Clause) and seasons on the photos in "
                "MODEL_CARD.md"
            ),
            advice="the small, fast network; packaged",
        ),
        WeightsRecord(
            name="learned",
            sha256="7d7557e8c2dc23404d56f66c95c9001e9b16aa488a3ee14f5d2125c653c91912",
            bytes=2_064_670,
            licence=_OF_D2NET,
            training_data="features of light on the photos in MODEL_CARD.md",
            advice="a matcher for the features of light: --matcher learned; packaged",
        ),
        WeightsRecord(
            name="learned_seasons",
            sha256="2d5a1e87ef49dd83cde5aa3622c8264cf0bf67ac88077f5e1f827c5077396b2b",
            bytes=2_163_110,
            licence=_OF_D2NET,
            training_data="features of light+seasons on the photos in MODEL_CARD.md",
            advice="a matcher for the features of the default: --matcher learned; packaged",
        ),
        WeightsRecord(
            name="ots",
            sha256="01e1e8a017c9a182a597d44ba38e92f39d190019332f6fa75219ebadd733b701",
            bytes=15_272_984,
            licence="CC BY 4.0",
            training_data=_IMAGENET,
            advice="off the shelf: never trained for matching; packaged, nothing is downloaded",
        ),
        _of_the_authors(
            "d2_tf",
            f"{_IMAGENET}; then conv4_3 on MegaDepth",
            "the authors' trained weights and their default: to compare with the release; not "
            "for evaluation on PhotoTourism scenes, nor on MegaDepth's 0015 and 0022 (the "
            "MegaDepth-1500 test), which are in the release's list of training scenes",
        ),
        _of_the_authors(
            "d2_tf_no_phototourism",
            f"{_IMAGENET}; then conv4_3 on MegaDepth without the scenes shared with PhotoTourism",
            "for evaluation on PhotoTourism and the Image Matching Challenge; MegaDepth's "
            "0015 and 0022 (the MegaDepth-1500 test) may be among its training scenes",
        ),
        _of_the_authors(
            "d2_ots",
            _IMAGENET,
            "the authors' own file of the off-the-shelf weights; `ots` needs no download",
        ),
    )
}

DEFAULT, DEFAULT_ORIGINAL = "light+seasons", "ots"
"""The weights that the name `default` stands for, and those with `original`."""
