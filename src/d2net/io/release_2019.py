"""The files of the 2019 release: NAME.d2-net, one per photo, as NumPy's npz or MATLAB's mat.

`keypoints` N x 3 float32 (x, y in pixels, centre of the top-left pixel at (0, 0), and the scale
1 / pyramid factor), `scores` N, `descriptors` N x D.

Source: https://github.com/mihaidusmanu/d2-net, extract_features.py.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from d2net.features import Features
from d2net.io.atomic import replacing

Format = Literal["npz", "mat"]

_MAT_TEXT = 116  # a mat file begins with 116 characters of free text, where SciPy writes the time


def write_release(path: Path, features: Features, format: Format = "npz") -> None:
    """Write one photo's features as float32; equal features give equal bytes."""
    on_cpu = features.to("cpu")
    keypoints = torch.cat([on_cpu.keypoints, on_cpu.scales[:, None]], dim=1).numpy()
    descriptors = on_cpu.descriptors.float().numpy()
    arrays = {"keypoints": keypoints, "scores": on_cpu.scores.numpy(), "descriptors": descriptors}
    buffer = io.BytesIO()
    if format == "npz":  # NumPy would append .npz to a file name
        np.savez(buffer, **arrays)  # type: ignore[arg-type]  # one of its options is a bool
    else:
        from scipy.io import savemat

        savemat(buffer, arrays)  # type: ignore[arg-type]
        buffer.seek(0)
        buffer.write(b"MATLAB 5.0 MAT-file, written by d2net".ljust(_MAT_TEXT))
    with replacing(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())
