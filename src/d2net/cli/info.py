"""`d2net weights` and `d2net info`: what there is, and what a file holds."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from d2net.cli import console, options

if TYPE_CHECKING:
    from d2net.network.weights import WeightsInfo


def weights(
    name_or_path: Annotated[
        str | None, typer.Argument(help="Name or file to describe.", show_default="list all")
    ] = None,
    download: Annotated[
        bool, typer.Option("--download", help="Download it to the cache first.")
    ] = False,
    quiet: options.Quiet = False,
    json: options.Json = False,
) -> None:
    """List weights: packaged, cached, downloadable, and which to use for what. Or describe one."""
    from d2net.errors import InputError
    from d2net.network import weights as module

    if name_or_path is None:
        if download:
            raise InputError("say which weights to download: d2net weights NAME --download")
        _list_weights(json=json)
        return
    if download:
        with console.download_progress(name_or_path, quiet=quiet or json) as advance:
            module.download_weights(name_or_path, advance)
    info = module.describe(name_or_path)
    if json:
        console.print_json(_plain(asdict(info)))
    else:
        _print_weights(info)


def _list_weights(*, json: bool) -> None:
    from d2net.network.weights import list_weights

    found = list_weights()
    if json:
        console.print_json([_plain(asdict(status)) for status in found])
        return
    for status in found:
        record = status.record
        alias = f" (= {', '.join(status.aliases)})" if status.aliases else ""
        size = "" if status.bytes is None else f", {status.bytes / 1e6:.1f} MB"
        console.out.print(f"[bold]{record.name}[/bold]{alias}  {status.state}{size}")
        for what in (record.advice, f"trained on: {record.training_data}", record.licence):
            console.out.print(f"    {what}", markup=False)
        if record.url is not None:
            console.out.print(f"    {record.url}", markup=False)


def _print_weights(info: WeightsInfo) -> None:
    normalisation = info.normalisation
    rows = {
        "name": info.name,
        "file": str(info.path),
        "format": f"{info.format}, names of {info.layout}",
        "size": f"{info.bytes:,} bytes, {info.parameters:,} parameters",
        "sha256": info.sha256,
        "input": f"{normalisation.order}, normalised as {normalisation.name}",
        "other entries": str(info.unused) if info.unused else None,
        "licence": info.record.licence if info.record else info.metadata.get("licence"),
        "trained on": (
            info.record.training_data if info.record else info.metadata.get("training_data")
        ),
        "epoch": str(info.training.epoch) if info.training and info.training.epoch else None,
    }
    table = console.table("", "")
    table.show_header = False
    for key, value in rows.items():
        if value is not None:
            table.add_row(key, value)
    console.out.print(table)
    layers = console.table("layer", "in the file", "shape", "type")
    for array in info.arrays:
        shape = " x ".join(map(str, array.shape))
        layers.add_row(array.name, array.name_in_file, shape, array.dtype)
    console.out.print(layers)


def info(
    file: Annotated[
        Path | None,
        typer.Argument(help="Features or matches file (.h5).", show_default="this installation"),
    ] = None,
    json: options.Json = False,
) -> None:
    """Describe this installation, or what a features or matches file holds."""
    values = _installation() if file is None else _file(file)
    if json:
        console.print_json(values)
        return
    table = console.table("", "")
    table.show_header = False
    for key, value in values.items():
        if isinstance(value, dict):
            for name, inner in value.items():
                table.add_row(f"{key}.{name}", str(inner))
        else:
            table.add_row(key, str(value))
    console.out.print(table)


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


def _file(path: Path) -> dict[str, Any]:
    from d2net.errors import FormatError
    from d2net.formats.h5 import FeatureFile, MatchFile

    try:
        with FeatureFile(path) as features:
            sizes = [len(features[name]) for name in features]
            return {
                "kind": "features",
                "photos": len(sizes),
                "keypoints": sum(sizes),
                "made by": features.settings or "another program",
            }
    except FormatError as not_features:
        try:
            with MatchFile(path) as matches:
                pairs = matches.pairs
                return {
                    "kind": "matches",
                    "pairs": len(pairs),
                    "matches": sum(len(matches.get(*pair)) for pair in pairs),
                    "made by": matches.settings or "another program",
                }
        except FormatError:
            raise not_features from None


def _plain(value: Any) -> Any:  # noqa: ANN401 (JSON)
    """Paths and tuples as JSON knows them."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return str(value) if isinstance(value, Path) else value
