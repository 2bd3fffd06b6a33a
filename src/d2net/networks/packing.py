"""Weights as the package holds them: smaller than their file, every byte of which comes back.

Layers that were frozen in training are the same numbers as in the weights it started from: a packed
file names those and holds only what differs. The bytes of half-precision numbers stand in two
planes, all low bytes, then all high ones: these hold signs and exponents, which repeat, so that the
compression of wheels finds them. A packed file is a safetensors file of bytes; its header holds the
header of the ordinary file, word for word, and that file's checksum.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import safetensors.numpy

from d2net.errors import WeightsError

_LENGTH = 8
"""Bytes before a safetensors header: its length, little endian."""


def pack(data: bytes, base: tuple[str, bytes] | None = None) -> bytes:
    """The packed form of an ordinary safetensors file of half-precision numbers.

    Args:
        data: the file.
        base: name and ordinary file of packaged weights that hold some of the same arrays.
    """
    header, arrays = _contents(data)
    known = {} if base is None else _contents(base[1])[1]
    own = {
        name: np.frombuffer(content, np.uint8).reshape(-1, 2).T.copy()
        for name, content in arrays.items()
        if known.get(name) != content
    }
    metadata = {"packed": header, "sha256": hashlib.sha256(data).hexdigest()}
    if base is not None:
        metadata["base"] = base[0]
    return bytes(safetensors.numpy.save(own, metadata))


def unpack(data: bytes, path: Path, read_base: Callable[[str], bytes]) -> bytes:
    """The ordinary file of a packed one; any other file as it is.

    Args:
        data: the file's bytes.
        path: where they come from, for messages.
        read_base: gives the ordinary file of packaged weights by their name.

    Raises:
        WeightsError: damaged, or what it stands on is.
    """
    if data[_LENGTH : _LENGTH + 1] != b"{":
        return data
    try:
        own_header, own = _contents(data)
        metadata = json.loads(own_header).get("__metadata__") or {}
        if "packed" not in metadata:
            return data
        header = metadata["packed"].encode()
        known = _contents(read_base(metadata["base"]))[1] if "base" in metadata else {}
        parts = [len(header).to_bytes(_LENGTH, "little"), header]
        parts += [_joined(own[name]) if name in own else known[name] for name in _spans(header)]
        ordinary = b"".join(parts)
    except (ValueError, LookupError, TypeError, AttributeError):
        return data  # whatever it is, its reader will say what is wrong with it
    if hashlib.sha256(ordinary).hexdigest() != metadata.get("sha256"):
        raise WeightsError(
            f"the packed weights file {path} is damaged: its contents have another sha256 than its "
            "header says; reinstall the package that it comes from"
        )
    return ordinary


def _contents(data: bytes) -> tuple[str, dict[str, bytes]]:
    """The header of a safetensors file, and the bytes of each array in their order."""
    start = _LENGTH + int.from_bytes(data[:_LENGTH], "little")
    header = data[_LENGTH:start]
    return header.decode(), {
        name: data[start + first : start + last] for name, (first, last) in _spans(header).items()
    }


def _spans(header: bytes) -> Mapping[str, tuple[int, int]]:
    """Where each array lies behind a header, in that order; one begins where the last ends."""
    entries = json.loads(header)
    spans = {name: entries[name]["data_offsets"] for name in entries if name != "__metadata__"}
    ordered = dict(sorted(spans.items(), key=lambda item: item[1]))
    end = 0
    for first, last in ordered.values():
        if not first == end <= last:
            raise ValueError("arrays overlap or leave gaps")
        end = last
    return ordered


def _joined(planes: bytes) -> bytes:
    return bytes(np.frombuffer(planes, np.uint8).reshape(2, -1).T.tobytes())
