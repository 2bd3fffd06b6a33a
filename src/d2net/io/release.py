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

from d2net.errors import InputError
from d2net.features import Features
from d2net.io.atomic import replacing

Format = Literal["npz", "mat"]

_MAT_TEXT = 116
"""A mat file begins with 116 characters of free text, where SciPy writes the time."""


def write_release(path: str | Path, features: Features, format: Format = "npz") -> None:
    """Write one photo's features; equal features give equal bytes.

    Args:
        path: the file, usually the photo's path with ".d2-net" appended.
        features: stored as float32, without the uncertainty and the photo's size.
        format: "npz" or "mat".

    Raises:
        InputError: the format is another one.
        OutputError: the file cannot be written.
    """
    on_cpu = features.to("cpu")
    keypoints = torch.cat([on_cpu.keypoints, on_cpu.scales[:, None]], dim=1).numpy()
    scores = on_cpu.scores.numpy()
    descriptors = on_cpu.descriptors.float().numpy()
    buffer = io.BytesIO()
    if format == "npz":  # NumPy would append .npz to a file name
        np.savez(buffer, keypoints=keypoints, scores=scores, descriptors=descriptors)
    elif format == "mat":
        from scipy.io import savemat

        arrays = {"keypoints": keypoints, "scores": scores, "descriptors": descriptors}
        savemat(buffer, arrays)  # type: ignore[arg-type]
        buffer.seek(0)
        buffer.write(b"MATLAB 5.0 MAT-file, written by d2net".ljust(_MAT_TEXT))
    else:
        raise InputError(f"the format must be 'npz' or 'mat', not {format!r}.")
    path = Path(path)
    with replacing(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())
