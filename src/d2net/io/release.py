"""The files of the 2019 release: NAME.d2-net, one per photo, as NumPy's npz or MATLAB's mat.

`keypoints` N x 3 float32 (x, y in pixels, centre of the top-left pixel at (0, 0), and the scale
1 / pyramid factor), `scores` N, `descriptors` N x D.

Source: https://github.com/mihaidusmanu/d2-net, extract_features.py.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
import torch

from d2net.errors import FormatError, InputError
from d2net.features import Features
from d2net.io.arrays import Array, read_floats
from d2net.io.atomic import replacing

Format = Literal["npz", "mat"]

_ARRAYS = ("keypoints", "scores", "descriptors")
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


def read_release(path: str | Path, image_size: tuple[int, int]) -> Features:
    """Read one photo's features from an npz or mat file.

    Args:
        path: the file.
        image_size: (width, height) of the photo, which the file does not contain.

    Returns:
        The features on the CPU. Their uncertainty, which the file does not contain, is 1 px.

    Raises:
        InputError: the file cannot be read.
        FormatError: it is neither npz nor mat, contains pickled objects (which are never
            executed), or its arrays do not have the layout above.
    """
    try:
        with Path(path).open("rb") as file:
            arrays = _load(file, path)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}).") from error
    where = str(path)
    keypoints = torch.from_numpy(read_floats(arrays, "keypoints", ("N", 3), where)).float()
    n = len(keypoints)
    return Features(
        keypoints=keypoints[:, :2].contiguous(),
        scores=torch.from_numpy(read_floats(arrays, "scores", (n,), where)).float(),
        scales=keypoints[:, 2].contiguous(),
        descriptors=torch.from_numpy(read_floats(arrays, "descriptors", (n, "D"), where)),
        image_size=image_size,
        uncertainty=torch.ones(n),
    )


def _load(file: BinaryIO, path: str | Path) -> dict[str, Array]:
    start = file.read(8)
    file.seek(0)
    try:
        if start.startswith(b"PK"):
            with np.load(file, allow_pickle=False) as archive:
                return {key: archive[key] for key in _ARRAYS if key in archive}
        if start.startswith(b"MATLAB 5"):
            from scipy.io import loadmat

            arrays = loadmat(file, variable_names=_ARRAYS)  # type: ignore[arg-type]
            # MATLAB has no one-dimensional arrays: SciPy writes scores as 1 x N.
            return {k: a.reshape(-1) if k == "scores" else a for k, a in arrays.items()}
    except Exception as error:  # both readers raise many kinds of errors for damaged files
        raise FormatError(
            f"{path} is damaged or contains pickled objects, which are not read ({error})."
        ) from error
    raise FormatError(f"{path} is neither an npz nor a mat file of the 2019 release.")
