"""Features of many photos, into one HDF5 file or into the release's files."""

from __future__ import annotations

import copy
import json
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence, Set
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol

from d2net.cluster import connected
from d2net.errors import FormatError, ImageError, InputError, OutputError
from d2net.extraction.d2net import D2Net, PreparedPhoto, prepare
from d2net.features import Features
from d2net.io import release
from d2net.io.atomic import locked, output_errors, replacing
from d2net.io.h5 import FeatureFile, FeatureWriter
from d2net.io.image_lists import FoundImage
from d2net.io.shards import Shards
from d2net.settings import ExtractionSettings

Format = Literal["h5", "npz", "mat"]

_READ_AHEAD = 4
"""Photos read and reduced while the network works; each may take some 10 MB."""


@dataclass(frozen=True)
class Outcome:
    """What became of one photo: its number of keypoints, or why it has no features."""

    name: str
    num_keypoints: int = 0
    error: str | None = None


@dataclass(frozen=True)
class Summary:
    """What became of all photos.

    Attributes:
        extracted: outcomes of the photos done now.
        failed: outcomes of the photos that could not be read or stored.
        skipped: names of photos that an earlier run had done, or on a cluster a process that died.
    """

    extracted: list[Outcome]
    failed: list[Outcome]
    skipped: list[str]


@dataclass(frozen=True)
class _Job:
    """What is done with every photo, and where the network runs."""

    model: D2Net
    settings: ExtractionSettings
    masks: dict[str, Path]
    half: bool
    provenance: dict[str, Any]
    device: str

    def to_send(self) -> _Job:
        """The same for another machine, which may have no such device until it is asked for."""
        return replace(self, model=copy.deepcopy(self.model).to("cpu"))


def extract_folder(
    model: D2Net,
    photos: Sequence[FoundImage],
    output: str | os.PathLike[str] | None,
    *,
    format: Format = "h5",
    masks: str | os.PathLike[str] | None = None,
    half: bool = False,
    cluster: str | None = None,
    report: Callable[[Outcome, int], None] | None = None,
    **settings: Any,  # noqa: ANN401 (fields of ExtractionSettings)
) -> Summary:
    """Extract the features of many photos; safe to kill, and to start again.

    Photos are read in other threads while the network works. A photo that cannot be read, or whose
    mask cannot, is reported and does not stop the others.

    Args:
        model: the network.
        photos: what `image_lists.find_images` found.
        output: the HDF5 file, or for npz and mat a folder; None writes those beside the photos.
        format: "h5" for one file in hloc's layout, "npz" or "mat" for a file `NAME.d2-net` a photo
            as the 2019 release writes.
        masks: folder with a mask per photo, `NAME.png` (COLMAP's custom, as `a.jpg.png`) or NAME
            with its extension replaced by .png; photos without one are not masked.
        half: store descriptors in half precision (h5 only); keypoints never are.
        cluster: the address of a Ray cluster that shares the work, "auto" for the one that this
            machine is part of (h5 only). The output is then an index of many files in the folder
            `OUTPUT.shards`, see `io.shards`; it reads as one file.
        report: called after each photo, with the number of photos that are left; on a cluster for
            many photos at once.
        **settings: changes to the model's settings.

    Raises:
        MissingPackageError: a cluster is asked for, and Ray is not installed.
        OutputBusyError: another process writes this output.
        OutputError: the output cannot be written or was made with other settings.
        InputError: unknown format or setting, no photos, none that can be read, no masks for them.
    """
    chosen = model.chosen(**settings)
    if not photos:
        raise InputError("there are no photos to extract: give files, or folders that hold some")
    masked = {} if masks is None else _find_masks(photos, Path(masks))
    provenance = {**model.provenance(chosen), "half": half, "masks": masks is not None}
    job = _Job(model, chosen, masked, half, provenance, str(model.device))
    if cluster is not None:
        return _extract_on_cluster(cluster, job, photos, output, format, report)
    with _open_output(output, photos, format, provenance) as sink:
        summary = _extract(job, photos, sink, report)
        _check_some(summary)
    return summary


def _extract_on_cluster(
    address: str,
    job: _Job,
    photos: Sequence[FoundImage],
    output: str | os.PathLike[str] | None,
    format: Format,
    report: Callable[[Outcome, int], None] | None,
) -> Summary:
    if format != "h5":
        raise InputError(f"a cluster writes h5, not {format!r}")
    index = _one_file(output).absolute()  # other machines have other current folders
    photos = [FoundImage(photo.path.absolute(), photo.name) for photo in photos]
    job = replace(job, masks={name: path.absolute() for name, path in job.masks.items()})
    summary = Summary([], [], [])
    left = len(photos)
    with (
        connected(address, gpu=job.device != "cpu") as workers,
        Shards(index, FeatureFile, job.provenance) as shards,
    ):
        parts = shards.divide(photos, lambda photo: photo.name, workers.count)
        for part in workers.run(_extract_shard, job.to_send(), parts):
            summary.extracted.extend(part.extracted)
            summary.failed.extend(part.failed)
            summary.skipped.extend(part.skipped)
            left -= len(part.extracted) + len(part.failed) + len(part.skipped)
            if report is not None:
                for outcome in (*part.extracted, *part.failed):
                    report(outcome, left)
        if not summary.extracted and not summary.skipped:
            shards.remove()
        _check_some(summary)
        shards.join()
    place = {photo.name: i for i, photo in enumerate(photos)}
    summary.extracted.sort(key=lambda outcome: place[outcome.name])
    summary.failed.sort(key=lambda outcome: place[outcome.name])
    summary.skipped.sort(key=place.__getitem__)
    return summary


def _extract_shard(job: _Job, shard: tuple[Path, list[FoundImage]]) -> Summary:
    """Extract some of the photos, in a process of a cluster."""
    path, photos = shard
    job.model.to(job.device)
    with FeatureWriter(path, job.provenance) as sink:
        return _extract(job, photos, sink, None)


def _extract(
    job: _Job,
    photos: Sequence[FoundImage],
    sink: _Sink,
    report: Callable[[Outcome, int], None] | None,
) -> Summary:
    done = sink.done()
    summary = Summary([], [], [photo.name for photo in photos if photo.name in done])
    todo = [photo for photo in photos if photo.name not in done]
    with closing(_read_ahead(todo, job.settings, job.masks)) as reading:
        for left, (photo, prepared) in zip(reversed(range(len(todo))), reading, strict=True):
            outcome = _extract_one(job, photo, prepared, sink)
            (summary.failed if outcome.error else summary.extracted).append(outcome)
            if report is not None:
                report(outcome, left)
    return summary


def _check_some(summary: Summary) -> None:
    if not summary.extracted and not summary.skipped:
        raise InputError("no photo could be extracted, so no features are written")


def _extract_one(
    job: _Job, photo: FoundImage, prepared: Future[PreparedPhoto], sink: _Sink
) -> Outcome:
    try:
        ready = prepared.result()
    except (ImageError, InputError) as error:
        return Outcome(photo.name, error=str(error))
    features = job.model.extract_prepared([ready])[0].to("cpu")
    try:
        sink.add(photo.name, features.half() if job.half else features)
    except InputError as error:  # a name that the output cannot hold
        return Outcome(photo.name, error=str(error))
    return Outcome(photo.name, len(features))


def _read_ahead(
    photos: Iterable[FoundImage], settings: ExtractionSettings, masks: dict[str, Path]
) -> Generator[tuple[FoundImage, Future[PreparedPhoto]], None, None]:
    """Photos in order, each with its pixels in the making."""
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
    """The masks by the photos' names."""
    if not folder.is_dir():
        raise InputError(f"there is no folder of masks {os.fspath(folder)!r}")
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
    return found


class _Sink(Protocol):
    """Where features go."""

    def done(self) -> Set[str]: ...

    def add(self, name: str, features: Features) -> None: ...


def _open_output(
    output: str | os.PathLike[str] | None,
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


def _one_file(output: str | os.PathLike[str] | None) -> Path:
    if output is None:
        raise InputError("h5 features go into one file: say which with an output path")
    if Path(output).is_dir():
        raise InputError(
            f"{os.fspath(output)} is a folder; h5 features go into one file, such as "
            f"{Path(output, 'features.h5')}"
        )
    return Path(output)


class _ReleaseFiles:
    """Files `NAME.d2-net`, below a folder or beside the photos.

    The folder that the names are relative to remembers in `d2net.json` how its files were made, as
    an HDF5 file does. Of photos that lie in several such folders, each one does.
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
        self._stack = ExitStack()

    def __enter__(self) -> _ReleaseFiles:
        if self._folder is not None:
            with output_errors(self._folder):
                self._folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            for root in sorted(set(self._roots.values())):
                stack.enter_context(locked(_record(root)))
                self._check_record(root)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def done(self) -> Set[str]:
        return {name for name in self._roots if self._path(name).exists()}

    def add(self, name: str, features: Features) -> None:
        path, record = self._path(name), _record(self._roots[name])
        if not record.exists():
            with replacing(record, lock=False) as temporary:
                temporary.write_text(json.dumps(self._provenance, indent=2) + "\n")
        with output_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        release.write_release(path, features, self._format)

    def _path(self, name: str) -> Path:
        return self._roots[name] / f"{name}.d2-net"

    def _check_record(self, root: Path) -> None:
        record = _record(root)
        try:
            found = json.loads(record.read_text()) if record.exists() else self._provenance
        except (OSError, ValueError) as error:
            raise FormatError(f"{record} is damaged or cannot be read: {error}") from error
        if found != self._provenance:
            raise OutputError(
                f"the .d2-net files in {root} were made with other settings, which {record.name} "
                "there tells; use those, delete both, or choose another output"
            )


def _root(photo: FoundImage) -> Path:
    """The folder that a photo's name is relative to."""
    parents = photo.path.absolute().parents
    return parents[min(photo.name.count("/"), len(parents) - 1)]


def _record(root: Path) -> Path:
    return root / "d2net.json"
