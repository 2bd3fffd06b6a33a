"""Packed weights: smaller files in the package, from which the ordinary file is restored exactly.

Layers that were frozen in training equal those of the starting weights, so a packed file names the
starting weights and holds only the layers that differ. Half-precision numbers are stored as two
planes, first all low bytes, then all high bytes: the high bytes hold signs and exponents, which
repeat, so that wheels compress better. A packed file is a safetensors file of bytes. Its header
holds the header of the ordinary file and that file's checksum.
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
        base: name and ordinary file of packaged weights that share some arrays.
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
    """Restore the ordinary file from a packed one; other files are returned unchanged.

    Args:
        data: the file's bytes.
        path: the file, for messages.
        read_base: returns the ordinary file of packaged weights by name.

    Raises:
        WeightsError: the file or its base is damaged.
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
        return data  # the parser says what is wrong with it
    if hashlib.sha256(ordinary).hexdigest() != metadata.get("sha256"):
        raise WeightsError(
            f"the packed weights file {path} is damaged: its contents have another sha256 than its "
            "header says; reinstall the package that it comes from"
        )
    return ordinary


def _contents(data: bytes) -> tuple[str, dict[str, bytes]]:
    """The header of a safetensors file, and the bytes of each array in order."""
    start = _LENGTH + int.from_bytes(data[:_LENGTH], "little")
    header = data[_LENGTH:start]
    return header.decode(), {
        name: data[start + first : start + last] for name, (first, last) in _spans(header).items()
    }


def _spans(header: bytes) -> Mapping[str, tuple[int, int]]:
    """First and last byte of each array after the header, in order; there must be no gaps."""
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
