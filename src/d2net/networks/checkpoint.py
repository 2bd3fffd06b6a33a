"""Weights files as named arrays: safetensors, and torch's own files, which are never executed.

torch's files are pickles, and a pickle can name any function to be called.
`torch.load(weights_only=True)` builds only tensors and plain containers (torch 2.6 or newer:
CVE-2025-32434). Stand-ins replace the few other names in training checkpoints of the 2019 release.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from d2net.errors import WeightsError
from d2net.networks.catalogue import PACKAGED

_LENGTH = 8  # bytes before a safetensors header: its length, little endian


class _Unread:
    """Stand-in for numpy's types and numbers: nothing reads those that a checkpoint records."""

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, _: object) -> None:
        pass


_STAND_INS: list[Any] = [
    argparse.Namespace,
    (_Unread, "numpy.dtype"),
    (_Unread, "numpy.core.multiarray.scalar"),
    (_Unread, "numpy._core.multiarray.scalar"),
]


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """The contents of a weights file.

    Attributes:
        entries: the file's values by name; nothing has checked that they are arrays.
        metadata: the strings of a safetensors header. A training checkpoint of the 2019 release
            has its preprocessing as `normalisation`.
        bytes: size of the unpacked file.
        sha256: checksum of the unpacked file.
    """

    entries: Mapping[str, Any]
    metadata: Mapping[str, str]
    bytes: int
    sha256: str


def read_checkpoint(path: Path) -> Checkpoint:
    """The contents of a safetensors file, or of a state dict or training checkpoint of torch."""
    data = _read(path)
    # A safetensors file may begin like a pickle, so look for its header first.
    is_safetensors = data[_LENGTH : _LENGTH + 1] == b"{"
    if not is_safetensors and not data.startswith((b"PK\x03\x04", b"\x80")):
        raise WeightsError(
            f"{path} is not a weights file: expected safetensors or a file saved by torch (.pth)"
        )
    metadata: dict[str, str] = {}
    loaded: Any
    try:
        if is_safetensors:
            data = unpack(data)
            loaded = safetensors.torch.load(data)
            metadata = json.loads(header_of(data)).get("__metadata__") or {}
        else:
            # torch warns about TorchScript archives before it refuses them
            with torch.serialization.safe_globals(_STAND_INS), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                loaded = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except WeightsError:
        raise
    except Exception as error:  # an untrusted file may cause any
        if asked := re.search(r"GLOBAL (\S+)", str(error)):
            raise WeightsError(
                f"{path} would run {asked[1]} when loaded, which d2net never does: use a file that "
                "holds tensors only (torch.save of a state dict)"
            ) from None
        raise damaged_error(path, error) from error
    if not isinstance(loaded, Mapping):
        raise WeightsError(f"{path} holds a {type(loaded).__name__}, not a state dict of tensors")
    if isinstance(arguments := loaded.get("args"), argparse.Namespace):
        metadata["normalisation"] = str(getattr(arguments, "preprocessing", "caffe"))
    if isinstance(loaded.get("model"), Mapping):
        loaded = loaded["model"]
    entries = {str(key): value for key, value in loaded.items()}
    return Checkpoint(entries, metadata, len(data), hashlib.sha256(data).hexdigest())


def load_into(network: nn.Module, path: Path) -> str:
    """Load a file into ALIKED or XFeat and return its checksum. WeightsError if it does not fit."""
    checkpoint = read_checkpoint(path)
    own = {name: x for name, x in network.named_buffers() if name == "dkd.hw_grid"}  # kornia's
    try:
        network.load_state_dict({**checkpoint.entries, **own})
    except RuntimeError as error:
        raise damaged_error(path, error) from error
    return checkpoint.sha256


def damaged_error(path: Path, error: Exception) -> WeightsError:
    """The error for a file that cannot be read for the reason `error`."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return WeightsError(
        f"the weights file {path} is damaged, truncated or of another kind ({lines[0][:120]}): "
        "get it again from its source"
    )


def _read(path: Path) -> bytes:
    if not path.is_file():  # a pipe may never end
        remedy = "reinstall d2net" if path.parent == PACKAGED else "check the path"
        raise WeightsError(f"there is no weights file {path}: {remedy}")
    try:
        return path.read_bytes()
    except OSError as error:
        raise WeightsError(f"the weights file {path} cannot be read: {error}") from error


def unpack(data: bytes) -> bytes:
    """Unpack a packed safetensors file; other files are returned unchanged.

    A packed file names packaged weights as its base and omits the arrays that it shares with them.
    It stores the low bytes of its half-precision numbers before the high ones, so that wheels
    compress better. Its header holds the ordinary header. `tools/pack_weights.py` packs files.
    """
    metadata = json.loads(header_of(data)).get("__metadata__") or {}
    if "packed" not in metadata:
        return data
    arrays: dict[str, bytes] = {}
    if "base" in metadata:
        arrays = arrays_of(unpack(_read(PACKAGED / f"{metadata['base']}.safetensors")))
    for name, planes in arrays_of(data).items():
        arrays[name] = np.frombuffer(planes, np.uint8).reshape(2, -1).T.tobytes()
    header = metadata["packed"].encode()
    parts = [arrays[name] for name in _spans(header)]
    return b"".join([len(header).to_bytes(_LENGTH, "little"), header, *parts])


def arrays_of(data: bytes) -> dict[str, bytes]:
    """The bytes of each array of a safetensors file, in order."""
    header = header_of(data)
    start = _LENGTH + len(header)
    return {name: data[start + i : start + j] for name, (i, j) in _spans(header).items()}


def header_of(data: bytes) -> bytes:
    """The header of a safetensors file, JSON."""
    return data[_LENGTH : _LENGTH + int.from_bytes(data[:_LENGTH], "little")]


def with_sorted_header(data: bytes) -> bytes:
    """The same file with sorted metadata, because safetensors writes them in a random order."""
    unsorted = header_of(data)
    header = json.dumps(json.loads(unsorted), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % _LENGTH)  # arrays begin at a multiple of eight bytes
    return len(header).to_bytes(_LENGTH, "little") + header + data[_LENGTH + len(unsorted) :]


def _spans(header: bytes) -> dict[str, tuple[int, int]]:
    """Begin and end of each array after the header, in order."""
    entries = json.loads(header)
    spans = {name: entries[name]["data_offsets"] for name in entries if name != "__metadata__"}
    return dict(sorted(spans.items(), key=lambda item: item[1]))


def to_float32(name: str, tensor: Tensor, where: object) -> Tensor:
    """A contiguous float32 copy; other types than floats, NaN and infinity are refused."""
    plain = tensor.layout is torch.strided and tensor.device.type == "cpu"
    if not plain or not tensor.is_floating_point():
        kind = str(tensor.dtype).removeprefix("torch.")
        raise WeightsError(
            f"{name} of {where} holds {kind} on {tensor.device.type}, not plain floats"
        )
    copy = tensor.detach().to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    if not bool(copy.isfinite().all()):
        raise WeightsError(
            f"{name} of {where} holds NaN or infinity: training diverged, or the file is damaged"
        )
    return copy
