"""Features of many photos, into one HDF5 file or into the release's files."""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol

from d2net.config import ExtractionSettings
from d2net.errors import D2NetError, ImageError, InputError, OutputError
from d2net.extraction.d2net import D2Net, PreparedPhoto, prepare
from d2net.features import Features
from d2net.formats import release
from d2net.formats.atomic import locked, output_errors, replacing
from d2net.formats.h5 import FeatureWriter
from d2net.image_lists import FoundImage

Format = Literal["h5", "npz", "mat"]

_READ_AHEAD = 4
"""Photos read and reduced while the network works; each may take some 10 MB."""


@dataclass(frozen=True)
class Outcome:
    """What became of one photo: its number of keypoints, or why there are none."""

    name: str
    num_keypoints: int | None
    error: str | None = None


@dataclass(frozen=True)
class Summary:
    """What became of all photos.

    Attributes:
        extracted: outcomes of the photos done now.
        failed: outcomes of the photos that could not be read.
        skipped: names of photos that an earlier run had done.
    """

    extracted: list[Outcome]
    failed: list[Outcome]
    skipped: list[str]


def extract_folder(
    model: D2Net,
    photos: Sequence[FoundImage],
    output: str | os.PathLike[str] | None,
    *,
    format: Format = "h5",
    masks: str | os.PathLike[str] | None = None,
    half: bool = False,
    report: Callable[[Outcome], None] | None = None,
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
        report: called after each photo.
        **settings: changes to the model's settings.

    Raises:
        OutputBusyError: another process writes this output.
        OutputError: the output cannot be written or was made with other settings.
        InputError: unknown format or setting, no such folder of masks.
    """
    chosen = model.settings.updated(**settings)
    if masks is not None and not Path(masks).is_dir():
        raise InputError(f"there is no folder of masks {os.fspath(masks)!r}")
    provenance = {**model.provenance(chosen), "half": half}
    summary = Summary([], [], [])
    with _open_output(output, photos, format, provenance) as sink:
        done = sink.done()
        summary.skipped.extend(photo.name for photo in photos if photo.name in done)
        todo = [photo for photo in photos if photo.name not in done]
        for photo, prepared in _read_ahead(todo, chosen, masks):
            outcome = _extract_one(model, photo, prepared, sink, half=half)
            (summary.failed if outcome.error else summary.extracted).append(outcome)
            if report is not None:
                report(outcome)
    return summary


def _extract_one(
    model: D2Net,
    photo: FoundImage,
    prepared: Future[PreparedPhoto],
    sink: _Sink,
    *,
    half: bool,
) -> Outcome:
    try:
        ready = prepared.result()
    except (ImageError, InputError) as error:
        return Outcome(photo.name, None, str(error))
    features = model.extract_prepared([ready])[0].to("cpu")
    sink.add(photo.name, features.half() if half else features)
    return Outcome(photo.name, len(features))


def _read_ahead(
    photos: Iterable[FoundImage],
    settings: ExtractionSettings,
    masks: str | os.PathLike[str] | None,
) -> Iterator[tuple[FoundImage, Future[PreparedPhoto]]]:
    """Photos in order, each with its pixels in the making."""
    with ThreadPoolExecutor(max_workers=2, thread_name_prefix="read") as pool:
        waiting: deque[tuple[FoundImage, Future[PreparedPhoto]]] = deque()
        try:
            for photo in photos:
                mask = None if masks is None else _mask_of(photo.name, Path(masks))
                waiting.append((photo, pool.submit(prepare, photo.path, settings, mask)))
                if len(waiting) > _READ_AHEAD:
                    yield waiting.popleft()
            while waiting:
                yield waiting.popleft()
        finally:
            for _, prepared in waiting:
                prepared.cancel()


def _mask_of(name: str, masks: Path) -> Path | None:
    candidates = (masks / f"{name}.png", masks / Path(name).with_suffix(".png"))
    return next((path for path in candidates if path.is_file()), None)


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
        if output is None:
            raise InputError("h5 features go into one file: say which with an output path")
        return FeatureWriter(Path(output), provenance)
    if format in ("npz", "mat"):
        folder = None if output is None else Path(output)
        return _ReleaseFolder(folder, photos, format, provenance)
    raise InputError(f"the format must be h5, npz or mat, not {format!r}")


class _ReleaseFolder:
    """Files `NAME.d2-net`, below a folder or beside the photos.

    A folder remembers how its files were made, as an HDF5 file does.
    """

    def __init__(
        self,
        folder: Path | None,
        photos: Sequence[FoundImage],
        format: Literal["npz", "mat"],
        provenance: dict[str, Any],
    ) -> None:
        self._folder = folder
        self._format = format
        self._provenance = {**provenance, "format": format}
        self._files = {
            photo.name: (photo.path if folder is None else folder / photo.name) for photo in photos
        }
        self._stack = ExitStack()

    def __enter__(self) -> _ReleaseFolder:
        if self._folder is None:
            return self
        with output_errors(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
        record = self._folder / "d2net.json"
        with ExitStack() as stack:
            stack.enter_context(locked(record))
            if not record.exists():
                with replacing(record) as temporary:
                    temporary.write_text(json.dumps(self._provenance, indent=2) + "\n")
            elif _read_json(record) != self._provenance:
                raise OutputError(
                    f"the files in {self._folder} were made with other settings (see {record}); "
                    "use those, delete the folder, or choose another output"
                )
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
        return {name for name in self._files if self._path(name).exists()}

    def add(self, name: str, features: Features) -> None:
        path = self._path(name)
        with output_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        release.write_release(path, features, self._format)

    def _path(self, name: str) -> Path:
        file = self._files[name]
        return file.with_name(file.name + ".d2-net")


def _read_json(path: Path) -> Any:  # noqa: ANN401 (JSON)
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise D2NetError(f"cannot read {path}: {error}") from error
