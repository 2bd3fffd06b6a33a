"""Weights files of matchers: safetensors with the widths and the descriptor type in the header."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from d2net.errors import InputError, WeightsError
from d2net.networks.checkpoint import (
    damaged,
    parse_safetensors,
    read_bytes,
    save_half,
    to_float32,
)
from d2net.networks.matcher import MatcherSettings, MatchingTransformer


@dataclass(frozen=True, eq=False)
class LoadedMatcher:
    """A matcher in memory.

    Attributes:
        network: in evaluation mode, on the CPU.
        name: name in the file.
        sha256: checksum of the file.
        descriptor_id: the descriptors that it was trained with, see `Features`.
        metadata: the strings of the header, with `licence`, `training_data` and notes.
    """

    network: MatchingTransformer
    name: str
    sha256: str
    descriptor_id: str
    metadata: Mapping[str, str]


def save_matcher(
    path: str | os.PathLike[str],
    network: MatchingTransformer,
    *,
    name: str,
    descriptor_id: str,
    licence: str,
    training_data: str,
    notes: Mapping[str, str] | None = None,
) -> None:
    """Write a matcher as half-precision safetensors, whole or not at all.

    Args:
        path: the file to make or replace.
        network: the matcher, with its calibration.
        name: name of the weights.
        descriptor_id: the descriptors that it was trained with, see `Features`.
        licence: licence of the weights.
        training_data: description of the training data.
        notes: further entries of the header.

    Raises:
        WeightsError: half precision cannot hold a weight.
        OutputError: the file cannot be written.
    """
    metadata = {
        **(notes or {}),
        "architecture": "matcher",
        "widths": json.dumps(network.settings.to_dict()),
        "name": name,
        "descriptor_id": descriptor_id,
        "licence": licence,
        "training_data": training_data,
    }
    save_half(path, network.state_dict(), metadata)


def load_matcher(path: str | os.PathLike[str]) -> LoadedMatcher:
    """Load the matcher of a file.

    Raises:
        WeightsError: the file is missing, damaged or not a matcher's.
    """
    path = Path(path).expanduser()
    data = read_bytes(path)
    entries, metadata = parse_safetensors(data, path)
    if metadata.get("architecture") != "matcher":
        raise WeightsError(
            f"{path} holds no matcher, but {metadata.get('architecture', 'other weights')}: give "
            "a file that `d2net train` wrote with a recipe for a matcher"
        )
    try:
        network = MatchingTransformer(MatcherSettings.from_dict(json.loads(metadata["widths"])))
        name, descriptor_id = metadata["name"], metadata["descriptor_id"]
        state = {key: to_float32(key, tensor, path) for key, tensor in entries.items()}
        network.load_state_dict(state)
    except (KeyError, ValueError, TypeError, RuntimeError, InputError) as error:
        raise damaged(path, error) from error
    sha256 = hashlib.sha256(data).hexdigest()
    return LoadedMatcher(
        network.eval().requires_grad_(False), name, sha256, descriptor_id, metadata
    )
