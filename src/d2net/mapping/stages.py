"""A map is made in stages: features, pairs, matches, verification, mapping, report."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pycolmap

from d2net.errors import FormatError, InputError, MappingError
from d2net.extraction.d2net import D2Net
from d2net.extraction.folder import extract_folder
from d2net.features import LazyFeatures
from d2net.geometry.alignment import spread_of
from d2net.geometry.cameras import check_photo_size
from d2net.geometry.coordinates import Size
from d2net.io.colmap_database import write_database
from d2net.io.colmap_model import read_model
from d2net.io.exif import Position
from d2net.io.h5 import FeatureFile, MatchFile
from d2net.io.image_lists import FoundImage
from d2net.io.pair_lists import Pair, read_pairs, write_pairs
from d2net.io.resume import check_settings, fingerprint
from d2net.mapping.assign_cameras import assign_cameras
from d2net.mapping.georeference import Georeference, KnownDistance, georeference
from d2net.mapping.map_folder import MapFolder
from d2net.mapping.mapper import SignificantPairs, posed_photos, run_mapper, verify_pairs
from d2net.mapping.plausibility import judge_map, remove_impossible_photos
from d2net.mapping.reconstruction_arrays import read_cloud
from d2net.mapping.report import write_report
from d2net.mapping.settings import MIN_PHOTOS, MappingSettings, Thresholds
from d2net.mapping.summary import NO_FEATURES, MapSummary, summarise, why_no_map, why_unregistered
from d2net.mapping.triangulate import triangulate
from d2net.matching import check_matcher, matcher_id
from d2net.matching.match_pairs import match_pairs
from d2net.matching.pair_selection import PairChoice, choose_pairs
from d2net.matching.retrieval import GlobalDescriptors
from d2net.progress import Progress

_log = logging.getLogger(__name__)
_NUM_MATCHED = 20  # most similar photos of a map that each added photo is matched with


class Stages:
    """The stages of one run, and what is known of its photos."""

    def __init__(self, folder: MapFolder, settings: MappingSettings, progress: Progress) -> None:
        self._folder = folder
        self._settings = settings
        self._progress = progress
        self.sizes: dict[str, Size] = {}
        self.uncertainty: dict[str, float] = {}  # typical, in pixels; of photos with keypoints
        self.failed: dict[str, str] = {}  # why photos have no features
        self.provenance: object = None  # how the features were made
        self.inputs = ""  # fingerprint of all that the next stage depends on

    @property
    def usable(self) -> list[str]:
        """The photos that have keypoints, sorted."""
        return sorted(self.uncertainty)

    @property
    def limits(self) -> Thresholds:
        """Largest errors for these keypoints."""
        return self._settings.thresholds(self.uncertainty.values())

    def extract(self, model: D2Net, photos: Sequence[FoundImage], masks: Path | str | None) -> None:
        """Extract the features of photos that have none yet."""
        check_matcher(self._settings.matcher, model.descriptor_id())
        output, matches = self._folder.features, self._folder.matches
        if matches.exists():  # a matcher that is refused leaves the map as it is
            with MatchFile(matches) as file:
                made = file.settings or {}
            check_settings(made, {**made, "matcher": matcher_id(self._settings.matcher)}, matches)
        with self._folder.timed("features"):
            outcome = extract_folder(
                model, photos, output, masks=masks, half=True, progress=self._progress
            )
        self.failed = dict(outcome.failed)
        self.survey(photo.name for photo in photos if photo.name not in self.failed)

    def survey(self, names: Iterable[str]) -> None:
        """Read image sizes and keypoint uncertainties from the features file."""
        with FeatureFile(self._folder.features) as features:
            for name in names:
                if name not in features:
                    continue
                number, self.sizes[name], uncertainty = features.overview(name)
                if number:
                    self.uncertainty[name] = uncertainty
                else:
                    self.failed[name] = NO_FEATURES
            self.provenance = features.settings
            extracted = {name: features.inputs(name) for name in self.usable}
        self._depend_on(self.provenance, extracted, self._settings.to_dict())

    def _depend_on(self, *values: object) -> None:
        self.inputs = fingerprint([self.inputs, *values])

    def select_pairs(self, choice: PairChoice, photos: Sequence[FoundImage]) -> list[Pair]:
        """Select the pairs of a new map."""
        names = self.usable
        if len(names) < 2:
            why = "; ".join(f"{name}: {reason}" for name, reason in self.failed.items())
            raise MappingError(
                f"a map needs at least two photos with features, and {len(names)} of "
                f"{len(photos)} have some ({why})"
            )
        with self._folder.timed("pairs"), FeatureFile(self._folder.features) as features:
            descriptors = GlobalDescriptors.build(features, names)
            descriptors.save(self._folder.retrieval)
            pairs = choose_pairs(choice, names, photos=photos, descriptors=descriptors)
        if not pairs:
            raise MappingError(
                f"no pairs selected among the {len(names)} photos; use another method"
            )
        return pairs

    def select_added_pairs(self, new: Sequence[str]) -> list[Pair]:
        """The map's pairs, and pairs of each new photo with the most similar others."""
        usable = set(self.usable)
        with self._folder.timed("pairs"), FeatureFile(self._folder.features) as features:
            # Rebuilt in milliseconds a photo: a codebook of the old photos alone does not
            # distinguish photos of another part of the scene (docs/experiments.md, Retrieval).
            descriptors = GlobalDescriptors.build(features, self.usable)
            descriptors.save(self._folder.retrieval)
            similar = descriptors.neighbours(_NUM_MATCHED)
        known = [pair for pair in read_pairs(self._folder.pairs) if usable.issuperset(pair)]
        added = [(min(a, b), max(a, b)) for a in new for b, _ in similar[a]]
        return list(dict.fromkeys([*known, *added]))

    def match(self, pairs: Sequence[Pair]) -> None:
        """Match pairs that are not matched yet."""
        folder, matcher, progress = self._folder, self._settings.matcher, self._progress
        write_pairs(folder.pairs, pairs)
        with folder.timed("matches"):
            match_pairs(folder.features, pairs, folder.matches, progress=progress, matcher=matcher)
        self._depend_on(pairs)

    def verify(self, *, adding: bool = False) -> None:
        """Write COLMAP's database with the verified matches of the selected pairs."""
        folder, settings = self._folder, self._settings
        if folder.record.inputs("verification") == self.inputs and folder.database_photos():
            return
        self._progress("verifying", 0, None)
        with (
            folder.timed("verification"),
            FeatureFile(folder.features) as features,
            MatchFile(folder.matches) as matches,
        ):
            # Photos of an existing map keep their cameras, and their files may be gone.
            old = folder.finished if adding else frozenset()
            new = [name for name in self.usable if name not in old]
            files = ((name, folder.photo(name), self.sizes[name]) for name in new)
            models = [model for model, _ in folder.read_models()] if adding else []
            cameras = {number: camera for m in models for number, camera in m.cameras.items()}
            map_camera = next(iter(cameras.values())) if len(cameras) == 1 else None
            pairs = SignificantPairs(
                matches,
                features,
                [pair for pair in read_pairs(folder.pairs) if not old.issuperset(pair)],
                seed=settings.seed,
                progress=self._progress,
                num_left_out=folder.record.values["insignificant_pairs"] if adding else 0,
            )
            folder.record.finish("verification")  # a database written for another run is gone
            write_database(
                folder.database,
                LazyFeatures(features.__getitem__, new),
                pairs,
                cameras=assign_cameras(files, settings, map_camera),
                overwrite=not adding,
                extend=adding,
            )
            verify_pairs(folder.database, self.limits, settings.seed)
            folder.record.values["insignificant_pairs"] = pairs.num_left_out
        folder.record.finish("verification", self.inputs)

    def map(
        self,
        positions: Mapping[str, Position] | None = None,
        known_distance: KnownDistance | None = None,
        *,
        adding: bool = False,
    ) -> None:
        """Run COLMAP's mapper, and save the largest new model first.

        New models are turned upright, and scaled to metres and turned to north if these are known.
        With `adding` they come after the old ones, which grow and keep their coordinates.
        """
        folder = self._folder
        self._depend_on(positions, known_distance)
        if folder.record.inputs("mapping") == self.inputs:
            with suppress(InputError, FormatError):
                if len(folder.read_models()) == folder.record.values.get("models"):
                    return  # none was deleted
        self._progress("mapping", 0, None)
        old = folder.read_models() if adding else []
        known = set(folder.record.values.get("known_cameras", ())) if adding else set[int]()
        held = [posed_photos(model) for model, _ in old]
        free = set(self.usable).difference(*held)
        models: list[pycolmap.Reconstruction] = []
        with folder.timed("mapping"), folder.scratch() as scratch:
            database, limits, progress = folder.database, self.limits, self._progress
            run = partial(
                run_mapper, database, limits=limits, fixed_cameras=known, progress=progress
            )
            for number, (model, _) in enumerate(old):
                path = folder.sparse / str(number)
                names = held[number] | free
                grown = run(scratch / path.name, self._settings, names, existing=path) or [model]
                _put_back(grown[0], model)
                models.append(grown[0])
                free -= posed_photos(grown[0])
            if len(free) >= MIN_PHOTOS:
                models += run(scratch / "new", self._settings, free)
        refine = self._settings.camera_params is None and not known
        kept = frozenset[str]().union(*held)
        models, removed = remove_impossible_photos(models, refine=refine, kept=kept)
        if not models and removed:
            faults = ", ".join(f"{name} ({reason})" for name, reason in removed.items())
            raise MappingError(f"the map was impossible: {faults}; give --camera-params")
        if not models:
            raise MappingError(why_no_map(folder.database))
        places = [place for _, place in old]
        places += [georeference(m, positions or {}, known_distance) for m in models[len(old) :]]
        if known_distance and not any({*known_distance[:2]} <= posed_photos(m) for m in models):
            _log.warning("no map holds both %s and %s: distance %g m is unused", *known_distance)
        elif known_distance and positions and not any(places):
            _log.warning("too few GPS positions agree with the known distance to place the map")
        if self._settings.camera_params is not None:
            estimated = {number for model, _ in old for number in model.cameras} - known
            known = {number for model in models for number in model.cameras} - estimated
        folder.record.values |= {"removed": removed, "known_cameras": sorted(known)}
        if not adding:
            folder.record.values.pop("made_with", None)
        folder.save_models(list(zip(models, places, strict=True)), self.usable)
        folder.record.finish("mapping", self.inputs)

    def triangulate(self, poses: Path | str) -> None:
        """Triangulate points from known poses, in place of verification and mapping."""
        folder = self._folder
        known = read_model(poses, self.uncertainty)
        names = sorted(posed_photos(known))
        missing = [name for name in names if name not in self.uncertainty]
        if missing:
            reason = self.failed.get(missing[0], "it is not among the photos given")
            raise MappingError(
                f"there are no features of {missing[0]}, a photo of the model {poses}: {reason}"
            )
        for image in known.images.values():  # the header of HEIC gave no size
            if image.name in self.sizes:
                check_photo_size(image.name, self.sizes[image.name], image.camera)
        self._progress("triangulating", 0, None)
        with (
            folder.timed("triangulation"),
            FeatureFile(folder.features) as features,
            MatchFile(folder.matches) as matches,
        ):
            keypoints = {name: features[name].keypoints.numpy() for name in names}
            pairs = {(min(p), max(p)) for p in read_pairs(folder.pairs) if keypoints.keys() >= {*p}}
            model = triangulate(
                known,
                keypoints,
                ((*pair, matches.get(*pair).indices.numpy()) for pair in sorted(pairs)),
                max_error=self.limits.reprojection,
                seed=self._settings.seed,
            )
        if not model.num_points3D():
            raise MappingError(
                f"no matches agree with the poses in {poses}; they must be those of these photos"
            )
        folder.database.unlink(missing_ok=True)  # of an earlier map without known poses
        without_pose = {name: f"no pose in {poses}" for name in self.usable if name not in names}
        folder.record.values |= {"insignificant_pairs": 0, "removed": without_pose}
        folder.record.values.pop("made_with", None)
        folder.save_models([(model, None)], self.usable)
        folder.record.finish("mapping", fingerprint([self.inputs, str(poses)]))

    def finish(self) -> MapSummary:
        """Write the report, mark the map as finished and put it in its place."""
        folder = self._folder
        models = [model for model, _ in folder.read_models()]
        self._progress("writing the report", 0, None)
        maps = [judge_map(model, folder.database) for model in models]
        removed = folder.record.values.get("removed", {})
        failed = why_unregistered(folder.database, self.usable)
        unreadable = {**folder.record.values.get("unreadable", {}), **self.failed}
        unreadable = {name: unreadable[name] for name in unreadable.keys() - self.sizes.keys()}
        clouds = [read_cloud(model) for model in models]
        settings = {
            **self._settings.to_dict(),
            "verification_px": self.limits.verification,
            "reprojection_px": self.limits.reprojection,
            "features": self.provenance,
        }
        summary = replace(
            summarise(clouds, {**failed, **removed, **self.failed, **unreadable}),
            maps=tuple(maps),
            insignificant_pairs=folder.record.values.get("insignificant_pairs", 0),
            seconds=dict(folder.seconds),
            georeference=Georeference.read(folder.sparse / "0"),
            settings=folder.record.values.setdefault("made_with", settings),
        )
        write_report(clouds, folder.place, summary, folder.photo_folders, folder.read_photo)
        folder.record.values |= {"finished": sorted(self.sizes), "unreadable": unreadable}
        folder.install()
        return summary


def _put_back(grown: pycolmap.Reconstruction, old: pycolmap.Reconstruction) -> None:
    """Undo that COLMAP scales and shifts models of three photos when they grow."""
    kept = {*old.reg_image_ids()}.intersection(grown.reg_image_ids())
    before, after = (
        np.array([model.images[image].projection_center() for image in kept])
        for model in (old, grown)
    )
    scale = spread_of(before) / spread_of(after) if len(kept) > 1 else 1.0
    shift = before.mean(axis=0) - scale * after.mean(axis=0)
    grown.transform(pycolmap.Sim3d(scale, pycolmap.Rotation3d(), shift))
