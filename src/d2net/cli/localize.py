"""`d2net localize`: where photos were taken, by a map."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from d2net.cli import console, options
from d2net.errors import InputError

if TYPE_CHECKING:
    import pycolmap

    from d2net.mapping.localize import Localization


def localize(
    *,
    map_folder: Annotated[
        Path,
        typer.Argument(metavar="MAP", show_default=False, help="What d2net reconstruct made."),
    ],
    queries: Annotated[
        list[Path],
        typer.Argument(metavar="QUERIES...", show_default=False, help="Photos, or folders."),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="Poses, a line each.")
    ] = Path("poses.txt"),
    intrinsics: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="name CAMERA_MODEL width height parameters, a line each.",
            show_default="by EXIF, else estimated",
        ),
    ] = None,
    pictures: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Draw each query beside a photo of the map.", show_default="none"
        ),
    ] = None,
    num_retrieved: Annotated[
        int, typer.Option(metavar="N", help="Photos of the map to match each query with.")
    ] = 20,
    weights: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="The map's weights.", show_default="by their name"),
    ] = None,
    device: Annotated[
        str, typer.Option(metavar="NAME", help="Where to compute: cpu, cuda, cuda:1, mps.")
    ] = "cpu",
    seed: Annotated[int, typer.Option(metavar="N", help="Of all random samples.")] = 0,
    printing: options.Printing,
) -> None:
    """Place photos in a map.

    Writes `name qw qx qy qz tx ty tz` (world to camera) for each photo that has a pose, as the
    benchmarks want it, and tells whether each one is localized, doubtful or lost.
    """
    from d2net.cli import progress
    from d2net.errors import D2NetError
    from d2net.io.image_lists import find_images
    from d2net.io.intrinsics import read_intrinsics
    from d2net.io.poses import write_poses
    from d2net.mapping.localize import Map

    photos = find_images(queries)
    if not photos:
        raise InputError("there are no photos to localize: give files, or folders that hold some")
    cameras = {} if intrinsics is None else read_intrinsics(intrinsics)
    if pictures is not None:
        pictures.mkdir(parents=True, exist_ok=True)
    opened = Map.open(map_folder, weights=weights, device=device)
    answers: dict[str, Localization] = {}
    failed: dict[str, str] = {}
    with progress.things("localizing", printing) as advance:
        for left, photo in zip(reversed(range(len(photos))), photos, strict=True):
            try:
                answer = opened.localize(
                    photo.path,
                    camera=_camera(cameras, photo.name),
                    num_retrieved=num_retrieved,
                    seed=seed,
                )
                answers[photo.name] = answer
                if pictures is not None and answer.best_photo is not None:
                    file = pictures / f"{photo.name.replace('/', '-')}.jpg"
                    opened.plot(answer, photo.path, file)
            except D2NetError as error:
                failed[photo.name] = str(error)
            advance(photo.name, left)
    write_poses(
        output,
        {n: a.cam_from_world for n, a in answers.items() if a.cam_from_world is not None},
    )
    values: dict[str, Any] = {name: answer.to_dict() for name, answer in answers.items()}
    values |= {name: {"verdict": "failed", "reason": reason} for name, reason in failed.items()}
    lines = console.columns(
        [(name, value["verdict"], _detail(value)) for name, value in sorted(values.items())]
    )
    printing.result({"queries": values, "poses": str(output)}, *lines, f"poses: {output}")
    if failed:
        raise typer.Exit(console.PARTLY_FAILED)


def _camera(cameras: dict[str, pycolmap.Camera], name: str) -> pycolmap.Camera | None:
    if cameras and name not in cameras:
        raise InputError(f"the list of intrinsics does not name the photo {name}")
    return cameras.get(name)


def _detail(value: dict[str, Any]) -> str:
    if value["reason"]:
        return str(value["reason"])
    return (
        f"{value['inliers']:,} inliers, most with {value['best_photo']}; rotation good to "
        f"{value['rotation_deviation_deg']:.2f} degrees"
    )
