"""Features of many photos, into one HDF5 file or into the files of the 2019 release."""

from __future__ import annotations

import copy
import logging
import os
from collections import deque
from collections.abc import Generator, Iterable, Sequence, Set
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

from d2net.cluster import share
from d2net.errors import ImageError, InputError
from d2net.extraction.d2net import D2Net, PreparedPhoto, prepare
from d2net.features import Features
from d2net.io import release
from d2net.io.atomic import locked, output_errors
from d2net.io.h5 import FeatureWriter
from d2net.io.image_lists import FoundImage, find_images
from d2net.io.resume import WorkRecord, file_state, fingerprint
from d2net.progress import Progress, no_progress
from d2net.settings import ExtractionSettings
from d2net.text import count

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from d2net.settings import ExtractionOptions

Format = Literal["h5", "npz", "mat"]
PathLike: TypeAlias = str | os.PathLike[str]

_log = logging.getLogger(__name__)

_READ_AHEAD = 4
"""Photos read and reduced while the network works; each may take some 10 MB."""

_CLUSTER_BATCH = 4
"""Photos that a process of a cluster extracts at a time."""


@dataclass(frozen=True)
class Outcome:
    """The result for one photo: its number of keypoints, or why it has no features."""

    name: str
    num_keypoints: int = 0
    error: str | None = None


@dataclass(frozen=True)
class Summary:
    """The results for all photos.

    Attributes:
        extracted: outcomes of the photos that this run extracted.
        failed: outcomes of the photos that could not be read or stored.
        skipped: names of the photos whose features the output held before.
    """

    extracted: list[Outcome]
    failed: list[Outcome]
    skipped: list[str]


@dataclass(frozen=True)
class _Job:
    """All that is needed to extract a photo, sent once to each process of a cluster."""

    model: D2Net
    settings: ExtractionSettings
    masks: dict[str, Path]
    half: bool
    device: str


def extract_folder(
    model: D2Net,
    photos: PathLike | Sequence[PathLike | FoundImage],
    output: PathLike | None,
    *,
    format: Format = "h5",
    masks: PathLike | None = None,
    half: bool = False,
    cluster: str | None = None,
    progress: Progress = no_progress,
    **settings: Unpack[ExtractionOptions],
) -> Summary:
    """Extract the features of many photos. A run that was stopped can be started again.

    Photos whose features are in the output already are skipped, unless the photo or its mask has
    changed. A photo that cannot be read, or whose mask cannot be read, does not stop the others.
    Threads read the next photos while the network works.

    Args:
        model: the network.
        photos: a folder, a list of photos and folders, or the result of `find_images` or
            `read_image_list`.
        output: the HDF5 file; for npz and mat a folder, or None to write beside the photos.
        format: "h5" for one file in hloc's layout. "npz" or "mat" for one file `NAME.d2-net` per
            photo, as the 2019 release writes them.
        masks: folder with one mask per photo: the mask of a.jpg is a.jpg.png (as in COLMAP) or
            a.png. Photos without a mask are extracted whole.
        half: store descriptors in half precision (h5 only). Keypoints stay in float32.
        cluster: address of a Ray cluster that shares the work, or "auto" for the cluster of this
            machine.
        progress: called after each photo.
        **settings: changes to the model's settings.

    Raises:
        MissingPackageError: `cluster` is given, and Ray is not installed.
        OutputBusyError: another process writes this output.
        OutputError: the output cannot be written or was made with other settings.
        InputError: the format or a setting is unknown, there are no photos or no masks of them,
            or no photo could be extracted.
    """
    chosen = model.resolve(**settings)
    found = _find_photos(photos)
    masks_of_photos = {} if masks is None else _find_masks(found, Path(masks))
    provenance = {**model.provenance(chosen), "half": half, "masks": masks is not None}
    job = _Job(model, chosen, masks_of_photos, half, str(model.device))
    with _open_output(output, found, format, provenance) as sink:
        inputs = {
            photo.name: fingerprint([file_state(photo.path), file_state(job.masks.get(photo.name))])
            for photo in found
        }
        todo = [photo for photo in found if not sink.is_done(photo.name, inputs[photo.name])]
        changed = [photo.name for photo in todo if photo.name in sink.done()]
        if changed:
            _log.warning(
                "%s changed since the last run, such as %s; extracting again",
                *(count(len(changed), "photo"), changed[0]),
            )
        outcomes: dict[str, Outcome] = {}
        progress("extracting", 0, len(todo))
        results = _extract(job, todo) if cluster is None else _on_cluster(cluster, job, todo)
        with closing(results):
            for name, result in results:
                outcomes[name] = _store(sink, name, result, inputs[name])
                progress(f"extracting: {name}", len(outcomes), len(todo))
        return _summarize(job, [(photo.name, outcomes.get(photo.name)) for photo in found])


def _find_photos(photos: PathLike | Sequence[PathLike | FoundImage]) -> list[FoundImage]:
    given = [photos] if isinstance(photos, str | os.PathLike) else list(photos)
    paths = [photo for photo in given if not isinstance(photo, FoundImage)]
    found = [photo for photo in given if isinstance(photo, FoundImage)] + find_images(paths)
    if not found:
        raise InputError("there are no photos to extract: give files, or folders that hold some")
    return found


def _on_cluster(
    address: str, job: _Job, photos: Sequence[FoundImage]
) -> Generator[tuple[str, Features | str], None, None]:
    # Other machines have other working directories, and may have no GPU until one is requested.
    photos = [FoundImage(photo.path.absolute(), photo.name) for photo in photos]
    masks = {name: path.absolute() for name, path in job.masks.items()}
    job = replace(job, model=copy.deepcopy(job.model).to("cpu"), masks=masks)
    gpu = job.device != "cpu"
    yield from share(address, _extract_batch, job, photos, batch=_CLUSTER_BATCH, gpu=gpu)


def _extract_batch(job: _Job, photos: list[FoundImage]) -> list[tuple[str, Features | str]]:
    """Extract some of the photos, in a process of a cluster."""
    job.model.to(job.device)
    return list(_extract(job, photos))


def _extract(
    job: _Job, photos: Sequence[FoundImage]
) -> Generator[tuple[str, Features | str], None, None]:
    """The features of each photo on the CPU, or why it has none."""
    with closing(_read_ahead(photos, job.settings, job.masks)) as reading:
        for photo, prepared in reading:
            try:
                ready = prepared.result()
            except (ImageError, InputError) as error:
                yield photo.name, str(error)
                continue
            features = job.model.extract_prepared([ready])[0].to("cpu")
            yield photo.name, features.half() if job.half else features


def _store(sink: _Sink, name: str, result: Features | str, inputs: str) -> Outcome:
    if isinstance(result, str):
        return Outcome(name, error=result)
    try:
        sink.add(name, result, inputs)
    except InputError as error:  # HDF5 cannot hold this name
        return Outcome(name, error=str(error))
    return Outcome(name, len(result))


def _summarize(job: _Job, outcomes: Sequence[tuple[str, Outcome | None]]) -> Summary:
    tried = [outcome for _, outcome in outcomes if outcome is not None]
    failed = [outcome for outcome in tried if outcome.error is not None]
    if len(failed) == len(outcomes):
        raise InputError(
            f"no photo could be extracted, so no features are written; the first error: "
            f"{failed[0].error}"
        )
    extracted = [outcome for outcome in tried if outcome.error is None]
    masked = [done.name for done in extracted if not done.num_keypoints and done.name in job.masks]
    if masked:
        _log.warning(
            "%s with a mask and without keypoints, such as %s; keypoints are kept where the mask "
            "is not 0",
            *(count(len(masked), "photo"), masked[0]),
        )
    return Summary(extracted, failed, [name for name, outcome in outcomes if outcome is None])


def _read_ahead(
    photos: Iterable[FoundImage], settings: ExtractionSettings, masks: dict[str, Path]
) -> Generator[tuple[FoundImage, Future[PreparedPhoto]], None, None]:
    """The photos in order, each with the future of its pixels."""
    readers = min(_READ_AHEAD, os.cpu_count() or 1)
    pool = ThreadPoolExecutor(readers, thread_name_prefix="read")
    waiting: deque[tuple[FoundImage, Future[PreparedPhoto]]] = deque()
    try:
        for photo in photos:
            mask = masks.get(photo.name)
            waiting.append((photo, pool.submit(prepare, photo.path, settings, mask)))
            if len(waiting) > _READ_AHEAD:
                yield waiting.popleft()
        while waiting:
            yield waiting.popleft()
    finally:
        pool.shutdown(cancel_futures=True)


def _find_masks(photos: Iterable[FoundImage], folder: Path) -> dict[str, Path]:
    """The mask of each photo that has one, by the photo's name."""
    if not folder.is_dir():
        raise InputError(f"there is no folder of masks {os.fspath(folder)!r}")
    photos = list(photos)
    found = {}
    for photo in photos:
        for name in (f"{photo.name}.png", Path(photo.name).with_suffix(".png")):
            if (folder / name).is_file():
                found[photo.name] = folder / name
                break
    if not found:
        raise InputError(
            f"the folder {os.fspath(folder)!r} holds no mask of any of the photos; call the mask "
            "of a.jpg a.jpg.png or a.png, in the same subfolder"
        )
    missing = [photo.name for photo in photos if photo.name not in found]
    if missing:
        _log.warning(
            "%d of %d photos have no mask in %s, such as %s; their keypoints are not masked",
            *(len(missing), len(photos), folder, missing[0]),
        )
    return found


class _Sink(Protocol):
    """The output of an extraction."""

    def done(self) -> Set[str]: ...

    def is_done(self, name: str, inputs: str) -> bool: ...

    def add(self, name: str, features: Features, inputs: str) -> None: ...


def _open_output(
    output: PathLike | None,
    photos: Sequence[FoundImage],
    format: Format,
    provenance: dict[str, Any],
) -> AbstractContextManager[_Sink]:
    if format == "h5":
        return FeatureWriter(_one_file(output), provenance)
    if format not in ("npz", "mat"):
        raise InputError(f"the format must be h5, npz or mat, not {format!r}")
    if provenance["half"]:
        raise InputError("half precision is for h5; the release's files hold float32")
    folder = None if output is None else Path(output)
    return _ReleaseFiles(folder, photos, format, {**provenance, "format": format})


def _one_file(output: PathLike | None) -> Path:
    if output is None:
        raise InputError("h5 features go into one file: give the output path")
    if Path(output).is_dir():
        raise InputError(
            f"{os.fspath(output)} is a folder; h5 features go into one file, such as "
            f"{Path(output, 'features.h5')}"
        )
    return Path(output)


class _ReleaseFiles:
    """Files `NAME.d2-net`, below a folder or beside the photos.

    The root folder of the names, or each one if the photos have several, holds a `WorkRecord`
    `d2net.json` with the settings and the finished photos.
    """

    def __init__(
        self,
        folder: Path | None,
        photos: Sequence[FoundImage],
        format: release.Format,
        provenance: dict[str, Any],
    ) -> None:
        self._folder = folder
        self._format = format
        self._provenance = provenance
        self._roots = {photo.name: folder or _root(photo) for photo in photos}
        self._records: dict[Path, WorkRecord] = {}
        self._locks = ExitStack()

    def __enter__(self) -> _ReleaseFiles:
        if self._folder is not None:
            with output_errors(self._folder):
                self._folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            for root in sorted(set(self._roots.values())):
                record = root / "d2net.json"
                stack.enter_context(locked(record))
                self._records[root] = WorkRecord(record, self._provenance)
            self._locks = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._locks.close()

    def done(self) -> Set[str]:
        return {name for name in self._roots if self._path(name).exists()}

    def is_done(self, name: str, inputs: str) -> bool:
        return self._path(name).exists() and self._record(name).is_done(name, inputs)

    def add(self, name: str, features: Features, inputs: str) -> None:
        path = self._path(name)
        with output_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        release.write_release(path, features, self._format)
        self._record(name).finish(name, inputs)

    def _path(self, name: str) -> Path:
        return self._roots[name] / f"{name}.d2-net"

    def _record(self, name: str) -> WorkRecord:
        return self._records[self._roots[name]]


def _root(photo: FoundImage) -> Path:
    """The folder that a photo's name is relative to."""
    parents = photo.path.absolute().parents
    return parents[min(photo.name.count("/"), len(parents) - 1)]
