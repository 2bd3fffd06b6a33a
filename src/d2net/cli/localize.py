"""`d2net localize`: the poses of photos in a map."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import typer

from d2net.cli import console, options
from d2net.cli.outputs import check_output
from d2net.errors import D2NetError, InputError


def localize(
    map_folder: Path,
    queries: list[Path],
    *,
    output: Path = Path("poses.txt"),
    root: Path | None = None,
    intrinsics: Path | None = None,
    pictures: Path | None = None,
    num_retrieved: int = 20,
    weights: str | None = None,
    matcher: str = "nearest",
    device: str = "auto",
    seed: int = 0,
    printing: options.Printing,
) -> None:
    """Estimate the poses of photos in a map.

    Says whether each photo is localized, doubtful or lost. For each localized photo, poses.txt gets
    a line `name qw qx qy qz tx ty tz` (world to camera). Doubtful poses go to poses_doubtful.txt,
    and poses in a second map to poses_map1.txt. The exit code is 1 if no photo is localized.

    Options:
        map_folder MAP: A map by d2net reconstruct.
        queries QUERIES: Photos and folders.
        output FILE: Text file with the poses.
        root DIR: Queries are named relative to this folder. Default: the folder in QUERIES.
        intrinsics FILE: Text file with the cameras of the queries, one per line: name CAMERA_MODEL
            width height parameters. Default: the focal length in EXIF; without it, an estimate.
        pictures DIR: Draw each query beside the map's photo with the most inliers.
        num_retrieved N: Match each query with N photos of the map.

    Network:
        weights FILE: File of the map's weights. Default: those of the map, if they come with d2net.
    """
    import pycolmap

    from d2net.cli import progress
    from d2net.geometry.absolute_pose import AbsolutePoseOptions
    from d2net.io.exif import check_photo_sizes
    from d2net.io.image_lists import find_images
    from d2net.io.intrinsics import read_intrinsics
    from d2net.io.poses import BESIDE, check_pose_name, read_poses, write_poses
    from d2net.io.text_lists import as_known
    from d2net.mapping.localize import Localization, Map
    from d2net.visualization import plot_matches

    if num_retrieved < 1:
        raise InputError(f"--num-retrieved must be at least 1, not {num_retrieved}")
    AbsolutePoseOptions(seed=seed)  # checks it before files are replaced
    photos = find_images(queries, root)
    if not photos:
        raise InputError("no photos to localize: give files or folders of photos")
    listed = {} if intrinsics is None else read_intrinsics(intrinsics)
    names = {photo.name for photo in photos}
    cameras = {as_known(name, names): camera for name, camera in listed.items()}
    for photo in photos:
        if cameras and photo.name not in cameras:
            raise InputError(f"the list of intrinsics {intrinsics} does not name {photo.name}")
    check_photo_sizes(((p.path, cameras[p.name]) for p in photos if cameras), warn=False)
    inputs = (intrinsics, *(photo.path for photo in photos))
    check_output(output, *inputs, is_own=read_poses)
    stem, suffix = re.escape(output.stem), re.escape(output.suffix)
    other = re.compile(rf"{stem}(_doubtful(_map\d+)?|_map\d+){suffix}")
    earlier = [file for file in output.parent.iterdir() if other.fullmatch(file.name)]
    for file in earlier:
        check_output(file, *inputs, is_own=BESIDE.encode())
    drawings = {} if pictures is None else {p.name: picture_file(pictures, p.name) for p in photos}
    if len(set(drawings.values())) < len(drawings):
        raise InputError(
            "two queries, such as a.tif and a.tif.jpg, would share a picture: rename one"
        )
    for photo in photos if drawings else ():
        drawings[photo.name].parent.mkdir(parents=True, exist_ok=True)
        check_output(drawings[photo.name], photo.path)
    device = options.find_device(device, printing)
    opened_map = Map.open(map_folder, weights=weights, device=device, matcher=matcher)
    answers: dict[str, Localization] = {}
    failed: dict[str, str] = {}
    undrawn: dict[str, str] = {}
    with progress.shown(printing) as report:
        report("localizing", 0, len(photos))
        for done, photo in enumerate(photos, 1):
            with suppress(OSError, KeyError):  # the picture of an earlier answer
                drawings[photo.name].resolve().unlink()
            try:
                check_pose_name(photo.name)
                camera = cameras.get(photo.name)
                answer = opened_map.localize(
                    photo.path, camera=camera, num_retrieved=num_retrieved, seed=seed
                )
                answers[photo.name] = answer
                best = answer.best_photo
                if photo.name in drawings and best is not None:
                    plot_matches(
                        photo.path,
                        opened_map.folder.photo(best),
                        answer.features,
                        opened_map.features(best),
                        answer.matches(best),
                        upright=opened_map.model.settings.upright,
                        output=drawings[photo.name],
                    )
            except D2NetError as error:
                (undrawn if photo.name in answers else failed)[photo.name] = str(error)
            report(f"localizing: {photo.name}", done, len(photos))
    for reason in undrawn.values():
        console.error(reason)
    poses: dict[Path, dict[str, pycolmap.Rigid3d]] = {output: {}}
    for name, answer in answers.items():
        if answer.cam_from_world is not None and answer.verdict != "lost":
            file = output
            if answer.verdict == "doubtful":
                file = file.with_stem(f"{file.stem}_doubtful")
            if answer.map_number:  # each map has a frame of its own
                file = file.with_stem(f"{file.stem}_map{answer.map_number}")
            poses.setdefault(file, {})[name] = answer.cam_from_world
    for file in earlier:
        file.unlink()
    for file, written in poses.items():
        write_poses(file, written, photos=names, beside=file != output)
    values: dict[str, Any] = {name: answer.to_dict() for name, answer in answers.items()}
    values |= {name: {"verdict": "failed", "reason": reason} for name, reason in failed.items()}
    lines = console.columns(
        [(name, value["verdict"], _detail(value)) for name, value in sorted(values.items())]
    )
    printing.result({"queries": values, "poses": str(output)}, *lines, f"poses: {output}")
    if failed or undrawn or all(answer.verdict != "localized" for answer in answers.values()):
        raise typer.Exit(console.PARTLY_FAILED)


def picture_file(folder: Path, name: str) -> Path:
    """The file of a query's picture: a.jpg for a.jpg, a.tif.jpg for a.tif."""
    drawable = Path(name).suffix.lower() in (".jpg", ".jpeg", ".png")
    return folder / (name if drawable else f"{name}.jpg")


def _detail(value: dict[str, Any]) -> str:
    if value["reason"]:
        return str(value["reason"])
    where = f"map {value['map']}, " if value["map"] else ""
    detail = (
        f"{where}{value['inliers']:,} inliers, most of them with {value['best_photo']}; rotation "
        f"uncertain by {value['rotation_deviation_deg']:.2f} degrees"
    )
    if "latitude" in value:
        detail += (
            f"; latitude {value['latitude']:.6f}, longitude {value['longitude']:.6f}, uncertain by "
            f"{value['earth_deviation_m']:.1f} m"
        )
    return detail
