"""Weights by name or path: list, describe, load and save them."""

from __future__ import annotations

import difflib
import hashlib
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import Tensor

from d2net.errors import WeightsError
from d2net.networks.base import Network
from d2net.networks.catalogue import (
    ALIASES,
    CAFFE,
    CATALOGUE,
    NORMALISATIONS,
    TORCH,
    Normalisation,
    WeightsRecord,
)
from d2net.networks.checkpoint import (
    LAYOUTS,
    SHAPES,
    WHITENING,
    ArrayInfo,
    Checkpoint,
    Training,
    parse,
    read_bytes,
    save_half,
)
from d2net.networks.download import download, record_sha256, recorded_sha256
from d2net.networks.light import Light, LightSettings
from d2net.networks.packing import unpack
from d2net.networks.vgg import VGG, Whitening
from d2net.networks.vgg_backbone import VGGBackbone
from d2net.progress import Progress, no_progress

_log = logging.getLogger(__name__)

_REINSTALL = "reinstall the package (pip install --force-reinstall --no-deps d2net)"


@dataclass(frozen=True, eq=False)
class LoadedWeights:
    """Weights of a VGG in memory.

    Attributes:
        state: conv1_1.weight, conv1_1.bias, ... conv4_3.bias, float32 on the CPU.
        whitening: of descriptors; None if the weights have none.
        normalisation: input normalisation that the weights were trained with.
        name: name in the catalogue, else the name in the file, else the file's name.
        sha256: checksum of the unpacked file.
        record: entry of the catalogue; None for a file given by path.
    """

    state: dict[str, Tensor]
    whitening: Whitening | None
    normalisation: Normalisation
    name: str
    sha256: str
    record: WeightsRecord | None


@dataclass(frozen=True)
class WeightsInfo:
    """Description of a weights file.

    Attributes:
        name: as `LoadedWeights.name`.
        path: the file.
        format: "safetensors" or "torch".
        layout: naming of the arrays: "d2net", "release", "torchvision" or "light".
        bytes: size of the unpacked file.
        sha256: checksum of the unpacked file.
        arrays: the arrays that the network uses.
        unused: number of other entries, such as the last layers of a full VGG.
        parameters: number of weights in `arrays`.
        whitening: length of whitened descriptors; None if the weights have no whitening.
        normalisation: input normalisation; None for the network light.
        metadata: the strings of a safetensors header.
        training: history of a training checkpoint of the release.
        record: entry of the catalogue; None for a file given by path.
    """

    name: str
    path: Path
    format: str
    layout: str
    bytes: int
    sha256: str
    arrays: tuple[ArrayInfo, ...]
    unused: int
    parameters: int
    whitening: int | None
    normalisation: Normalisation | None
    metadata: Mapping[str, str]
    training: Training | None
    record: WeightsRecord | None


@dataclass(frozen=True)
class WeightsStatus:
    """A named weights file and whether it is on this machine.

    Attributes:
        record: entry of the catalogue.
        aliases: other names of the weights.
        state: where the file is.
        bytes: size; None while unknown.
        sha256: checksum that a loaded file must have; None while unknown.
    """

    record: WeightsRecord
    aliases: tuple[str, ...]
    state: Literal["packaged", "cached", "downloadable"]
    bytes: int | None
    sha256: str | None


def list_weights() -> list[WeightsStatus]:
    """All named weights, the packaged ones first. The files themselves are not read."""
    return [_status(record) for record in CATALOGUE.values()]


def _status(record: WeightsRecord) -> WeightsStatus:
    aliases = tuple(alias for alias, name in ALIASES.items() if name == record.name)
    if record.url is None:
        return WeightsStatus(record, aliases, "packaged", record.bytes, record.sha256)
    if not record.path.exists():
        return WeightsStatus(record, aliases, "downloadable", record.bytes, record.sha256)
    size = record.path.stat().st_size
    return WeightsStatus(record, aliases, "cached", size, recorded_sha256(record.path))


def load_weights(name_or_path: str | os.PathLike[str] = "default") -> LoadedWeights:
    """Load weights of a VGG; a name that is not on this machine yet is downloaded first.

    Args:
        name_or_path: a name of the catalogue, or a file: safetensors, or the release's .pth
            (weights or training checkpoints, of any version of torch), or torchvision's VGG-16.
            Nothing in a file is executed. If a file has the name of weights, write `./ots`.

    Raises:
        WeightsError: unknown name, missing or damaged file, not VGG-16 up to conv4_3, or the
            download failed.
    """
    info, checkpoint = _load(name_or_path)
    if info.normalisation is None:
        raise WeightsError(f"{info.name} are weights of the network light, not of a VGG")
    whitening = None if checkpoint.whitening is None else Whitening(*checkpoint.whitening)
    return LoadedWeights(
        checkpoint.state, whitening, info.normalisation, info.name, info.sha256, info.record
    )


def _load(name_or_path: str | os.PathLike[str]) -> tuple[WeightsInfo, Checkpoint]:
    """Read weights; download them first if they are not on this machine."""
    record, path = _locate(name_or_path)
    if record is not None and not _is_here(record):
        # A warning, because the first use takes long and needs the network.
        _log.warning("%s is not on this machine yet: downloading %s", record.name, record.url)
        download_weights(record.name)
    return _read(path, record)


def load_network(
    name_or_path: str | os.PathLike[str] = "default",
) -> tuple[Network, dict[str, str]]:
    """The network with trained weights, and their name and sha256 for saving with results.

    Raises:
        WeightsError: as `load_weights`.
    """
    info, checkpoint = _load(name_or_path)
    network: Network
    if info.normalisation is None:
        network = Light(LightSettings.from_dict(json.loads(info.metadata["widths"])))
        network = network.for_inference()
        network.load_state_dict(checkpoint.state)
    else:
        backbone = VGGBackbone()
        backbone.load_state_dict(checkpoint.state)
        whitening = None if checkpoint.whitening is None else Whitening(*checkpoint.whitening)
        network = VGG(backbone, info.normalisation, whitening)
    return network, {"name": info.name, "sha256": info.sha256}


def download_weights(name: str, progress: Progress = no_progress) -> Path:
    """Download a named weights file unless it is on this machine already.

    Args:
        name: of the catalogue.
        progress: called with the bytes so far.

    Returns:
        The path of the file.

    Raises:
        WeightsError: unknown name, offline, cut off, or the server sent no weights file.
        OutputError: the cache cannot be written, or (OutputBusyError) another process is
            downloading the same file.
    """
    record, path = _locate(name)
    if record is None:
        raise _unknown(name)
    if record.url is not None and not path.exists():
        download(record.url, path, accept=_accept, progress=progress)
        _read(path, record)  # records the checksum
    return path


def describe(name_or_path: str | os.PathLike[str] = "default") -> WeightsInfo:
    """Describe a weights file, with the checks of `load_weights` and without downloading.

    Raises:
        WeightsError: as `load_weights`, or a named file is not on this machine yet.
    """
    record, path = _locate(name_or_path)
    if record is not None and not _is_here(record):
        raise WeightsError(
            f"{record.name} is not on this machine yet: download it from {record.url}, or put the "
            f"file at {path} by hand"
        )
    return _read(path, record)[0]


def ordinary_file(name: str) -> bytes:
    """Packaged weights as an ordinary safetensors file, for other programs.

    Raises:
        WeightsError: there are no packaged weights of that name, or the installation is damaged.
    """
    record = CATALOGUE.get(ALIASES.get(name, name))
    if record is None or record.url is not None:
        raise WeightsError(f"no weights called {name!r} are packaged")
    return _ordinary(record.path, record)


def save_weights(
    path: str | os.PathLike[str],
    state: Mapping[str, Tensor],
    *,
    name: str,
    normalisation: Normalisation,
    licence: str,
    training_data: str,
    whitening: Whitening | None = None,
    notes: Mapping[str, str] | None = None,
) -> None:
    """Write weights as half-precision safetensors, whole or not at all.

    The arrays get the release's names, so that other programs that know D2-Net can read them.

    Args:
        path: the file to make or replace.
        state: conv1_1.weight to conv4_3.bias; other entries are an error.
        name: name of the weights.
        normalisation: input normalisation that they were trained with; loading restores it.
        licence: licence of the weights.
        training_data: description of the training data.
        whitening: of descriptors, if the weights have learned one.
        notes: further entries of the header.

    Raises:
        WeightsError: a missing, superfluous or wrongly shaped array, or one that half precision
            cannot hold.
        OutputError: the file cannot be written.
    """
    shapes = {key: tuple(tensor.shape) for key, tensor in state.items()}
    if shapes != SHAPES:
        wrong = sorted(key for key, _ in shapes.items() ^ SHAPES.items())
        raise WeightsError(f"these are not the arrays of VGG-16 up to conv4_3: see {wrong[0]}")
    tensors = dict(state)
    if whitening is not None:
        tensors |= dict(zip(WHITENING, (whitening.weight, whitening.bias), strict=True))
    metadata = {
        **(notes or {}),
        "name": name,
        "normalisation": normalisation.name,
        "licence": licence,
        "training_data": training_data,
    }
    names = LAYOUTS["release"]
    save_half(path, {names.get(key, key): tensor for key, tensor in tensors.items()}, metadata)


def save_light(
    path: str | os.PathLike[str],
    network: Light,
    *,
    name: str,
    licence: str,
    training_data: str,
    notes: Mapping[str, str] | None = None,
) -> None:
    """Write weights of the network light as half-precision safetensors, whole or not at all.

    Args:
        path: the file to make or replace.
        network: in training or from `for_inference`; its batch normalisation is folded.
        name: name of the weights.
        licence: licence of the weights.
        training_data: description of the training data.
        notes: further entries of the header.

    Raises:
        WeightsError: half precision cannot hold a weight.
        OutputError: the file cannot be written.
    """
    metadata = {
        **(notes or {}),
        "architecture": "light",
        "widths": json.dumps(network.widths.to_dict()),
        "name": name,
        "licence": licence,
        "training_data": training_data,
    }
    save_half(path, network.for_inference().state_dict(), metadata)


def _locate(name_or_path: str | os.PathLike[str]) -> tuple[WeightsRecord | None, Path]:
    """The catalogue's entry of a name (None for a file), and the path of the file."""
    if isinstance(name_or_path, str):
        record = CATALOGUE.get(ALIASES.get(name_or_path, name_or_path))
        if record is not None:
            return record, record.path
        path = Path(name_or_path)
        looks_like_path = path.name != name_or_path or path.suffix or path.exists()
        if not looks_like_path:
            raise _unknown(name_or_path)
    return None, Path(name_or_path).expanduser()


def _is_here(record: WeightsRecord) -> bool:
    # Packaged weights count as here: if the file is missing, the installation is damaged.
    return record.url is None or record.path.exists()


def _unknown(name: str) -> WeightsError:
    names = [*ALIASES, *CATALOGUE]
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]!r}, or" if near else "give one of them or"
    return WeightsError(
        f"there are no weights called {name!r}, only {', '.join(names)}: {hint} the path of a file?"
    )


def _accept(path: Path) -> None:
    parse(read_bytes(path), path)


def _read(path: Path, record: WeightsRecord | None) -> tuple[WeightsInfo, Checkpoint]:
    """Read and check a file on this machine; at its first use, record a cached file's checksum."""
    data = _ordinary(path, record)
    sha256 = hashlib.sha256(data).hexdigest()
    if record is not None:
        _check(sha256, record)
    checkpoint = parse(data, path)
    if record is not None and record.url is not None:
        record_sha256(path, sha256, record.url)
    info = WeightsInfo(
        name=record.name if record is not None else checkpoint.metadata.get("name", path.stem),
        path=path,
        format=checkpoint.format,
        layout=checkpoint.layout,
        bytes=len(data),
        sha256=sha256,
        arrays=checkpoint.arrays,
        unused=checkpoint.unused,
        parameters=sum(tensor.numel() for tensor in checkpoint.state.values()),
        whitening=None if checkpoint.whitening is None else len(checkpoint.whitening[1]),
        normalisation=(
            record.normalisation if record is not None else _normalisation(checkpoint, path)
        ),
        metadata=checkpoint.metadata,
        training=checkpoint.training,
        record=record,
    )
    return info, checkpoint


def _ordinary(path: Path, record: WeightsRecord | None) -> bytes:
    """The bytes of a file, unpacked."""
    if record is not None and record.url is None and not path.exists():
        raise WeightsError(f"the packaged weights file {path} is missing: {_REINSTALL}")
    return unpack(read_bytes(path), path, ordinary_file)


def _check(sha256: str, record: WeightsRecord) -> None:
    """Compare a checksum with that of the catalogue, or with that of the first load."""
    packaged = record.url is None
    expected = record.sha256 if packaged else recorded_sha256(record.path)
    if expected in (None, sha256):
        return
    remedy = (
        _REINSTALL
        if packaged
        else f"delete it and {record.path.name}.sha256 beside it, then download it again"
    )
    raise WeightsError(
        f"the weights file {record.path} is damaged: its sha256 is {sha256}, not the recorded "
        f"{expected}; {remedy}"
    )


def _normalisation(checkpoint: Checkpoint, path: Path) -> Normalisation | None:
    """The normalisation that the file names or its layout implies; None for the network light."""
    if checkpoint.layout == "light":
        return None
    stated = checkpoint.metadata.get("normalisation")
    if stated is None and checkpoint.training is not None:
        stated = checkpoint.training.arguments.get("preprocessing")
    if stated is None:
        return TORCH if checkpoint.layout == "torchvision" else CAFFE
    name = stated.partition(":")[0].strip().lower()
    if name not in NORMALISATIONS:
        raise WeightsError(
            f"{path} wants the normalisation {stated!r}, but only "
            f"{' and '.join(NORMALISATIONS)} are known"
        )
    return NORMALISATIONS[name]
