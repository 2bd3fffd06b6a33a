"""From a folder of photos to a map, in stages that a kill does not lose."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from typing_extensions import Unpack

from d2net.errors import InputError, OutputError
from d2net.extraction.d2net import D2Net
from d2net.io.atomic import locked, output_errors
from d2net.io.colmap_model import find_model, read_model
from d2net.io.exif import check_photo_sizes, gps_positions
from d2net.io.image_lists import FoundImage, find_images
from d2net.io.text_lists import as_known
from d2net.mapping.assign_cameras import check_cameras
from d2net.mapping.georeference import KnownDistance
from d2net.mapping.map_folder import MapFolder, finish_installation
from d2net.mapping.settings import MappingOptions, MappingSettings
from d2net.mapping.stages import Stages
from d2net.mapping.summary import MapSummary
from d2net.matching.pair_selection import PairChoice
from d2net.progress import Progress, no_progress


def reconstruct(
    photos: Path | str,
    output: Path | str,
    *,
    model: D2Net | None = None,
    pairs: PairChoice | None = None,
    masks: Path | str | None = None,
    poses: Path | str | None = None,
    known_distance: KnownDistance | None = None,
    progress: Progress = no_progress,
    **options: Unpack[MappingOptions],
) -> MapSummary:
    """Make a map from a folder of photos.

    An interrupted run resumes at its stage when it is called again. With other photos, pairs
    or mapping options, the stages that depend on them are repeated. An existing map stays in place
    until the new one is finished. Extraction settings and matcher must be those of the map.

    Args:
        photos: the folder.
        output: the map's folder. `MapFolder` lists its files, beside the report.
        model: extracts features; None for the default weights.
        pairs: how pairs are selected; None for all pairs of few photos, and retrieval for many.
        masks: see `extract_folder`.
        poses: folder of a COLMAP model with cameras and poses of the photos. They are kept, and
            points are triangulated, as the localization benchmarks build their maps.
        known_distance: names of two photos and the distance of their cameras in metres, which sets
            the map's scale; otherwise GPS positions in EXIF do. Not together with `poses`.
        progress: called as the work goes on.
        **options: fields of `MappingSettings`.

    Raises:
        MappingError: no map can be made of these photos; the message says why.
        InputError: there are fewer than two photos, or an option is wrong.
        OutputError: the output cannot be written, or holds features of other settings.
    """
    settings = MappingSettings(**options)
    found = _find_photos(Path(photos))
    files = {photo.name: photo.path for photo in found}
    if len(found) < 2:
        raise InputError(
            f"a map needs at least two photos of one scene, but {photos} holds {len(found)}"
        )
    if known_distance is not None:
        a, b, metres = known_distance
        known_distance = as_known(a, files), as_known(b, files), metres
        if len(files.keys() & known_distance[:2]) < 2 or poses or not 1e-3 < metres < 1e6:
            raise InputError(
                "a known distance needs two of the photos, a length of 0.001 to 1,000,000 metres, "
                f"and no known poses, which set the scale; got {known_distance}"
            )
    for source in (poses, pairs.model if pairs else None):
        found_model = source and find_model(source)
        if found_model and (Path(output) / "sparse").resolve() in found_model.resolve().parents:
            raise InputError(f"the map would replace the model {source}: choose another output")
    model = model or D2Net.from_pretrained()
    if poses is None:
        check_cameras(found, settings, model.settings.upright)
    else:
        known_poses = read_model(poses, files).images.values()
        cameras = [(files[i.name], i.camera) for i in known_poses if i.name in files]
        check_photo_sizes(cameras, upright=model.settings.upright)
    with opened(Path(output)) as existing:
        folders, here = existing.photo_folders, Path(photos).resolve()
        others = [f for f in folders if f != here and (f.is_dir() or folders[1:])]  # not moved here
        lost = [
            name
            for name in sorted(existing.finished)
            if name not in files or (folders != [here] and not existing.is_photo(files[name], name))
        ]
        if lost and (others or len(lost) == len(existing.finished)):
            raise OutputError(
                f"{output} is a map of {lost[0]} and other photos, and a new map would lose them: "
                "choose another output, give one folder with all photos, or add photos: "
                f"d2net reconstruct {photos} --into {output}"
            )
        existing.record.save()  # by which a later run knows that the files are a map's
        with existing.draft(resume=True) as folder:
            folder.record.values["photos"] = []  # an earlier map may be of other photos
            folder.record.values.pop("unreadable", None)
            for stage in ("verification", "mapping") if poses else ("triangulation",):
                folder.seconds.pop(stage, None)
            folder.add_photo_folder(Path(photos))
            stages = Stages(folder, settings, progress)
            stages.extract(model, found, masks)
            stages.match(stages.select_pairs(pairs or PairChoice(), found))
            if poses is not None:
                stages.triangulate(poses)
            else:
                stages.verify()
                stages.map(gps_positions(found), known_distance)
            return stages.finish()


def add_photos(
    map_folder: Path | str,
    photos: Path | str,
    *,
    model: D2Net | None = None,
    masks: Path | str | None = None,
    progress: Progress = no_progress,
    **options: Unpack[MappingOptions],
) -> MapSummary:
    """Add photos, under names that the map does not have yet, to a map made by `reconstruct`.

    The map's photos keep their poses. If they were moved, give their new folder.
    """
    settings = MappingSettings(**options)
    given = _find_photos(Path(photos))
    if not given:
        raise InputError(f"{photos} holds no photos to add")
    MapFolder(Path(map_folder)).made_by()  # fails before `opened` makes a folder
    with opened(Path(map_folder)) as existing:
        existing.read_models()  # fails without a finished map
        # A run that was killed may have left features of photos that are not in the map.
        found = [photo for photo in given if photo.name not in existing.finished]
        for photo in given:
            if photo.name in existing.finished and not existing.is_photo(photo.path, photo.name):
                raise InputError(
                    f"{photo.path} has the name of another photo of the map {map_folder}, or has "
                    "changed since: rename it"
                )
        if not found and Path(photos).resolve() in existing.photo_folders:
            raise InputError(
                f"{map_folder} was given all photos of {photos} before; to use other options, make "
                "another map of all its photos"
            )
        if found:
            existing.check_database()
        with existing.draft(resume=False) as folder:
            stages = Stages(folder, settings, progress)
            folder.add_photo_folder(Path(photos), moved=not found)
            if not found:
                stages.survey(folder.finished)
                return stages.finish()
            model = model or D2Net.from_pretrained()
            check_cameras(found, settings, model.settings.upright)
            folder.seconds.clear()
            stages.extract(model, found, masks)
            new = stages.usable
            stages.survey(folder.finished)
            stages.match(stages.select_added_pairs(new))
            stages.verify(adding=True)
            stages.map(adding=True)
            return stages.finish()


def _find_photos(folder: Path) -> list[FoundImage]:
    if folder.is_file():
        raise InputError(f"{folder} is a file; give the folder that holds the photos")
    return find_images([folder])


@contextmanager
def opened(path: Path) -> Iterator[MapFolder]:
    """A map's folder, locked; OutputError if a map would replace files of the user there."""
    with output_errors(path):
        path.mkdir(parents=True, exist_ok=True)
    with locked(path / "map"):
        finish_installation(path)
        folder = MapFolder(path)
        foreign = folder.foreign_files()
        if foreign:
            raise OutputError(
                f"{foreign[0]} does not seem to be of a map by d2net, and the map would replace "
                "it: move it, or choose another folder"
            )
        yield folder
