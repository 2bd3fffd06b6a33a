"""Weights by name or path: download, load and save them."""

from __future__ import annotations

import difflib
import hashlib
import http.client
import json
import logging
import os
import re
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from d2net.errors import InputError, WeightsError
from d2net.io.atomic import output_errors, replacing
from d2net.networks.base import Network
from d2net.networks.catalogue import CATALOGUE, DEFAULT, NORMALISATIONS, WeightsRecord, expand_user
from d2net.networks.checkpoint import (
    Checkpoint,
    damaged_error,
    read_checkpoint,
    to_float32,
    with_sorted_header,
)
from d2net.networks.combined import Combined
from d2net.networks.light import Light, LightSettings
from d2net.networks.matcher import MatcherSettings, MatchingTransformer
from d2net.networks.vgg import VGG, WHITENING_INPUTS, Whitening
from d2net.networks.vgg_backbone import LAYERS
from d2net.progress import Progress, no_progress

_log = logging.getLogger(__name__)

_TIMEOUT = 30.0  # a download is given up after this many seconds without a byte

_OF_VGG = {
    f"{index}.{kind}": f"backbone.{layer}.{kind}"
    for index, layer in zip((0, 2, 5, 7, 10, 12, 14, 17, 19, 21), LAYERS, strict=True)
    for kind in ("weight", "bias")
}
"""Names of VGG-16's arrays in files (the index counts ReLUs and pools too), and ours."""

_IN_FILE = "dense_feature_extraction.model."
"""Prefix of VGG-16's arrays in files of the 2019 release and in ours; torchvision's is features."""


@dataclass(frozen=True, eq=False)
class Weights:
    """A weights file and its network.

    Attributes:
        network: the network with these weights, on the CPU.
        name: name in the catalogue, else the name in the file, else the file's name.
        path: the file.
        bytes: size of the unpacked file.
        sha256: checksum of the unpacked file.
        metadata: the strings of its header.
        record: entry of the catalogue; None for a file given by path.
    """

    network: VGG | Light | MatchingTransformer
    name: str
    path: Path
    bytes: int
    sha256: str
    metadata: Mapping[str, str]
    record: WeightsRecord | None


def file_names(weights: str | os.PathLike[str]) -> list[str]:
    """The names or paths of the files that `weights` stands for; + joins two."""
    names = DEFAULT if weights == "default" else str(weights)
    first, plus, second = names.partition("+")  # a path may contain a +, too
    is_pair = plus and not Path(names).exists() and (first in CATALOGUE or Path(first).is_file())
    return [first, second] if is_pair else [names]


def load_weights(name_or_path: str | os.PathLike[str]) -> Weights:
    """Load weights by a name of the catalogue, which are downloaded if necessary, or a file.

    The file is safetensors, or the release's .pth (weights or training checkpoints, of any version
    of torch), or torchvision's VGG-16. Nothing in it is executed. If a file has the name of
    weights, write `./ots`. WeightsError if there is no such file, no known network in it, it is
    damaged, or the download fails.
    """
    record = _find(name_or_path)
    path = expand_user(str(name_or_path)) if record is None else record.path
    if record is not None and record.state == "downloadable":
        # A warning, because the first use takes long and needs the network.
        _log.warning("%s is not on this machine yet: downloading %s", record.name, record.url)
        download_weights(record.name)
    checkpoint = read_checkpoint(path)
    if record is not None and record.sha256 not in (None, checkpoint.sha256):
        raise WeightsError(
            f"the weights file {path} is damaged: its sha256 is {checkpoint.sha256}, not "
            f"{record.sha256}; reinstall d2net"
        )
    network = _build(checkpoint, path)
    name = checkpoint.metadata.get("name", path.stem) if record is None else record.name
    known, is_pair = CATALOGUE.get(name), CATALOGUE.keys() >= {*name.split("+")}
    is_other = known.sha256 not in (None, checkpoint.sha256) if known else is_pair
    if is_other:
        name = f"./{name}"  # the file has the name of packaged weights, but other contents
    return Weights(
        network, name, path, checkpoint.bytes, checkpoint.sha256, checkpoint.metadata, record
    )


def load_network(
    name_or_path: str | os.PathLike[str] = "default",
) -> tuple[Network, dict[str, str]]:
    """The network of a weights file, and its name and checksum; see `load_weights`.

    `light+seasons`, two names or files joined by +, is the `Combined` network of both.
    """
    names = file_names(name_or_path)
    if len(names) == 2:
        (light, of_light), (vgg, of_vgg) = map(load_network, names)
        if not isinstance(light, Light) or not isinstance(vgg, VGG):
            raise WeightsError(
                f"{name_or_path} must be weights of light and of a VGG, such as light+seasons"
            )
        both = {key: (of_light[key], of_vgg[key]) for key in ("name", "sha256")}
        sha256 = hashlib.sha256("".join(both["sha256"]).encode()).hexdigest()
        return Combined(light, vgg), {"name": "+".join(both["name"]), "sha256": sha256}
    loaded = load_weights(name_or_path)
    if isinstance(loaded.network, MatchingTransformer):
        raise WeightsError(
            f"{name_or_path} holds a matcher, not a network that makes features: give it to "
            "`d2net match` as --matcher FILE"
        )
    return loaded.network, {"name": loaded.name, "sha256": loaded.sha256}


def load_matcher(path: str | os.PathLike[str]) -> tuple[MatchingTransformer, Weights]:
    """The matcher of a file; `metadata["descriptor_id"]` names the descriptors that it matches."""
    loaded = load_weights(path)
    if not isinstance(loaded.network, MatchingTransformer):
        raise WeightsError(
            f"{path} holds no matcher: give a file that `d2net train` wrote with a matcher recipe"
        )
    return loaded.network, loaded


def save_weights(
    path: str | os.PathLike[str],
    network: VGG | Light | MatchingTransformer,
    metadata: Mapping[str, str],
) -> None:
    """Write a network as half-precision safetensors, whole or not at all.

    The arrays of a VGG get the release's names, so that other programs that know D2-Net can read
    them. The batch normalisation of `light` is folded. `metadata` holds `name`, `licence`,
    `training_data`, for a matcher `descriptor_id`, and any notes; the network's widths or its
    normalisation are added. WeightsError if half precision cannot hold a weight.
    """
    if isinstance(network, VGG):
        names = {ours: _IN_FILE + name for name, ours in _OF_VGG.items()}
        state = {names.get(key, key): value for key, value in network.state_dict().items()}
        about = {"normalisation": network.normalisation.name}
    elif isinstance(network, Light):
        state = network.for_inference().state_dict()
        about = {"architecture": "light", "widths": json.dumps(network.widths.to_dict())}
    else:
        state = network.state_dict()
        about = {"architecture": "matcher", "widths": json.dumps(network.settings.to_dict())}
    arrays = {name: tensor.detach().cpu().half().contiguous() for name, tensor in state.items()}
    for name, array in arrays.items():
        to_float32(name, array, "the weights to be saved in half precision")
    data = safetensors.torch.save(arrays, {"format": "pt", **metadata, **about})
    with replacing(Path(path)) as temporary:
        temporary.write_bytes(with_sorted_header(data))


def download_weights(name: str, progress: Progress = no_progress) -> Path:
    """Download weights of the catalogue unless this machine has them already. Returns their file.

    `progress` is called with the megabytes so far. WeightsError if the name is unknown or the
    download fails, OutputBusyError if another process is downloading the same file.
    """
    record = _find(name)
    if record is None:
        raise _unknown(name)
    if record.url is None or record.path.exists():
        return record.path
    path, request = record.path, urllib.request.Request(record.url, headers={"User-Agent": "d2net"})  # noqa: S310
    with output_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        try:
            response = urllib.request.urlopen(request, timeout=_TIMEOUT)  # noqa: S310
            with response, temporary.open("wb") as file:
                total = int(response.headers.get("Content-Length") or 0)
                while piece := response.read(1 << 18):
                    file.write(piece)
                    progress("downloading (MB)", file.tell() // 10**6, total // 10**6 or None)
                if file.tell() < total:
                    raise OSError(f"it stopped after {file.tell():,} of {total:,} bytes")  # noqa: TRY301
        except (OSError, http.client.HTTPException) as error:
            raise WeightsError(
                f"{record.url} could not be downloaded ({error}): check the network and start "
                f"again, or put the file at {path} by hand"
            ) from error
        try:
            _build(read_checkpoint(temporary), temporary)
        except WeightsError as error:
            raise WeightsError(
                f"the file that {record.url} sent is not a weights file and was not kept: {error}"
            ) from error
    return path


def _find(name_or_path: str | os.PathLike[str]) -> WeightsRecord | None:
    """The catalogue's entry of a name; None for a path."""
    if not isinstance(name_or_path, str):
        return None
    record = CATALOGUE.get(name_or_path)
    path = Path(name_or_path)
    if record is None and path.name == name_or_path and not path.suffix and not path.exists():
        raise _unknown(name_or_path)
    return record


def _unknown(name: str) -> WeightsError:
    names = ["default", *CATALOGUE]
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]!r}?" if near else "give one of them, or the path of a file"
    return WeightsError(f"there are no weights called {name!r}, only {', '.join(names)}: {hint}")


def _build(checkpoint: Checkpoint, path: Path) -> VGG | Light | MatchingTransformer:
    entries, metadata = checkpoint.entries, checkpoint.metadata
    network: VGG | Light | MatchingTransformer
    try:
        if metadata.get("architecture") == "light":
            network = Light(LightSettings.from_dict(json.loads(metadata["widths"]))).for_inference()
        elif metadata.get("architecture") == "matcher":
            network = MatchingTransformer(MatcherSettings.from_dict(json.loads(metadata["widths"])))
            network = network.eval().requires_grad_(False)
            metadata["descriptor_id"]  # a matcher of unknown descriptors is of no use
        else:
            network, entries = _vgg(checkpoint, path)
        state = {}
        for name, expected in network.state_dict().items():
            found = entries.get(name)
            if not isinstance(found, Tensor) or found.shape != expected.shape:
                shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
                shape = "none" if found is None else shape
                raise WeightsError(
                    f"{path} does not fit its network: {name} should have shape "
                    f"{tuple(expected.shape)}, but the file has {shape}"
                )
            state[name] = to_float32(name, found, path)
        network.float().load_state_dict(state)  # float32, whatever torch's default type is
    except (KeyError, ValueError, TypeError, RuntimeError, InputError) as error:
        raise damaged_error(path, error) from error
    return network


def _vgg(checkpoint: Checkpoint, path: Path) -> tuple[VGG, dict[str, object]]:
    """An untrained VGG with the file's normalisation, and the file's arrays under our names."""
    prefix = re.compile(r".*(dense_feature_extraction\.model|features)\.")
    entries = {_OF_VGG.get(prefix.sub("", key), key): x for key, x in checkpoint.entries.items()}
    if not entries.keys() & set(_OF_VGG.values()):
        found = ", ".join(list(entries)[:3]) or "nothing"
        raise WeightsError(f"{path} holds no known layer of VGG-16, but {found[:120]}")
    default = "torch" if any(key.startswith("features.") for key in checkpoint.entries) else "caffe"
    stated = checkpoint.metadata.get("normalisation", default)
    normalisation = NORMALISATIONS.get(stated.partition(":")[0].strip().lower())
    if normalisation is None:
        raise WeightsError(
            f"{path} needs the normalisation {stated!r}; d2net knows {' and '.join(NORMALISATIONS)}"
        )
    whitening = None
    if isinstance(bias := entries.get("whitening.bias"), Tensor):
        whitening = Whitening(torch.empty(len(bias), WHITENING_INPUTS), torch.empty(len(bias)))
    return VGG(None, normalisation, whitening), entries
