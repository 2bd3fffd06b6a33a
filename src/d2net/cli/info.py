"""`d2net weights` and `d2net info`: descriptions of weights, files and the installation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from d2net.cli import console, options
from d2net.errors import FormatError


def weights(name: str | None = None, *, printing: options.Printing) -> None:
    """List the weights and what they are for, or describe one file.

    Weights that are not on this machine yet are downloaded before they are described.

    Options:
        name NAME|FILE: Weights to describe. Default: list all weights.
    """
    from d2net.networks.catalogue import CATALOGUE, DEFAULT
    from d2net.networks.weights import file_names

    if name is not None:
        options.download(name, printing)
        files = [_file(part) for part in file_names(name)]
        rows = [row for values in files for row in (*values.items(), ("", ""))]
        lines = console.columns((key, str(value)) for key, value in rows[:-1])
        printing.result(files if len(files) > 1 else files[0], *lines)
        return
    lines = [f"default: {DEFAULT}", "    light detects keypoints, both networks describe them"]
    for record in CATALOGUE.values():
        size = "" if record.bytes is None else f", {record.bytes / 1e6:.1f} MB"
        lines.append(f"{record.name}: {record.state}{size}")
        about = (record.advice, f"trained on: {record.training_data}", record.licence, record.url)
        lines += [f"    {line}" for line in about if line]
    printing.result(
        [asdict(record) | {"state": record.state} for record in CATALOGUE.values()], *lines
    )


def _file(name: str) -> dict[str, Any]:
    from d2net.networks.weights import load_weights

    loaded = load_weights(name)
    known = {**loaded.metadata, **({} if loaded.record is None else asdict(loaded.record))}
    return {
        "name": loaded.name,
        "file": str(loaded.path),
        "bytes": loaded.bytes,
        "sha256": loaded.sha256,
        "network": type(loaded.network).__name__,
        "parameters": sum(array.numel() for array in loaded.network.state_dict().values()),
        "licence": known.get("licence", "unknown"),
        "trained on": known.get("training_data", "unknown"),
    }


def info(file: Path | None = None, *, printing: options.Printing) -> None:
    """Describe this installation, or a features or matches file.

    Options:
        file FILE: Features or matches file (h5). Default: this installation.
    """
    values = _installation() if file is None else _contents(file)
    printing.result(values, *console.columns(_flat(values)))


def _installation() -> dict[str, Any]:
    import platform
    from importlib.metadata import PackageNotFoundError, version

    import torch

    from d2net import __version__

    names = ("torch", "numpy", "pycolmap", "opencv-python-headless", "h5py", "poselib")
    packages = dict.fromkeys(names, "not installed")
    for name in names:
        with suppress(PackageNotFoundError):
            packages[name] = version(name)
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "d2net": __version__,
        "python": platform.python_version(),
        "packages": packages,
        "threads": torch.get_num_threads(),
        "gpus": ", ".join(gpus) or "none",
    }


def _contents(path: Path) -> dict[str, Any]:
    from d2net.io.h5 import FeatureFile, MatchFile

    with suppress(FormatError), MatchFile(path) as matches:  # other files contain no matches
        if len(matches):
            return {
                "kind": "matches",
                "pairs": len(matches),
                "settings": matches.settings or "unknown: written by another program",
            }
    with FeatureFile(path) as features:
        return {
            "kind": "features",
            "photos": len(features),
            "keypoints": sum(len(photo) for photo in features.values()),
            "settings": features.settings or "unknown: written by another program",
        }


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Names and values; the names of nested values are joined by dots."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, str(value)
