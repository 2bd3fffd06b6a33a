"""What is kept of photos that were sent, and which are refused."""

from __future__ import annotations

import io

import pytest
from PIL import Image

from d2net.errors import ImageError
from d2net.serving import photos as module
from d2net.serving.photos import Photos, SentPhoto

from .served import SIZE, photo


def test_a_photo_is_read_and_made_small_to_show() -> None:
    sent = SentPhoto.read(photo())
    assert sent.size == SIZE
    with Image.open(io.BytesIO(sent.picture)) as picture:
        assert picture.format == "JPEG"
        assert picture.size == SIZE


def test_a_photo_is_shown_as_its_exif_data_turn_it() -> None:
    buffer, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 30)).save(buffer, "JPEG", exif=exif)
    assert SentPhoto.read(buffer.getvalue()).size == (30, 40)
    assert SentPhoto.read(buffer.getvalue(), upright=False).size == (40, 30)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the file is empty"),
        (b"# a text\n", "it is not a JPEG"),
        (b"\0\0\0\x18ftypheic" + bytes(40), "HEIC|damaged"),  # without and with pillow-heif
        (photo()[:5000], "damaged"),
    ],
)
def test_other_files_are_reported(content: bytes, reason: str) -> None:
    with pytest.raises(ImageError, match=reason):
        SentPhoto.read(content)


def test_a_photo_of_too_many_pixels_is_refused_before_it_is_decoded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    buffer = io.BytesIO()
    Image.new("L", (2001, 1000)).save(buffer, "PNG")
    monkeypatch.setattr(module, "MAX_PIXELS", 2_000_000)
    monkeypatch.setattr(Image.Image, "load", None)  # calling it would fail
    with pytest.raises(ImageError, match="more than 2 megapixels"):
        SentPhoto.read(buffer.getvalue())


def test_a_photo_is_had_by_its_key_until_it_is_forgotten() -> None:
    photos, first, second = Photos(), *(SentPhoto.read(photo()) for _ in range(2))
    for sent in (first, second):
        photos.add(sent)
    assert photos.get(first.key) is first
    assert photos.get("another") is None
    photos.forget(first.key)
    photos.forget(first.key)
    assert photos.get(first.key) is None
    assert photos.get(second.key) is second


def test_the_longest_unused_gives_way() -> None:
    sent = [SentPhoto.read(photo(left)) for left in (0, 50, 100)]
    photos = Photos(max_memory=int(2.5 * sent[0].num_bytes))
    for one in sent[:2]:
        photos.add(one)
    photos.get(sent[0].key)
    photos.add(sent[2])
    assert [photos.get(one.key) is one for one in sent] == [True, False, True]
    photos = Photos(max_memory=1)
    photos.add(sent[0])
    assert photos.get(sent[0].key) is sent[0]
