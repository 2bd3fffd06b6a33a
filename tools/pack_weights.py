"""Puts a trained weights file into the package, packed as `d2net.networks.packing` says.

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

from d2net.networks import packing
from d2net.networks.weights import describe, ordinary_file

FOLDER = Path(packing.__file__).with_name("pretrained")


def main() -> None:
    """Pack, unpack again, compare, write."""
    parser = argparse.ArgumentParser(usage=(__doc__ or "").split("\n")[2][7:])
    parser.add_argument("file", type=Path)
    parser.add_argument("name")
    parser.add_argument("--base")
    arguments = parser.parse_args()
    describe(arguments.file)  # an error for what is no weights file
    data = arguments.file.read_bytes()
    base = None if arguments.base is None else (arguments.base, ordinary_file(arguments.base))
    packed = packing.pack(data, base)
    target = FOLDER / f"{arguments.name}.safetensors"
    if packing.unpack(packed, target, ordinary_file) != data:
        raise SystemExit(f"{arguments.file} does not come back from its packed form")
    target.write_bytes(packed)
    print(f'sha256="{hashlib.sha256(data).hexdigest()}",\nbytes={len(data):_},')
    size = len(zlib.compress(packed))
    print(f"{target}: {len(packed) / 1e6:.1f} MB, in a wheel {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
