"""Many photos: what is stored, bad files, masks, reading ahead, and runs that are cut off."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import threading
import unicodedata
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import loadmat

from d2net import D2Net
from d2net.errors import FormatError, InputError, OutputBusyError, OutputError
from d2net.extraction import folder
from d2net.extraction.d2net import PreparedPhoto, prepare
from d2net.extraction.folder import Format, extract_folder
from d2net.features import Features
from d2net.io.h5 import FeatureFile
from d2net.io.image_lists import FoundImage, find_images
from d2net.io.resume import WorkRecord

from ..io.samples import assert_same_features
from ..io.workers import watched
from ..tiny import SIZE, make_tiny_model, write_photos
from . import workers

NAMES = ("a.png", "day 1/ü b.png", "new\nline.png", "z.png")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return write_photos(tmp_path / "photos", *NAMES)


def run(model: D2Net, photos: Path, output: Path, **arguments: Any) -> folder.Summary:
    return extract_folder(model, find_images([photos]), output, **arguments)


def release_files(root: Path) -> dict[str, object]:
    """What a run has left below a folder; of the record, whose times differ, the photos."""
    files = {f.relative_to(root).as_posix(): f.read_bytes() for f in root.rglob("*.d2-net")}
    return {**files, "d2net.json": sorted(json.loads((root / "d2net.json").read_text())["done"])}


# --- What is stored --------------------------------------------------------------------------


def test_h5_holds_what_extract_gives(tiny_model: D2Net, photos: Path, tmp_path: Path) -> None:
    summary = run(tiny_model, photos, tmp_path / "f.h5", max_keypoints=50)
    with FeatureFile(tmp_path / "f.h5") as file:
        assert tuple(file) == tuple(sorted(NAMES))
        for name, num_keypoints in summary.extracted.items():
            expected = tiny_model.extract(photos / name, max_keypoints=50)
            assert 0 < len(expected) == num_keypoints
            assert_same_features(file[name], expected)
        assert file.settings is not None
        assert file.settings["extraction"]["max_keypoints"] == 50
    assert list(summary.extracted) == sorted(NAMES)
    assert summary.failed == {}
    assert summary.skipped == []


def test_features_of_a_photo_that_was_damaged_since_are_mentioned(
    tiny_model: D2Net, photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run(tiny_model, photos, tmp_path / "f.h5")
    (photos / "a.png").write_bytes((photos / "a.png").read_bytes()[:60])
    assert list(run(tiny_model, photos, tmp_path / "f.h5").failed) == ["a.png"]
    kept = f"{tmp_path}/f.h5 keeps the old features of a.png, which cannot be read"
    assert caplog.messages[-1] == kept


def test_half_is_for_descriptors_alone(tiny_model: D2Net, photos: Path, tmp_path: Path) -> None:
    run(tiny_model, photos, tmp_path / "f.h5", half=True)
    with FeatureFile(tmp_path / "f.h5") as file:
        half, full = file["a.png"], tiny_model.extract(photos / "a.png")
    assert_same_features(half, full.half())
    assert half.descriptors.dtype == torch.float16
    assert half.keypoints.dtype == torch.float32


@pytest.mark.parametrize("format", ["npz", "mat"])
@pytest.mark.parametrize("beside", [False, True], ids=["in a folder", "beside the photos"])
def test_the_releases_files(
    tiny_model: D2Net, photos: Path, tmp_path: Path, format: Format, beside: bool
) -> None:
    root = photos if beside else tmp_path / "new" / "features"
    run(tiny_model, photos, root, format=format)
    assert {name for name in release_files(root) if name.endswith(".d2-net")} == {
        f"{name}.d2-net" for name in NAMES
    }
    for name in NAMES:
        path = root / f"{name}.d2-net"
        found = dict(np.load(path)) if format == "npz" else loadmat(str(path), appendmat=False)
        expected = tiny_model.extract(photos / name)
        assert len(found["keypoints"]) > 0
        np.testing.assert_array_equal(found["keypoints"][:, :2], expected.keypoints)
        np.testing.assert_array_equal(found["keypoints"][:, 2], expected.scales)
        np.testing.assert_array_equal(found["descriptors"], expected.descriptors)
    settings = json.loads((root / "d2net.json").read_text())["settings"]
    assert settings["format"] == format
    assert settings["extraction"] == tiny_model.settings.to_dict()


@pytest.mark.parametrize(
    ("size", "colour"),
    [((1, 1), 90), ((1, 5000), 90), ((20000, 40), 0), (SIZE, 0), ((7, 7), 200)],
    ids=["1 x 1", "1 x 5000", "20000 x 40 black", "black", "7 x 7"],
)
def test_photos_without_keypoints_are_ordinary(
    tiny_model: D2Net, tmp_path: Path, size: tuple[int, int], colour: int
) -> None:
    (tmp_path / "photos").mkdir()
    Image.new("RGB", size, (colour,) * 3).save(tmp_path / "photos" / "a.png")
    summary = run(tiny_model, tmp_path / "photos", tmp_path / "f.h5")
    assert summary.extracted == {"a.png": 0}
    with FeatureFile(tmp_path / "f.h5") as file:
        assert len(file["a.png"]) == 0
        assert file["a.png"].image_size == size


# --- Bad input -------------------------------------------------------------------------------


def test_a_bad_file_does_not_stop_the_others(
    tiny_model: D2Net, photos: Path, tmp_path: Path
) -> None:
    (photos / "broken.png").write_bytes((photos / "a.png").read_bytes()[:500])
    (photos / "text.jpg").write_text("no photo")
    listed = [*find_images([photos]), FoundImage(photos / "none.jpg", "none.jpg")]
    calls: list[tuple[str, int, int | None]] = []
    summary = extract_folder(
        tiny_model, listed, tmp_path / "f.h5", progress=lambda *call: calls.append(call)
    )
    assert set(summary.extracted) == set(NAMES)
    assert set(summary.failed) == {"broken.png", "text.jpg", "none.jpg"}
    for name, reason in summary.failed.items():
        assert name in reason
    assert calls[1] == ("extracting", 0, 7)
    assert calls[2:] == [(f"extracting: {p.name}", i + 1, 7) for i, p in enumerate(listed)]
    with FeatureFile(tmp_path / "f.h5") as file:
        assert set(file) == set(NAMES)


@pytest.mark.skipif(sys.platform != "linux", reason="file names are bytes on Linux alone")
def test_a_name_that_h5_cannot_hold_fails_alone(
    tiny_model: D2Net, photos: Path, tmp_path: Path
) -> None:
    odd = os.fsdecode(b"caf\xe9.png")
    (photos / "a.png").rename(photos / odd)
    summary = run(tiny_model, photos, tmp_path / "f.h5")
    assert list(summary.failed) == [odd]
    assert "rename" in summary.failed[odd]
    assert len(summary.extracted) == len(NAMES) - 1


def test_a_name_that_is_too_long_for_a_file_fails_alone(tiny_model: D2Net, tmp_path: Path) -> None:
    long = "x" * 250 + ".png"  # no room for .d2-net
    photos = write_photos(tmp_path / "photos", "a.png", long)
    summary = run(tiny_model, photos, tmp_path / "f", format="npz")
    assert list(summary.extracted) == ["a.png"]
    assert "is too long; shorten it" in summary.failed[long]
    assert set(release_files(tmp_path / "f")) == {"a.png.d2-net", "d2net.json"}


def test_a_name_that_is_too_long_for_a_mask_is_not_masked(
    tiny_model: D2Net, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    long = "x" * 251 + ".png"
    photos = write_photos(tmp_path / "photos", "a.jpg", long)
    write_photos(tmp_path / "masks", "a.png")
    summary = run(tiny_model, photos, tmp_path / "f.h5", masks=tmp_path / "masks")
    assert set(summary.extracted) == {"a.jpg", long}
    assert "1 of 2 photos have no mask" in caplog.text


def test_nothing_is_written_when_no_photo_can_be_read(tiny_model: D2Net, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "text.jpg").write_text("no photo")
    for format, output in (("h5", tmp_path / "f.h5"), ("npz", tmp_path / "photos")):
        with pytest.raises(InputError, match="no photo could be extracted"):
            run(tiny_model, tmp_path / "photos", output, format=format)
    assert {path.name for path in tmp_path.rglob("*")} == {"photos", "text.jpg"}


def test_what_is_wrong_with_all_photos_stops_the_run(
    tiny_model: D2Net, photos: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="float16 needs a GPU"):
        run(tiny_model, photos, tmp_path / "f.h5", precision="float16")
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("read")]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"output": "."}, "one file"),
        ({"format": "csv"}, "must be h5, npz or mat"),
        ({"format": "npz", "half": True}, "half precision is for h5"),
        ({"masks": "no such folder"}, "no mask of these photos"),
        ({"colour": True}, "unknown setting 'colour'"),
    ],
)
def test_wrong_arguments(
    tiny_model: D2Net, photos: Path, tmp_path: Path, arguments: dict[str, Any], message: str
) -> None:
    output = arguments.pop("output", tmp_path / "f.h5")
    with pytest.raises(InputError, match=message):
        run(tiny_model, photos, output, **arguments)


def test_no_photos(tiny_model: D2Net, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no photos"):
        run(tiny_model, tmp_path, tmp_path / "f.h5")


# --- Masks -----------------------------------------------------------------------------------


def left_half(size: tuple[int, int] = SIZE) -> Image.Image:
    mask = np.zeros(size[::-1], np.uint8)
    mask[:, : size[0] // 2] = 255
    return Image.fromarray(mask)


def test_photos_without_keypoints_are_counted_in_a_warning(
    tiny_model: D2Net, photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Black masks, for example."""
    (tmp_path / "masks").mkdir()
    for photo in [p for p in photos.rglob("*") if p.is_file()]:
        mask = tmp_path / "masks" / f"{photo.relative_to(photos)}.png"
        mask.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", SIZE).save(mask)
    summary = run(tiny_model, photos, tmp_path / "f.h5", masks=tmp_path / "masks")
    assert set(summary.extracted.values()) == {0}
    assert f"{len(summary.extracted)} of {len(summary.extracted)} photos have no" in caplog.text


@pytest.mark.parametrize("name", ["a.jpg.png", "a.png"])
def test_masks_bar_keypoints(tiny_model: D2Net, photos: Path, tmp_path: Path, name: str) -> None:
    (photos / "a.png").rename(photos / "a.jpg")
    (tmp_path / "masks").mkdir()
    left_half().save(tmp_path / "masks" / name)
    run(tiny_model, photos, tmp_path / "f.h5", masks=tmp_path / "masks")
    with FeatureFile(tmp_path / "f.h5") as file:
        masked, free = file["a.jpg"], file["z.png"]
        assert len(masked) > 0
        assert (masked.keypoints[:, 0] <= SIZE[0] / 2).all()
        assert (free.keypoints[:, 0] > SIZE[0] / 2).any()


def test_masks_are_found_in_another_unicode_form(
    tiny_model: D2Net, photos: Path, tmp_path: Path
) -> None:
    name = unicodedata.normalize("NFD", "ü b.png")
    assert not (photos / "day 1" / name).exists()
    (tmp_path / "masks" / "day 1").mkdir(parents=True)
    left_half().save(tmp_path / "masks" / "day 1" / name)
    run(tiny_model, photos, tmp_path / "f.h5", masks=tmp_path / "masks")
    with FeatureFile(tmp_path / "f.h5") as file:
        assert (file["day 1/ü b.png"].keypoints[:, 0] <= SIZE[0] / 2).all()


def test_a_mask_of_another_size_fails_alone(
    tiny_model: D2Net, photos: Path, tmp_path: Path
) -> None:
    (tmp_path / "masks" / "day 1").mkdir(parents=True)
    left_half((10, 10)).save(tmp_path / "masks" / "day 1" / "ü b.png")
    summary = run(tiny_model, photos, tmp_path / "f.h5", masks=tmp_path / "masks")
    assert list(summary.failed) == ["day 1/ü b.png"]
    assert "10 x 10" in summary.failed["day 1/ü b.png"]


def test_masks_of_other_photos_are_told(tiny_model: D2Net, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "masks").mkdir()
    left_half().save(tmp_path / "masks" / "other.png")
    with pytest.raises(InputError, match="no mask of these photos"):
        run(tiny_model, photos, tmp_path / "f.h5", masks=tmp_path / "masks")


def test_masks_in_a_folder_of_the_photos_are_no_photos(
    tiny_model: D2Net, photos: Path, tmp_path: Path
) -> None:
    """Even if their photos were removed."""
    (photos / "masks").mkdir()
    for name in ("a.png", "removed.jpg.png"):
        left_half().save(photos / "masks" / name)
    summary = run(tiny_model, photos, tmp_path / "f.h5", masks=photos / "masks")
    assert summary.extracted.keys() == {*NAMES}


def test_photos_without_a_mask_are_named(
    tiny_model: D2Net, photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "masks").mkdir()
    Image.new("L", SIZE, 0).save(tmp_path / "masks" / "a.png")
    run(tiny_model, photos, tmp_path / "f.h5", masks=tmp_path / "masks")
    missing, empty = caplog.messages
    assert empty.startswith("1 of 4 photos have no keypoints, such as a.png")
    assert "3 of 4 photos have no mask" in missing


@pytest.mark.parametrize("place", ["masks", "."])
def test_masks_among_the_photos_are_not_photos(
    tiny_model: D2Net, photos: Path, tmp_path: Path, place: str
) -> None:
    names = list(run(tiny_model, photos, tmp_path / "f.h5").extracted)
    for name in names:
        path = photos / place / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        left_half().save(path)
    summary = run(tiny_model, photos, tmp_path / "masked.h5", masks=photos / place)
    assert list(summary.extracted) == names
    with FeatureFile(tmp_path / "masked.h5") as file:
        assert all((file[name].keypoints[:, 0] <= SIZE[0] / 2).all() for name in names)


# --- Photos and masks that change ------------------------------------------------------------


@pytest.mark.parametrize("format", ["h5", "npz"])
def test_changed_photos_are_extracted_again(
    tiny_model: D2Net,
    photos: Path,
    tmp_path: Path,
    format: Format,
    caplog: pytest.LogCaptureFixture,
) -> None:
    run(tiny_model, photos, tmp_path / "f", format=format)
    assert not caplog.messages
    (photos / "a.png").write_bytes((photos / "z.png").read_bytes())
    summary = run(tiny_model, photos, tmp_path / "f", format=format)
    assert list(summary.extracted) == ["a.png"]
    assert "1 of 4 photos" in caplog.text
    run(tiny_model, photos, tmp_path / "new", format=format)
    if format == "h5":
        with FeatureFile(tmp_path / "f") as again, FeatureFile(tmp_path / "new") as new:
            assert_same_features(again["a.png"], new["a.png"])
    else:
        assert release_files(tmp_path / "f") == release_files(tmp_path / "new")


def test_a_damaged_file_of_the_release_s_format_is_not_passed_over(
    tiny_model: D2Net, photos: Path, tmp_path: Path
) -> None:
    run(tiny_model, photos, tmp_path / "f", format="npz")
    shutil.copytree(tmp_path / "f", tmp_path / "copy")  # without the times
    assert not run(tiny_model, photos, tmp_path / "copy", format="npz").extracted
    file = tmp_path / "f" / "a.png.d2-net"
    file.write_bytes((tmp_path / "f" / "z.png.d2-net").read_bytes())
    with pytest.raises(OutputError, match="move or delete it"):
        run(tiny_model, photos, tmp_path / "f", format="npz")
    file.unlink()
    assert list(run(tiny_model, photos, tmp_path / "f", format="npz").extracted) == ["a.png"]


@pytest.mark.parametrize("format", ["h5", "npz"])
def test_copied_photos_are_not_extracted_again(
    tiny_model: D2Net, photos: Path, tmp_path: Path, format: Format
) -> None:
    run(tiny_model, photos, tmp_path / "f", format=format)
    for copy in photos.rglob("*.png"):
        os.utime(copy, ns=(1, 1))
    summary = run(tiny_model, photos, tmp_path / "f", format=format)
    assert not summary.extracted
    assert sorted(summary.skipped) == sorted(NAMES)


def test_changed_masks_are_applied(tiny_model: D2Net, photos: Path, tmp_path: Path) -> None:
    masks = tmp_path / "masks"
    masks.mkdir()
    for name in ("a.png", "z.png"):
        Image.new("L", SIZE, 255).save(masks / name)
    run(tiny_model, photos, tmp_path / "f.h5", masks=masks)
    left_half().save(masks / "a.png")
    summary = run(tiny_model, photos, tmp_path / "f.h5", masks=masks)
    assert list(summary.extracted) == ["a.png"]
    with FeatureFile(tmp_path / "f.h5") as file:
        assert (file["a.png"].keypoints[:, 0] <= SIZE[0] / 2).all()


# --- Reading ahead ---------------------------------------------------------------------------


class Reader:
    """Stands in for `prepare`: counts, and knows which threads it ran in."""

    def __init__(self) -> None:
        self.started = 0
        self.threads: set[int] = set()
        self.second = threading.Event()

    def __call__(self, *arguments: Any) -> PreparedPhoto:
        self.started += 1
        self.threads.add(threading.get_ident())
        if self.started > 1:
            self.second.set()
        return prepare(*arguments)


@pytest.fixture
def reader(monkeypatch: pytest.MonkeyPatch) -> Reader:
    reader = Reader()
    monkeypatch.setattr(folder, "prepare", reader)
    return reader


def test_photos_are_read_while_the_network_works(
    tiny_model: D2Net,
    photos: Path,
    tmp_path: Path,
    reader: Reader,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    extract_prepared = tiny_model.extract_prepared

    def slow(batch: list[PreparedPhoto]) -> list[Features]:
        assert reader.second.wait(30), "the second photo is not read while the first is extracted"
        return extract_prepared(batch)

    monkeypatch.setattr(tiny_model, "extract_prepared", slow)
    run(tiny_model, photos, tmp_path / "f.h5")
    assert threading.get_ident() not in reader.threads


def test_only_a_few_photos_wait_in_memory(
    tiny_model: D2Net, tmp_path: Path, reader: Reader
) -> None:
    photos = write_photos(tmp_path / "photos", *(f"{i:02}.png" for i in range(12)))
    waiting = []

    def progress(stage: str, done: int, total: int | None) -> None:
        waiting.append(reader.started - done)

    run(tiny_model, photos, tmp_path / "f.h5", progress=progress)
    assert 1 <= max(waiting) <= 5


# --- Runs that are cut off -------------------------------------------------------------------


def cut_off(stage: str, done: int, total: int | None) -> None:
    if done == len(NAMES) - 1:
        raise KeyboardInterrupt


@pytest.mark.parametrize("format", ["h5", "npz", "mat"])
def test_a_run_that_was_stopped_goes_on(photos: Path, tmp_path: Path, format: Format) -> None:
    def content(output: Path) -> object:
        return output.read_bytes() if format == "h5" else release_files(output)

    whole, output = tmp_path / "whole", tmp_path / "stopped"
    run(make_tiny_model(), photos, whole, format=format)
    with pytest.raises(KeyboardInterrupt):
        run(make_tiny_model(), photos, output, format=format, progress=cut_off)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("read")]
    summary = run(make_tiny_model(), photos, output, format=format)
    assert summary.skipped == sorted(NAMES)[:-1]
    assert list(summary.extracted) == sorted(NAMES)[-1:]
    assert content(output) == content(whole)
    assert run(make_tiny_model(), photos, output, format=format).skipped == sorted(NAMES)
    assert content(output) == content(whole)


@pytest.mark.parametrize("format", ["h5", "npz", "mat"])
def test_killed_at_any_moment_and_resumed_gives_the_same_files(
    processes: ForkServerContext, photos: Path, tmp_path: Path, format: Format
) -> None:
    def content(output: Path) -> object:
        return output.read_bytes() if format == "h5" else release_files(output)

    whole = tmp_path / "whole"
    steps = watched(None, workers.extract, photos, whole, format)
    chance = random.Random(format)
    for attempt in range(2):
        output = tmp_path / f"killed {attempt}"
        kills = 0
        for _ in range(4):
            step = chance.randrange(1, steps)
            process = processes.Process(
                target=watched, args=(step, workers.extract, photos, output, format)
            )
            process.start()
            process.join(60)
            kills += process.exitcode == -signal.SIGKILL
        assert kills >= 1
        run(make_tiny_model(), photos, output, format=format)
        assert content(output) == content(whole)


@pytest.mark.parametrize("format", ["h5", "npz"])
def test_an_output_of_other_settings_is_left_alone(
    tiny_model: D2Net, photos: Path, tmp_path: Path, format: Format
) -> None:
    run(tiny_model, photos, tmp_path / "f", format=format)
    for changed in ({"multiscale": True}, {"format": "npz" if format == "h5" else "mat"}):
        with pytest.raises(OutputError):
            run(tiny_model, photos, tmp_path / "f", **{"format": format, **changed})
    assert run(tiny_model, photos, tmp_path / "f", format=format).skipped == sorted(NAMES)


def test_a_damaged_record_is_reported(tiny_model: D2Net, photos: Path) -> None:
    (photos / "d2net.json").write_text("{")
    with pytest.raises(FormatError, match=r"d2net\.json is damaged"):
        run(tiny_model, photos, photos, format="npz")


@pytest.mark.parametrize("format", ["h5", "npz"])
def test_two_processes_cannot_write_one_output(
    processes: ForkServerContext,
    tiny_model: D2Net,
    photos: Path,
    tmp_path: Path,
    format: Format,
) -> None:
    output = tmp_path / "f"
    receiver, sender = processes.Pipe(duplex=False)
    process = processes.Process(target=workers.hold, args=(photos, output, format, sender))
    process.start()
    try:
        assert receiver.poll(60)
        with pytest.raises(OutputBusyError, match="another process"):
            run(tiny_model, photos, output, format=format)
    finally:
        process.kill()
        process.join()
    assert run(tiny_model, photos, output, format=format).skipped == ["a.png"]


@pytest.mark.parametrize("content", [b"", b"not HDF5 at all", b"\x89HDF\r\n\x1a\n" + b"\0" * 99])
def test_files_of_others_are_not_overwritten(
    tiny_model: D2Net, photos: Path, tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "f.h5").write_bytes(content)
    with pytest.raises(OutputError, match=r"f\.h5"):
        run(tiny_model, photos, tmp_path / "f.h5")
    assert (tmp_path / "f.h5").read_bytes() == content


def test_more_photos_are_added_to_a_finished_file(
    tiny_model: D2Net, photos: Path, tmp_path: Path
) -> None:
    some = [photo for photo in find_images([photos]) if photo.name != "a.png"]
    extract_folder(tiny_model, some, tmp_path / "f.h5")
    run(tiny_model, photos, tmp_path / "f.h5")
    run(tiny_model, photos, tmp_path / "whole.h5")
    assert (tmp_path / "f.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()


@pytest.mark.parametrize("format", ["npz", "mat"])
def test_files_that_the_2019_release_made_are_not_replaced(
    tiny_model: D2Net,
    photos: Path,
    tmp_path: Path,
    format: Format,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    old = photos / "a.png.d2-net"
    old.write_bytes(b"of 2019")
    with pytest.raises(OutputError, match=r"a\.png\.d2-net exists"):
        run(tiny_model, photos, photos, format=format)
    assert old.read_bytes() == b"of 2019"
    assert not (photos / "d2net.json").exists()
    with monkeypatch.context() as context, pytest.raises(KeyboardInterrupt):
        context.setattr(WorkRecord, "finish", stop_after(WorkRecord.finish))
        run(tiny_model, photos, tmp_path / "f", format=format)
    assert len(run(tiny_model, photos, tmp_path / "f", format=format).extracted) == len(NAMES)


def stop_after(function: Callable[..., None]) -> Callable[..., None]:
    def stopped(*arguments: object) -> None:
        function(*arguments)
        raise KeyboardInterrupt

    return stopped
