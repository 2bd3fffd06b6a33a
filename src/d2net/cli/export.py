"""`d2net export`: features, matches, maps and the network for other programs."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from d2net.cli import options
from d2net.errors import InputError
from d2net.wording import count

app = options.app("Export results and the network to other programs.")


@dataclass(frozen=True, kw_only=True)
class Files:
    """The files to export.

    Options:
        features FILE: Features file (h5).
        matches FILE: Matches file (h5).
    """

    features: Path
    matches: Path | None = None

    def export(self, write: Callable[..., None], output: Path, printing: options.Printing) -> None:
        """Export all photos and pairs."""
        from d2net.io.h5 import FeatureFile, MatchFile

        with ExitStack() as stack:
            photos = stack.enter_context(FeatureFile(self.features))
            pairs = stack.enter_context(MatchFile(self.matches)) if self.matches else None
            for file in (photos, pairs):
                if file is not None and len(file) == 0:
                    raise InputError(f"{file.path} contains no {file.contents}; give another file")
            num_pairs = len(pairs.pairs_among(photos)) if pairs else 0
            if pairs and not num_pairs:
                raise InputError(f"{pairs.path} holds no pair of the photos in {photos.path}")
            if pairs:
                pairs.check_features(photos)
            write(output, photos, pairs)
            printing.result(
                {"photos": len(photos), "pairs": num_pairs, "output": str(output)},
                f"{count(len(photos), 'photo')} and {count(num_pairs, 'pair')} written: {output}",
            )


def colmap(output: Path, *, files: Files, printing: options.Printing) -> None:
    """Write features and matches as a COLMAP database.

    Options:
        output DATABASE: Database to make.
    """
    from d2net.io.colmap_database import write_database

    files.export(write_database, output, printing)


def kapture(output: Path, *, files: Files, printing: options.Printing) -> None:
    """Write features and matches as a kapture 1.1 folder.

    Options:
        output DIR: Folder to make.
    """
    from d2net.io.kapture import write_kapture

    files.export(write_kapture, output, printing)


def scene(map_folder: Path, output: Path, *, printing: options.Printing) -> None:
    """Write a map with undistorted photos, for Gaussian splatting and nerfstudio.

    Options:
        map_folder MAP: A map by d2net reconstruct.
        output DIR: Folder to make.
    """
    from d2net.cli import progress
    from d2net.mapping.scene_export import export_scene

    with progress.shown(printing) as report:
        model = export_scene(map_folder, output, report)
    photos, points = model.num_reg_images(), model.num_points3D()
    num_maps = len([*(map_folder / "sparse").glob("[0-9]*")])
    part = f" of the first of {num_maps} maps" if num_maps > 1 else ""
    printing.result(
        {"photos": photos, "points": points, "output": str(output)},
        f"{count(photos, 'photo')} and {count(points, 'point')}{part} written: {output}",
    )


def onnx(
    output: Path,
    *,
    matcher: str | None = None,
    extraction: options.Extraction,
    printing: options.Printing,
) -> None:
    """Write the network as an ONNX graph, with a program that runs it without torch.

    Options:
        output DIR: Folder to make.
        matcher FILE: Also write this learned matcher as a graph.
    """
    from d2net.onnx.export import MODEL, RUNNER, export_onnx

    export_onnx(extraction.model(printing), output, matcher)
    size = (output / MODEL).stat().st_size
    printing.result(
        {"output": str(output), "bytes": size},
        f"{output / MODEL} written, {size / 1e6:.1f} MB",
        f'try it: python "{output / RUNNER}" A.jpg B.jpg',
    )


for _command in (colmap, kapture, scene, onnx):
    options.add_command(app, _command)
