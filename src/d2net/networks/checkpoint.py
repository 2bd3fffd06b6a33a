"""Reads weights files, safetensors and torch's own, without executing any of their content.

torch's files are pickles, and a pickle can name any function to be called. Here
`torch.load(weights_only=True)` builds only tensors and plain containers (torch 2.6 or newer:
CVE-2025-32434). The few other names in training checkpoints of the 2019 release get stand-ins, so
that numpy creates no type from an untrusted file either.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from d2net.errors import InputError, WeightsError
from d2net.io.atomic import replacing
from d2net.io.pickles import NumpyType, numpy_scalar
from d2net.networks.light import Light, LightSettings
from d2net.networks.vgg import WHITENING_INPUTS
from d2net.networks.vgg_backbone import VGG16_STAGES


def _shapes() -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    channels = 3
    for i, widths in enumerate(VGG16_STAGES, 1):
        for j, width in enumerate(widths, 1):
            shapes[f"conv{i}_{j}.weight"] = (width, channels, 3, 3)
            shapes[f"conv{i}_{j}.bias"] = (width,)
            channels = width
    return shapes


SHAPES = _shapes()
"""The network's arrays, conv1_1.weight to conv4_3.bias."""

WHITENING = ("whitening.weight", "whitening.bias")
"""Further arrays of weights with a whitening: D x `WHITENING_INPUTS` and D."""

_SEQUENTIAL = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21)
"""Indices of the ten convolutions among VGG-16's layers, including ReLUs and pools."""


def _names_in(prefix: str) -> dict[str, str]:
    places = [f"{prefix}.{i}.{kind}" for i in _SEQUENTIAL for kind in ("weight", "bias")]
    return dict(zip(SHAPES, places, strict=True))


LAYOUTS: Mapping[str, Mapping[str, str]] = {
    "d2net": {name: name for name in SHAPES},
    "release": _names_in("dense_feature_extraction.model"),
    "torchvision": _names_in("features"),
}
"""Names of the network's arrays in files of each layout."""

_PREFIX = re.compile(r"^((module|network|backbone)\.)+")
"""Prefixes of the names by torch's DataParallel and by `D2Net`."""

_LARGEST = 4 << 30
"""Bytes. A full VGG-16 has 0.5 GB, so a larger file is a wrong one and is not read."""

_HEADER_LENGTH = 8
"""Bytes before a safetensors header: its length, little endian."""


@dataclass(frozen=True)
class ArrayInfo:
    """One array of a weights file, with its names in the network and in the file."""

    name: str
    name_in_file: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Training:
    """History of a training checkpoint of the 2019 release.

    Attributes:
        epoch: the epoch after which it was written, from 1; None if unknown.
        losses: mean training loss of each epoch so far.
        arguments: the options of the training command.
    """

    epoch: int | None
    losses: tuple[float, ...]
    arguments: Mapping[str, str]


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """The contents of a weights file.

    Attributes:
        state: conv1_1.weight to conv4_3.bias, finite float32 on the CPU.
        whitening: weight and bias of the whitening, likewise; None if there is none.
        arrays: the network's arrays as they are in the file.
        unused: number of other entries of its state dict, such as the last layers of a full VGG.
        format: "safetensors" or "torch".
        layout: naming of the arrays: "d2net", "release" or "torchvision"; "light" for the network
            light.
        metadata: the strings of a safetensors header.
        training: history of a training checkpoint; None for other files.
    """

    state: dict[str, Tensor]
    whitening: tuple[Tensor, Tensor] | None
    arrays: tuple[ArrayInfo, ...]
    unused: int
    format: str
    layout: str
    metadata: Mapping[str, str]
    training: Training | None


def read_bytes(path: Path) -> bytes:
    """The whole file, so that the same bytes are checked and parsed.

    Raises:
        WeightsError: `path` is missing, a directory, empty, unreadable or absurdly large.
    """
    try:
        if path.is_dir():
            raise WeightsError(f"{path} is a directory: give the weights file itself")
        if not path.exists():
            raise WeightsError(f"there is no weights file {path}: check the path")
        if not path.is_file():  # a pipe or a device may never end
            raise WeightsError(f"{path} is not an ordinary file: give a weights file")
        if path.stat().st_size > _LARGEST:
            raise WeightsError(f"{path} is over 4 GB, far larger than any D2-Net weights file")
        data = path.read_bytes()
    except (OSError, ValueError) as error:
        raise WeightsError(f"the weights file {path} cannot be read: {error}") from error
    if not data:
        raise WeightsError(f"the weights file {path} is empty: get it again from its source")
    return data


def parse(data: bytes, path: Path) -> Checkpoint:
    """The contents of a weights file.

    Args:
        data: the file's bytes: safetensors, or a state dict or training checkpoint of torch in
            the zip format or in the one before torch 1.6.
        path: the file, for messages.

    Raises:
        WeightsError: the file is of another kind, damaged, truncated, not VGG-16 up to conv4_3, or
            asks for something to be executed.
    """
    metadata: Mapping[str, str] = {}
    training = None
    # First safetensors, because the length of its header may begin with the first byte of a pickle.
    if data[_HEADER_LENGTH : _HEADER_LENGTH + 1] == b"{":
        file_format = "safetensors"
        entries, metadata = parse_safetensors(data, path)
    elif data.startswith((b"PK\x03\x04", b"\x80")):
        file_format = "torch"
        entries, training = _parse_torch(data, path)
    else:
        raise WeightsError(
            f"{path} is not a weights file: expected safetensors or a file saved by torch (.pth)"
        )
    if metadata.get("architecture") == "matcher":
        raise WeightsError(
            f"{path} holds a matcher, not a network that makes features: give it to "
            "`d2net match` as --matcher FILE"
        )
    if metadata.get("architecture") == "light":
        return _light(entries, metadata, path)
    layout, tensors = _select(entries, path)
    whitening = _whitening(entries, path)
    return Checkpoint(
        state={name: to_float32(name, tensor, path) for name, tensor in tensors.items()},
        whitening=whitening,
        arrays=tuple(
            ArrayInfo(name, LAYOUTS[layout][name], tuple(tensor.shape), _dtype_name(tensor))
            for name, tensor in tensors.items()
        ),
        unused=len(entries) - len(tensors) - (0 if whitening is None else len(WHITENING)),
        format=file_format,
        layout=layout,
        metadata=metadata,
        training=training,
    )


def _light(entries: Mapping[Any, Any], metadata: Mapping[str, str], path: Path) -> Checkpoint:
    """The contents of a file of the network `light`."""
    try:
        widths = LightSettings.from_dict(json.loads(metadata["widths"]))
        with torch.device("meta"):
            expected = {
                name: tuple(t.shape)
                for name, t in Light(widths).for_inference().state_dict().items()
            }
    except (KeyError, ValueError, TypeError, InputError) as error:
        raise damaged(path, error) from error
    if {name: tuple(tensor.shape) for name, tensor in entries.items()} != expected:
        raise WeightsError(f"{path} does not hold the arrays of the network light: get it again")
    return Checkpoint(
        state={name: to_float32(name, tensor, path) for name, tensor in entries.items()},
        whitening=None,
        arrays=tuple(
            ArrayInfo(name, name, tuple(tensor.shape), _dtype_name(tensor))
            for name, tensor in entries.items()
        ),
        unused=0,
        format="safetensors",
        layout="light",
        metadata=metadata,
        training=None,
    )


def parse_safetensors(data: bytes, path: Path) -> tuple[Mapping[Any, Any], Mapping[str, str]]:
    """The arrays and the header's strings of a safetensors file."""
    try:
        entries = safetensors.torch.load(data)
        end = _HEADER_LENGTH + int.from_bytes(data[:_HEADER_LENGTH], "little")
        metadata = json.loads(data[_HEADER_LENGTH:end]).get("__metadata__") or {}
    except Exception as error:  # an untrusted file may cause any
        raise damaged(path, error) from error
    return entries, metadata


def _parse_torch(data: bytes, path: Path) -> tuple[Mapping[Any, Any], Training | None]:
    try:
        # torch warns about TorchScript archives before it refuses them
        with torch.serialization.safe_globals(_STAND_INS), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loaded = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # an untrusted file may cause any
        asked = re.search(r"GLOBAL (\S+)", str(error))
        if asked is None:
            raise damaged(path, error) from error
        raise WeightsError(
            f"{path} asks for {asked[1]} to be run when it is loaded, which is never done here: "
            "use a file that holds tensors only (torch.save of a state dict), from its authors"
        ) from None
    if not isinstance(loaded, Mapping):
        raise WeightsError(f"{path} holds a {type(loaded).__name__}, not a state dict of tensors")
    model = loaded.get("model")
    if not isinstance(model, Mapping):
        return loaded, None
    return model, _training(loaded)


def damaged(path: Path, error: Exception) -> WeightsError:
    """The error for a file that cannot be read for the reason `error`."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return WeightsError(
        f"the weights file {path} is damaged, truncated or of another kind ({lines[0][:120]}): "
        "get it again from its source"
    )


def _training(loaded: Mapping[Any, Any]) -> Training | None:
    arguments = loaded.get("args")
    if not isinstance(arguments, argparse.Namespace):
        return None
    epoch = loaded.get("epoch_idx")
    losses = loaded.get("train_loss_history")
    return Training(
        epoch=epoch if isinstance(epoch, int) else None,
        losses=tuple(x for x in losses if isinstance(x, float)) if isinstance(losses, list) else (),
        arguments={
            str(key): str(value)
            for key, value in vars(arguments).items()
            if isinstance(value, str | int | float | None)
        },
    )


def _select(entries: Mapping[Any, Any], path: Path) -> tuple[str, dict[str, Any]]:
    """The layout of a state dict, and the network's arrays from it in the network's names."""
    named = {_PREFIX.sub("", str(key)): value for key, value in entries.items()}
    layout = max(LAYOUTS, key=lambda key: len(named.keys() & LAYOUTS[key].values()))
    names = LAYOUTS[layout]
    missing = [name for name in SHAPES if names[name] not in named]
    if len(missing) == len(SHAPES):
        found = ", ".join(list(named)[:3]) or "nothing"
        raise WeightsError(f"{path} holds no known layer of VGG-16, but {found[:120]}")
    if missing:
        raise WeightsError(
            f"{path} is not VGG-16 up to conv4_3: it lacks {names[missing[0]]} and "
            f"{len(missing) - 1} more of the {len(SHAPES)} arrays"
        )
    for name, shape in SHAPES.items():
        value = named[names[name]]
        if not isinstance(value, Tensor):
            raise WeightsError(f"{path} holds a {type(value).__name__} as {name}, not a tensor")
        if tuple(value.shape) != shape:
            raise WeightsError(
                f"{path} is not VGG-16 up to conv4_3: its {names[name]} has shape "
                f"{tuple(value.shape)}, not {shape}"
            )
    return layout, {name: named[names[name]] for name in SHAPES}


def _whitening(entries: Mapping[Any, Any], path: Path) -> tuple[Tensor, Tensor] | None:
    """Weight and bias of the whitening, if the file has one."""
    found = [entries.get(name) for name in WHITENING]
    if found == [None, None]:
        return None
    weight, bias = found
    shapes = [tuple(x.shape) if isinstance(x, Tensor) else None for x in (weight, bias)]
    size = shapes[1][0] if shapes[1] else 0
    if not isinstance(weight, Tensor) or not isinstance(bias, Tensor) or size == 0:
        raise WeightsError(f"{path} holds half of a whitening: get the file again from its source")
    if shapes != [(size, WHITENING_INPUTS), (size,)]:
        raise WeightsError(
            f"{path} holds a whitening of shape {shapes[0]} and {shapes[1]}, not (D, "
            f"{WHITENING_INPUTS}) and (D,): it belongs to another version of d2net"
        )
    return to_float32(WHITENING[0], weight, path), to_float32(WHITENING[1], bias, path)


def to_float32(name: str, tensor: Tensor, where: object) -> Tensor:
    """A contiguous float32 copy; NaN, infinity and other types of numbers are refused."""
    plain = tensor.layout is torch.strided and tensor.device.type == "cpu"
    if not plain or not tensor.is_floating_point():
        raise WeightsError(
            f"{name} of {where} holds {_dtype_name(tensor)} on {tensor.device.type}, not plain "
            "floating-point numbers"
        )
    copy = tensor.detach().to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    if not bool(copy.isfinite().all()):
        raise WeightsError(
            f"{name} of {where} holds NaN or infinity: the training that made it diverged, or the "
            "file is damaged"
        )
    return copy


def save_half(
    path: str | os.PathLike[str], state: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> None:
    """Write arrays as half-precision safetensors, whole or not at all.

    Raises:
        WeightsError: half precision cannot hold a weight.
        OutputError: the file cannot be written.
    """
    arrays = {}
    for name, tensor in state.items():
        arrays[name] = tensor.detach().cpu().half().contiguous()
        to_float32(name, arrays[name], "the weights to be saved in half precision")
    data = safetensors.torch.save(arrays, {"format": "pt", **metadata})
    with replacing(Path(path)) as temporary:
        temporary.write_bytes(data)


def _dtype_name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


_STAND_INS: list[Any] = [
    argparse.Namespace,
    (NumpyType, "numpy.dtype"),
    (numpy_scalar, "numpy.core.multiarray.scalar"),
    (numpy_scalar, "numpy._core.multiarray.scalar"),
]
