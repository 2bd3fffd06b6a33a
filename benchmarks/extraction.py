"""Extraction end to end against the literal dense transcription of the release."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.table import Row
from benchmarks.timing import medians_in_turn
from d2net import D2Net
from d2net.evaluation.feature_sources import open_source
from d2net.networks.base import View
from d2net.networks.vgg import VGG
from d2net.networks.vgg_backbone import VGGBackbone
from d2net.settings import DescriptorType
from tests import oracle

PHOTO = Path(__file__).parents[1] / "tests" / "data" / "graf1.jpg"
BASELINES = Path(os.environ.get("D2NET_BASELINES", "."))
"""Folder with aliked-n16.pth and xfeat.pt; methods whose weights are not there are left out."""
PYRAMID = (0.5, 1.0, 2.0)
PLAIN = "VGG keypoints, `plain` descriptors"


def rows() -> list[Row]:
    """Ratios at 800 x 640 on the CPU, of the kind of features that the release computes."""
    model = D2Net.from_pretrained("ots", descriptor="plain", max_keypoints=None)
    photo = np.asarray(Image.open(PHOTO))
    backbone = _backbone(model)
    layers = [backbone.convolution(name) for name in backbone.names]
    single = medians_in_turn(
        {
            "release": lambda: oracle.extract(photo, layers),
            "original": lambda: model.extract(photo, original=True),
            "corrected": lambda: model.extract(photo),
            "bfloat16": lambda: model.extract(photo, precision="bfloat16"),
        },
        rounds=3,
    )
    multi = medians_in_turn(
        {
            "release": lambda: oracle.extract(photo, layers, PYRAMID),
            "original": lambda: model.extract(photo, original=True, multiscale=True),
            "corrected": lambda: model.extract(photo, multiscale=True),
            "bfloat16": lambda: model.extract(photo, multiscale=True, precision="bfloat16"),
        },
        rounds=3,
        warm_up=False,
    )
    return [
        _ratio("single-scale, float32, identical output", single, "original", 3.6),
        _ratio(f"single-scale, float32, {PLAIN}", single, "corrected", 3.6, headline=True),
        _ratio(f"single-scale, bfloat16, {PLAIN}", single, "bfloat16", 5.3, headline=True),
        _ratio("multi-scale, float32, identical output", multi, "original", 4.5),
        _ratio(f"multi-scale, float32, {PLAIN}", multi, "corrected", 4.5, headline=True),
        _ratio(f"multi-scale, bfloat16, {PLAIN}", multi, "bfloat16", 5.3, headline=True),
        _share(model, photo),
    ]


def _ratio(
    what: str, seconds: dict[str, float], name: str, target: float, headline: bool = False
) -> Row:
    ratio = seconds["release"] / seconds[name]
    return Row(
        f"speed-up over the release's algorithm at 800 x 640: {what}",
        f"{ratio:.1f} x",
        f"at least {target} x",
        ratio >= target,
        f"{seconds[name]:.2f} s and {seconds['release']:.2f} s",
        headline,
    )


def _share(model: D2Net, photo: np.ndarray) -> Row:
    pixels = torch.from_numpy(photo.copy())[None].float()
    network = model.network
    maps = tuple(part[0] for part in network.compute_maps(pixels, torch.float32))

    def after_the_backbone() -> None:
        view = View(pixels[0], maps, 1, 1.0, torch.float32)
        found = network.detector(original=False).detect(view)
        network.describe(maps, found.positions[found.located], "plain")

    seconds = medians_in_turn(
        {"after": after_the_backbone, "all": lambda: model.extract(photo)},
        rounds=5,
    )
    share = seconds["after"] / seconds["all"]
    return Row(
        "VGG keypoints: share of detection, localization and description in float32 extraction "
        "at 800 x 640",
        f"{share:.1%}",
        "under 8%",
        share < 0.08,
        f"{seconds['after'] * 1000:.0f} ms of {seconds['all']:.2f} s",
        headline=True,
    )


def kind_rows() -> list[Row]:
    """What the other descriptors of a VGG cost at 800 x 640, beside plain ones."""
    model = D2Net.from_pretrained("seasons")
    photo = np.asarray(Image.open(PHOTO))
    kinds: tuple[DescriptorType, ...] = ("plain", "root", "fused", "whitened")
    extractions = {str(kind): partial(model.extract, photo, descriptor=kind) for kind in kinds}
    seconds = medians_in_turn(extractions, rounds=3)
    plain = seconds["plain"]
    return [
        Row(
            f"extraction at 800 x 640, VGG keypoints, `{kind}` descriptors: time relative to "
            "`plain` descriptors",
            f"{seconds[kind] / plain:.2f}",
            "-",
            True,
            f"{seconds[kind]:.2f} s and {plain:.2f} s; {len(extractions[kind]()):,} keypoints",
        )
        for kind in kinds[1:]
    ]


def method_rows() -> list[Row]:
    """Time of the methods in the README, relative to the default."""
    methods = ["light+seasons", "light", "seasons", "ots:original", "rootsift"]
    for name, file in (("aliked", "aliked-n16.pth"), ("xfeat", "xfeat.pt")):
        if (BASELINES / file).is_file():
            methods.append(f"{name}:weights={BASELINES / file}")
    sources = [open_source(method) for method in methods]
    seconds = medians_in_turn(
        {source.name: partial(source.extract, PHOTO, PHOTO.name) for source in sources}, rounds=5
    )
    default = seconds["light+seasons"]
    return [
        Row(
            f"extraction at 800 x 640, {source.name}: time relative to the default",
            f"{seconds[source.name] / default:.2f}",
            "-",
            True,
            f"{seconds[source.name]:.2f} s and {default:.2f} s; "
            f"{len(source.extract(PHOTO, PHOTO.name)):,} keypoints",
        )
        for source in sources[1:]
    ]


def gpu_rows() -> list[Row]:
    """Photos per second on a GPU; none without one."""
    if not torch.cuda.is_available():
        return []
    model = D2Net.from_pretrained("seasons", device="cuda")
    backbone = _backbone(model)
    layers = [backbone.convolution(name) for name in backbone.names]
    photo = np.asarray(Image.open(PHOTO).resize((1600, 1200)))
    work = _operations(model, 1600, 1200)
    size = 8192
    a = torch.randn(size, size, device="cuda", dtype=torch.float16)
    found = []
    for precision in ("float16", "bfloat16"):
        seconds = medians_in_turn(
            {
                "release": lambda: oracle.extract(photo, layers),
                "ours": partial(model.extract, photo, precision=precision),
                "product": lambda: a @ a,
            },
            rounds=5,
        )
        ratio = seconds["release"] / seconds["ours"]
        share = work / seconds["ours"] / (2 * size**3 / seconds["product"])
        found.append(
            Row(
                f"{torch.cuda.get_device_name()}, 1600 x 1200, {precision}, single-scale",
                f"{1 / seconds['ours']:.1f} photos/s",
                "-",
                True,
                f"{ratio:.1f} times as fast as the release's algorithm, "
                f"{share:.0%} of matrix throughput",
            )
        )
    return found


def _backbone(model: D2Net) -> VGGBackbone:
    assert isinstance(model.network, VGG)
    return model.network.backbone


def _operations(model: D2Net, width: int, height: int) -> int:
    """Floating-point operations of the backbone at stride 4, by direct convolution."""
    backbone = _backbone(model)
    total, size = 0, (height, width)
    for stage, names in enumerate(backbone.stages):
        if stage == len(backbone.stages) - 1:
            size = (size[0] - 1, size[1] - 1)
        elif stage > 0:
            size = (size[0] // 2, size[1] // 2)
        for name in names:
            total += 2 * backbone.convolution(name).weight.numel() * size[0] * size[1]
    return total
