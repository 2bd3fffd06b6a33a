"""Features of many photos, into one HDF5 file or into the files of the 2019 release."""

from __future__ import annotations

import copy
import logging
import os
from collections import deque
from collections.abc import Generator, Iterator, Sequence, Set
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

from typing_extensions import Unpack

from d2net.cluster import share
from d2net.errors import ImageError, InputError, OutputError
from d2net.extraction.d2net import D2Net, PreparedPhoto, prepare
from d2net.features import Features
from d2net.io import release_2019
from d2net.io.atomic import locked, output_errors
from d2net.io.h5 import FeatureWriter
from d2net.io.image_lists import FoundImage, find_images, find_photo
from d2net.io.resume import WorkRecord, are_unchanged, file_state, record_files
from d2net.progress import Progress, no_progress
from d2net.settings import ExtractionOptions, ExtractionSettings

Format = Literal["h5", "npz", "mat"]
PathLike: TypeAlias = str | os.PathLike[str]
_Result: TypeAlias = tuple[str, str, Features | ImageError | InputError]
"""Name and inputs (`record_files`) of a photo, and its features or why it has none."""

_log = logging.getLogger(__name__)

_READ_AHEAD = 4  # photos read and reduced while the network works; each may take some 10 MB

_CLUSTER_BATCH = 4  # photos that a process of a cluster extracts at a time


@dataclass(frozen=True)
class Summary:
    """The results for all photos.

    Attributes:
        extracted: number of keypoints of each photo that this run extracted.
        failed: why a photo could not be read or stored.
        skipped: the photos whose features were in the output before.
        other_photos: photos of earlier runs that were not given; the output still has them.
    """

    extracted: dict[str, int]
    failed: dict[str, str]
    skipped: list[str]
    other_photos: int


@dataclass(frozen=True)
class _Job:
    """Everything needed to extract a photo, sent once to each process of a cluster."""

    model: D2Net
    settings: ExtractionSettings
    masks: dict[str, Path]
    half: bool
    device: str


def extract_folder(
    model: D2Net,
    photos: PathLike | Sequence[PathLike | FoundImage],
    output: PathLike,
    *,
    format: Format = "h5",
    masks: PathLike | None = None,
    half: bool = False,
    cluster: str | None = None,
    progress: Progress = no_progress,
    **settings: Unpack[ExtractionOptions],
) -> Summary:
    """Extract the features of many photos. Call it again to resume an interrupted run.

    Photos whose features are in the output already are skipped, unless the photo or its mask has
    changed. A photo or mask that cannot be read does not stop the others.

    Args:
        model: the network.
        photos: a folder, a list of photos and folders, or what `find_images` returns.
        output: the HDF5 file, or the folder for npz and mat.
        format: "h5" for one file in hloc's layout. "npz" or "mat" for one file `NAME.d2-net` per
            photo, as the 2019 release writes them.
        masks: folder with one mask per photo: the mask of a.jpg is a.jpg.png (as in COLMAP) or
            a.png. Photos without a mask are extracted whole.
        half: store descriptors in half precision (h5 only). Keypoints stay in float32.
        cluster: address of a Ray cluster that shares the work, or "auto".
        progress: called with (stage, done, total) at the start and after each photo.
        **settings: changes to the model's settings.

    Raises:
        MissingPackageError: `cluster` is given, and Ray is not installed.
        OutputBusyError: another process writes this output.
        OutputError: the output cannot be written or was made with other settings.
        InputError: the format or a setting is unknown, there are no photos or no masks of them,
            or no photo could be extracted.
    """
    chosen = model.resolve(**settings)
    given = [photos] if isinstance(photos, str | os.PathLike) else list(photos)
    found = [photo for photo in given if isinstance(photo, FoundImage)]
    found += find_images([photo for photo in given if not isinstance(photo, FoundImage)])
    if not found:
        raise InputError("no photos to extract: give files or folders of photos")
    masks_of_photos: dict[str, Path] = {}
    if masks is not None:
        found, masks_of_photos = _find_masks(found, Path(masks))
    job = _Job(model, chosen, masks_of_photos, half, str(model.device))
    provenance = {**model.provenance(chosen), "half": half, "masks": masks is not None}
    with _open_output(Path(output), format, provenance) as writer:
        progress("comparing photos", 0, None)
        skipped = {
            photo.name: None
            for photo in found
            if are_unchanged(writer.inputs(photo.name), photo.path, job.masks.get(photo.name))
        }
        todo = [photo for photo in found if photo.name not in skipped]
        changed = sum(writer.inputs(photo.name) != "" for photo in todo)
        if changed:
            _log.warning(
                "%d of %d photos, or their masks, have changed and are extracted again",
                *(changed, len(found)),
            )
        other_photos = len(writer.done() - {photo.name for photo in found})
        summary = Summary({}, {}, list(skipped), other_photos)
        progress("extracting", 0, len(todo))
        results = _extract(job, todo) if cluster is None else _on_cluster(cluster, job, todo)
        with closing(results):
            for number, (name, inputs, result) in enumerate(results, 1):
                try:
                    if not isinstance(result, Features):
                        raise result
                    writer.add(name, result, inputs)  # HDF5 cannot hold every name
                    summary.extracted[name] = len(result)
                except (ImageError, InputError) as error:
                    summary.failed[name] = str(error)
                progress(f"extracting: {name}", number, len(todo))
        empty = [name for name, number in summary.extracted.items() if not number]
        if empty:
            _log.warning(
                "%d of %d photos have no keypoints, such as %s: blank photos, or black masks",
                *(len(empty), len(found), empty[0]),
            )
        for name in filter(writer.inputs, summary.failed):
            _log.warning("%s keeps the old features of %s, which cannot be read", output, name)
        if len(summary.failed) == len(found):
            raise InputError(
                "no photo could be extracted, so no features are written; the first error: "
                f"{next(iter(summary.failed.values()))}"
            )
    return summary


def _on_cluster(
    address: str, job: _Job, photos: Sequence[FoundImage]
) -> Generator[_Result, None, None]:
    # Other machines have other working directories, and may have no GPU until one is requested.
    photos = [FoundImage(photo.path.absolute(), photo.name) for photo in photos]
    masks = {name: path.absolute() for name, path in job.masks.items()}
    job = replace(job, model=copy.deepcopy(job.model).to("cpu"), masks=masks)
    gpu = job.device != "cpu"
    yield from share(address, _extract_batch, job, photos, batch=_CLUSTER_BATCH, gpu=gpu)


def _extract_batch(job: _Job, photos: list[FoundImage]) -> list[_Result]:
    """Extract some of the photos, in a process of a cluster."""
    job.model.to(job.device)
    return list(_extract(job, photos))


def _extract(job: _Job, photos: Sequence[FoundImage]) -> Generator[_Result, None, None]:
    """The features of each photo on the CPU, or why it has none; reads ahead in threads."""
    readers = min(_READ_AHEAD, os.cpu_count() or 1)
    pool = ThreadPoolExecutor(readers, thread_name_prefix="read")
    unread = deque(photos)
    reading: deque[tuple[str, Future[tuple[str, PreparedPhoto]]]] = deque()
    try:
        while unread or reading:
            while unread and len(reading) <= _READ_AHEAD:
                photo = unread.popleft()
                reading.append((photo.name, pool.submit(_prepare, job, photo)))
            name, prepared = reading.popleft()
            try:
                inputs, ready = prepared.result()
            except (ImageError, InputError) as error:
                yield name, "", error
            else:
                features = job.model.extract_prepared([ready])[0].to("cpu")
                yield name, inputs, features.half() if job.half else features
    finally:
        pool.shutdown(cancel_futures=True)


def _prepare(job: _Job, photo: FoundImage) -> tuple[str, PreparedPhoto]:
    """Read a photo and its mask. They are recorded first, because they may change meanwhile."""
    mask = job.masks.get(photo.name)
    return record_files(photo.path, mask), prepare(photo.path, job.settings, mask)


def _find_masks(
    photos: Sequence[FoundImage], folder: Path
) -> tuple[list[FoundImage], dict[str, Path]]:
    """The photos without those that are masks, and the masks by the names of their photos."""
    found: dict[str, Path] = {}
    for photo in photos:
        for name in (f"{photo.name}.png", str(Path(photo.name).with_suffix(".png"))):
            mask = find_photo([folder], name)
            if mask and mask.resolve() != photo.path.resolve():
                found.setdefault(photo.name, mask)
    if not found:
        raise InputError(
            f"the folder {os.fspath(folder)!r} has no mask of these photos; the mask of a.jpg is "
            "a.jpg.png or a.png in the same subfolder, and a white mask keeps everything"
        )
    masks = {mask.resolve() for mask in found.values()}
    photos = [
        photo
        for photo in photos
        if photo.path.resolve() not in masks
        # Masks whose photos are not given, if their folder is below that of the photos.
        and folder.resolve() not in map(Path.resolve, photo.path.parents[: photo.name.count("/")])
    ]
    missing = [photo.name for photo in photos if photo.name not in found]
    if missing:
        _log.warning(
            "%d of %d photos have no mask in %s, such as %s; their keypoints are not masked",
            *(len(missing), len(photos), folder, missing[0]),
        )
    return photos, found


@contextmanager
def _open_output(
    output: Path, format: Format, provenance: dict[str, Any]
) -> Iterator[FeatureWriter | _ReleaseFiles]:
    if format == "h5":
        if output.is_dir():
            raise InputError(f"{output} is a folder; h5 features go into one file")
        with FeatureWriter(output, provenance) as writer:
            yield writer
        return
    if format not in ("npz", "mat"):
        raise InputError(f"the format must be h5, npz or mat, not {format!r}")
    if provenance["half"]:
        raise InputError("half precision is for h5; the release's files hold float32")
    with output_errors(output):
        output.mkdir(parents=True, exist_ok=True)
    record = output / "d2net.json"
    with locked(record):
        yield _ReleaseFiles(output, format, WorkRecord(record, {**provenance, "format": format}))


@dataclass(frozen=True)
class _ReleaseFiles:
    """Files `NAME.d2-net` in a folder. A record has the settings and the finished photos."""

    folder: Path
    format: release_2019.Format
    record: WorkRecord

    def done(self) -> Set[str]:
        return {name for name in self.record.done() if file_state(self._path(name))}

    def inputs(self, name: str) -> str:
        path, inputs = self._path(name), self.record.inputs(name)
        if file_state(path) is None:
            return ""
        if not inputs:
            raise OutputError(
                f"{path} exists, but {self.record.path} does not list it; choose another folder"
            )
        *of_photo, written = inputs.split(";")
        if len(of_photo) < 2:  # killed while the file was written
            return ""
        if not are_unchanged(written, path):
            raise OutputError(f"{path} has changed since d2net wrote it: move or delete it")
        return inputs

    def add(self, name: str, features: Features, inputs: str) -> None:
        path = self._path(name)
        with output_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
        # Recorded first: after a kill, the next run must know whose file it is.
        self.record.finish(name, inputs)
        release_2019.write_release(path, features, self.format)
        self.record.finish(name, f"{inputs};{record_files(path)}")

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.d2-net"
