"""Puts a weights file into the package, packed as `d2net.networks.checkpoint.unpack` says.

usage: python tools/pack_weights.py FILE NAME [--base NAME]

FILE is an ordinary safetensors file (`d2net train` writes `weights.safetensors`); NAME is what the
catalogue calls it. With `--base`, layers that are the same as those of these packaged weights, the
start of the training, are not stored again. What is printed goes into `networks/catalogue.py` and
MODEL_CARD.md.
"""

from __future__ import annotations

import argparse
import hashlib
import zlib
from pathlib import Path

import numpy as np
import safetensors.numpy

from d2net.networks.catalogue import PACKAGED
from d2net.networks.checkpoint import arrays_of, header_of, unpack
from d2net.networks.weights import load_weights


def pack(data: bytes, base: str | None = None) -> bytes:
    """The packed form of an ordinary safetensors file of half-precision numbers.

    Args:
        data: the file.
        base: name of packaged weights that share some arrays.
    """
    metadata = {"packed": header_of(data).decode()}
    known = {}
    if base is not None:
        metadata["base"] = base
        known = arrays_of(unpack((PACKAGED / f"{base}.safetensors").read_bytes()))
    own = {
        name: np.frombuffer(content, np.uint8).reshape(-1, 2).T.copy()
        for name, content in arrays_of(data).items()
        if known.get(name) != content
    }
    return bytes(safetensors.numpy.save(own, metadata))


def main() -> None:
    """Pack, unpack again, compare, write."""
    parser = argparse.ArgumentParser(usage=(__doc__ or "").split("\n")[2][7:])
    parser.add_argument("file", type=Path)
    parser.add_argument("name")
    parser.add_argument("--base")
    arguments = parser.parse_args()
    load_weights(arguments.file)  # an error for what is no weights file
    data = arguments.file.read_bytes()
    packed = pack(data, arguments.base)
    if unpack(packed) != data:
        raise SystemExit(f"{arguments.file} does not come back from its packed form")
    target = PACKAGED / f"{arguments.name}.safetensors"
    target.write_bytes(packed)
    print(f'sha256="{hashlib.sha256(data).hexdigest()}",\nbytes={len(data):_},')
    size = len(zlib.compress(packed))
    print(f"{target}: {len(packed) / 1e6:.1f} MB, in a wheel {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
