"""`d2net weights` and `d2net info`: descriptions of weights, files and the installation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from d2net.cli import console, options
from d2net.errors import FormatError, InputError

if TYPE_CHECKING:
    from d2net.networks.weights import WeightsInfo, WeightsStatus


def weights(
    *,
    name_or_path: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME|FILE", help="Weights to describe.", show_default="list all weights"
        ),
    ] = None,
    download: Annotated[
        bool, typer.Option("--download", help="Download the weights to the cache first.")
    ] = False,
    printing: options.Printing,
) -> None:
    """List the weights, where they are and what they are for; or describe one weights file."""
    from d2net.cli import progress
    from d2net.networks.weights import describe, download_weights, list_weights

    if name_or_path is not None:
        if download:
            with progress.shown(printing, download=True) as advance:
                download_weights(name_or_path, advance)
        info = describe(name_or_path)
        printing.result(_plain(asdict(info)), *_description(info))
    elif download:
        raise InputError("name the weights to download: d2net weights NAME --download")
    else:
        listed = list_weights()
        lines = [line for status in listed for line in _summary(status)]
        printing.result([_plain(asdict(status)) for status in listed], *lines)


def _summary(status: WeightsStatus) -> Iterator[str]:
    record = status.record
    alias = f" (= {', '.join(status.aliases)})" if status.aliases else ""
    size = "" if status.bytes is None else f", {status.bytes / 1e6:.1f} MB"
    yield f"{record.name}{alias}: {status.state}{size}"
    yield f"    {record.advice}"
    yield f"    trained on: {record.training_data}"
    yield f"    {record.licence}"
    if record.url is not None:
        yield f"    {record.url}"


def _description(info: WeightsInfo) -> list[str]:
    normalisation = info.normalisation
    licence, training_data = info.metadata.get("licence"), info.metadata.get("training_data")
    if info.record is not None:
        licence, training_data = info.record.licence, info.record.training_data
    values = {
        "name": info.name,
        "file": info.path,
        "format": f"{info.format}, parameters named as in {info.layout}",
        "size": f"{info.bytes:,} bytes, {info.parameters:,} parameters",
        "sha256": info.sha256,
        "input": None
        if normalisation is None
        else f"{normalisation.order}, normalised as {normalisation.name}",
        "whitening": info.whitening and f"to {info.whitening} numbers per descriptor",
        "other entries": info.unused or None,
        "licence": licence,
        "trained on": training_data,
        "epoch": None if info.training is None else info.training.epoch,
    }
    known = [(name, str(value)) for name, value in values.items() if value is not None]
    arrays = [
        (array.name, array.name_in_file, " x ".join(map(str, array.shape)), array.dtype)
        for array in info.arrays
    ]
    return [*console.columns(known), "", *console.columns(arrays)]


def info(
    *,
    file: Annotated[
        Path | None,
        typer.Argument(
            metavar="FILE", help="Features or matches file (h5).", show_default="this installation"
        ),
    ] = None,
    printing: options.Printing,
) -> None:
    """Describe this installation, or the contents of a features or matches file."""
    values = _installation() if file is None else _contents(file)
    printing.result(values, *console.columns(_flat(values)))


def _installation() -> dict[str, Any]:
    import platform
    from importlib.metadata import PackageNotFoundError, version

    import torch

    from d2net import __version__

    packages = {}
    for name in ("torch", "numpy", "pycolmap", "opencv-python-headless", "h5py", "poselib"):
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = "not installed"
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

    try:
        with MatchFile(path) as matches:
            if len(matches):
                return {
                    "kind": "matches",
                    "pairs": len(matches),
                    "settings": matches.settings or "unknown: written by another program",
                }
    except FormatError:  # not a matches file
        pass
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


def _plain(value: Any) -> Any:  # noqa: ANN401 (JSON)
    """The value with paths as text and tuples as lists, for JSON."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return str(value) if isinstance(value, Path) else value
