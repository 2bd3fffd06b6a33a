"""From a folder of photos to a map, in stages that survive a kill."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from d2net.errors import InputError, MappingError
from d2net.extraction.d2net import D2Net
from d2net.extraction.folder import extract_folder
from d2net.features import LazyFeatures, Matches
from d2net.geometry.coordinates import Size
from d2net.io.atomic import locked, output_errors
from d2net.io.colmap_database import write_database
from d2net.io.colmap_model import find_model, read_model
from d2net.io.h5 import FeatureFile, FeatureWriter, MatchFile
from d2net.io.image_lists import FoundImage, find_images
from d2net.io.pairs import Pair, read_pairs, write_pairs
from d2net.mapping.adjust import adjust, adjusted_uncertainty
from d2net.mapping.cameras import assign_cameras
from d2net.mapping.cloud import read_cloud
from d2net.mapping.diagnosis import no_map_because, unplaced
from d2net.mapping.engine import run_mapper, verify_pairs
from d2net.mapping.folder import MapFolder, digest
from d2net.mapping.report import write_report
from d2net.mapping.settings import MappingSettings, Thresholds, thresholds
from d2net.mapping.summary import NO_FEATURES, MapSummary, summarise
from d2net.mapping.triangulate import triangulate
from d2net.matching.match_pairs import match_pairs
from d2net.matching.pair_selection import PairChoice, choose_pairs
from d2net.matching.retrieval import GlobalDescriptors
from d2net.progress import Progress

if TYPE_CHECKING:
    import pycolmap

Report = Callable[[str, str, int | None], None]
"""Called with the stage, what was just done, and how much is left (None where nobody knows)."""


def reconstruct(
    photos: Path | str,
    output: Path | str,
    *,
    model: D2Net | None = None,
    pairs: PairChoice | None = None,
    settings: MappingSettings | None = None,
    masks: Path | None = None,
    poses: Path | None = None,
    report: Report | None = None,
) -> MapSummary:
    """Make a map from a folder of photos; safe to kill, and to start again.

    Started again, it goes on at the stage it was in. With other photos, pairs or settings of the
    mapping, the stages that depend on them are done anew; with other settings of the extraction it
    is an error.

    Args:
        photos: the folder.
        output: the map's folder, made if need be; see `MapFolder` for what is in it, beside
            `report.json`, `map.png` and `map.html`.
        model: extracts features; the default weights if None.
        pairs: how pairs are chosen.
        settings: of the mapping.
        masks: see `extract_folder`.
        poses: folder of a COLMAP model with cameras and poses of the photos. They stay as they are,
            and points are triangulated: the way the localization benchmarks build their maps.
        report: called as the work goes on.

    Raises:
        MappingError: no map can be made of these photos; it says why.
        InputError: there are fewer than two photos, or arguments do not go together.
        OutputError: the output cannot be written, or holds features made with other settings.
    """
    found = _photos(Path(photos))
    if len(found) < 2:
        raise InputError(
            f"a map needs at least two photos of one place, and {photos} holds {len(found)}"
        )
    settings, say = settings or MappingSettings(), report or _silent
    model = model or D2Net.from_pretrained()
    with _opened(Path(output)) as folder:
        folder.add_photo_folder(Path(photos))
        survey = _extract(folder, model, found, masks, say)
        chosen = _match(folder, survey, pairs or PairChoice(), found, say)
        inputs = digest([survey.provenance, survey.usable, chosen, settings.to_dict()])
        if settings.refine:
            survey = _adjust(folder, survey, model.settings.upright, settings, inputs, say)
            inputs = digest([inputs, "adjusted"])
        limits = thresholds(settings, survey.uncertainty.values())
        if poses is None:
            _verify(folder, survey, settings, limits, inputs, say)
            models = _map(folder, settings, limits, inputs, say)
        else:
            models = _triangulate(folder, survey, poses, settings, limits)
            folder.note("mapping", digest([inputs, str(poses)]))
        return _finish(folder, survey, models, settings, limits, say)


def extend(
    into: Path | str,
    photos: Path | str,
    *,
    model: D2Net | None = None,
    num_matched: int = 20,
    settings: MappingSettings | None = None,
    report: Report | None = None,
) -> MapSummary:
    """Add photos to a map that is there; its photos stay, and are adjusted with the new ones.

    Safe to kill, and to start again.

    Args:
        into: the map's folder.
        photos: the folder of the new photos, whose names must be new.
        model: as the map was made with.
        num_matched: photos of the map, those that look most alike, that each new one is matched
            with.
        settings: of the mapping, without `refine`: the map's keypoints stay where they are, and
            the new photos' where they were detected.
        report: called as the work goes on.

    Raises:
        InputError: `into` is no finished map, all photos are in it already, or `refine` is set.
        OutputError: the map's features were made with other settings.
    """
    folder_path, settings, say = Path(into), settings or MappingSettings(), report or _silent
    if settings.refine:
        raise InputError(
            "refine is for a map that is made anew, not for photos that are added to one"
        )
    MapFolder(folder_path).read_reconstruction()
    with _opened(folder_path) as folder:
        # Not those that have features: a run that was killed may have left some behind.
        found = [p for p in _photos(Path(photos)) if p.name not in folder.finished]
        if not found:
            raise InputError(f"all photos of {photos} are in the map {into} already")
        folder.add_photo_folder(Path(photos))
        survey = _extract(folder, model or D2Net.from_pretrained(), found, None, say)
        with folder.timed("pairs"), FeatureFile(folder.features) as features:
            # Anew, which takes milliseconds a photo: a codebook of the old photos alone does not
            # tell photos of another place apart (EXPERIMENTS.md, Retrieval).
            described = GlobalDescriptors.build(features)
            alike = described.neighbours(num_matched)
            pairs = [(other, name) for name in survey.usable for other, _ in alike[name]]
            described.save(folder.retrieval)
        pairs = list(dict.fromkeys([*read_pairs(folder.pairs), *pairs]))
        _match_pairs(folder, pairs, say)
        survey = _survey(folder, survey.failed)
        limits = thresholds(settings, survey.uncertainty.values())
        inputs = digest([survey.provenance, survey.usable, pairs, settings.to_dict()])
        _verify(folder, survey, settings, limits, inputs, say, extend=True)
        models = _map(folder, settings, limits, inputs, say, known=folder.sparse / "0")
        return _finish(folder, survey, models, settings, limits, say)


@dataclass(frozen=True)
class _Survey:
    """What is known of the photos of a map after extraction.

    Attributes:
        sizes: (width, height) by name.
        uncertainty: typical one of the keypoints in pixels, of photos that have some.
        failed: why photos have no features.
        provenance: how the features were made.
        keypoints: the file of keypoints that the map is made from.
    """

    sizes: Mapping[str, Size]
    uncertainty: Mapping[str, float]
    failed: Mapping[str, str]
    provenance: object
    keypoints: Path

    @property
    def usable(self) -> list[str]:
        """The photos that have features, sorted."""
        return sorted(self.uncertainty)


def _silent(stage: str, what: str, left: int | None) -> None:
    """Tell nobody."""


def _photos(folder: Path) -> list[FoundImage]:
    if folder.is_file():
        raise InputError(f"{folder} is a file; give the folder that holds the photos")
    return find_images([folder])


@contextmanager
def _opened(path: Path) -> Iterator[MapFolder]:
    """A map's folder, locked while it is worked on."""
    with output_errors(path):
        path.mkdir(parents=True, exist_ok=True)
    with locked(path / "map"):
        yield MapFolder(path)


def _extract(
    folder: MapFolder,
    model: D2Net,
    photos: Sequence[FoundImage],
    masks: Path | None,
    say: Report,
) -> _Survey:
    with folder.timed("features"):
        outcome = extract_folder(
            model,
            photos,
            folder.features,
            masks=masks,
            half=True,
            progress=_progress("features", say),
        )
    failed = {photo.name: photo.error or "" for photo in outcome.failed}
    return _survey(folder, failed, [photo.name for photo in photos])


def _progress(stage: str, say: Report) -> Progress:
    """Adapt a `Report` to functions that take a `Progress`."""

    def progress(text: str, done: int, total: int | None) -> None:
        say(stage, text.partition(": ")[2], None if total is None else total - done)

    return progress


def _survey(
    folder: MapFolder, failed: Mapping[str, str], names: Collection[str] | None = None
) -> _Survey:
    """Of the photos `names`, or of all in the features file."""
    sizes, uncertainty = {}, {}
    reasons = dict(failed)
    with FeatureFile(folder.features) as features:
        for name in features.names:
            if names is not None and name not in names:
                continue
            photo = features[name]
            sizes[name] = photo.image_size
            if len(photo):
                uncertainty[name] = float(photo.uncertainty.median())
            else:
                reasons[name] = NO_FEATURES
        return _Survey(sizes, uncertainty, reasons, features.settings, folder.features)


def _match(
    folder: MapFolder,
    survey: _Survey,
    choice: PairChoice,
    photos: Sequence[FoundImage],
    say: Report,
) -> list[Pair]:
    names = survey.usable
    if len(names) < 2:
        why = "; ".join(f"{name}: {reason}" for name, reason in survey.failed.items())
        raise MappingError(
            f"a map needs at least two photos with features, and {len(names)} of {len(photos)} "
            f"have some ({why})"
        )
    with folder.timed("pairs"), FeatureFile(folder.features) as features:
        pairs = choose_pairs(choice, names, photos=photos, features=features)
        if not pairs:
            raise MappingError(
                f"no two of the {len(names)} photos are a pair to match; choose pairs otherwise"
            )
        GlobalDescriptors.build(features, names).save(folder.retrieval)
    _match_pairs(folder, pairs, say)
    return pairs


def _match_pairs(folder: MapFolder, pairs: Sequence[Pair], say: Report) -> None:
    write_pairs(folder.pairs, pairs)
    with folder.timed("matches"):
        match_pairs(
            folder.features,
            pairs,
            folder.matches,
            progress=_progress("matches", say),
        )


def _verify(
    folder: MapFolder,
    survey: _Survey,
    settings: MappingSettings,
    limits: Thresholds,
    inputs: str,
    say: Report,
    *,
    extend: bool = False,
) -> None:
    """COLMAP's database with the verified matches of the chosen pairs."""
    if folder.is_done("verification", inputs) and folder.database.exists():
        return
    with folder.timed("verification"):
        say("verification", "", None)
        # Photos that the map has already keep their cameras, and need not be there any more.
        old = folder.finished if extend else frozenset()
        names = [name for name in survey.usable if name not in old]
        files = ((name, folder.photo(name), survey.sizes[name]) for name in names)
        cameras = assign_cameras(
            files, settings.camera_mode, settings.camera_model, settings.camera_params
        )
        pairs = set(read_pairs(folder.pairs))
        with FeatureFile(survey.keypoints) as features, MatchFile(folder.matches) as matches:
            write_database(
                folder.database,
                LazyFeatures(features.__getitem__, names),
                _OnlyPairs(matches, pairs),
                cameras=cameras,
                overwrite=not extend,
                extend=extend,
            )
        verify_pairs(folder.database, limits, settings)
    folder.note("verification", inputs)


def _adjust(
    folder: MapFolder,
    survey: _Survey,
    upright: bool,
    settings: MappingSettings,
    inputs: str,
    say: Report,
) -> _Survey:
    """Verify, and move keypoints along the tracks of what agrees."""
    if not (folder.is_done("adjustment", inputs) and folder.adjusted.exists()):
        limits = thresholds(settings, survey.uncertainty.values())
        _verify(folder, survey, settings, limits, inputs, say)
        with folder.timed("adjustment"), FeatureFile(folder.features) as features:
            after = adjust(
                folder.database,
                LazyFeatures(features.__getitem__, survey.usable),
                folder.photo,
                upright=upright,
                report=lambda pair, left: say("adjustment", pair, left),
            )
            folder.adjusted.unlink(missing_ok=True)  # of other inputs
            with FeatureWriter(folder.adjusted, {"adjusted": features.settings}) as writer:
                for name, found in after.items():
                    writer.add(name, found)
        folder.note("adjustment", inputs)
    with FeatureFile(folder.features) as before, FeatureFile(folder.adjusted) as now:
        moved = {n: adjusted_uncertainty(before[n], now[n]) for n in survey.usable}
    return replace(survey, uncertainty=moved, keypoints=folder.adjusted)


def _map(
    folder: MapFolder,
    settings: MappingSettings,
    limits: Thresholds,
    inputs: str,
    say: Report,
    known: Path | None = None,
) -> list[pycolmap.Reconstruction]:
    if folder.is_done("mapping", inputs) and folder.sparse.is_dir():
        return folder.read_reconstructions()
    count = 0

    def registered() -> None:
        nonlocal count
        count += 1
        say("mapping", f"photo {count}", None)

    with folder.timed("mapping"), TemporaryDirectory(prefix="mapper-", dir=folder.path) as own:
        say("mapping", "", None)
        models = run_mapper(
            folder.database,
            folder.path,
            Path(own),
            limits,
            settings,
            known=known,
            registered=registered,
        )
    if not models:
        raise MappingError(no_map_because(folder.database, settings))
    folder.save_models(models)
    folder.note("mapping", inputs)
    return models


def _triangulate(
    folder: MapFolder,
    survey: _Survey,
    poses: Path,
    settings: MappingSettings,
    limits: Thresholds,
) -> list[pycolmap.Reconstruction]:
    known = read_model(find_model(poses) or poses)
    names = sorted(image.name for image in known.images.values() if image.has_pose)
    missing = [name for name in names if name not in survey.uncertainty]
    if missing:
        raise MappingError(
            f"the model {poses} holds the photo {missing[0]}, of which there are no features; all "
            f"its {len(names)} photos must be among the photos given"
        )
    with (
        folder.timed("triangulation"),
        FeatureFile(survey.keypoints) as features,
        MatchFile(folder.matches) as matches,
    ):
        keypoints = {name: features[name].keypoints.numpy() for name in names}
        counts = {name: len(points) for name, points in keypoints.items()}
        models = [
            triangulate(
                known,
                keypoints,
                ((a, b, found.indices.numpy()) for a, b, found in matches.among(counts)),
                max_error=limits.reprojection,
                seed=settings.seed,
            )
        ]
    folder.database.unlink(missing_ok=True)  # of an earlier map without known poses
    folder.save_models(models)
    return models


def _finish(
    folder: MapFolder,
    survey: _Survey,
    models: Sequence[pycolmap.Reconstruction],
    settings: MappingSettings,
    limits: Thresholds,
    say: Report,
) -> MapSummary:
    say("report", "", None)
    cloud = read_cloud(models[0])
    result = summarise(
        cloud,
        {**unplaced(folder.database, models, survey.usable), **survey.failed},
        models=[model.num_reg_images() for model in models],
        seconds=folder.seconds,
        settings={
            **settings.to_dict(),
            "verification_px": limits.verification,
            "reprojection_px": limits.reprojection,
            "features": survey.provenance,
        },
    )
    write_report(cloud, folder.path, result, folder.photo_folders)
    folder.finish([*survey.sizes, *survey.failed])
    return result


class _OnlyPairs:
    """Some of the pairs of a matches file, which earlier runs may have filled with others."""

    def __init__(self, matches: MatchFile, pairs: Collection[Pair]) -> None:
        self._matches = matches
        self._pairs = {frozenset(pair) for pair in pairs}

    def among(self, num_keypoints: Mapping[str, int]) -> Iterator[tuple[str, str, Matches]]:
        """See `MatchedPairs`."""
        for first, second, found in self._matches.among(num_keypoints):
            if frozenset((first, second)) in self._pairs:
                yield first, second, found
