"""Photos of every kind, written here with known values, and damaged ones."""

import io
import os
import socket
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from d2net.errors import ImageError, InputError
from d2net.io.images import read_image

GRAF = Path(__file__).parent.parent / "data" / "graf1.jpg"
ORIENTATION = 0x0112


@pytest.fixture
def rgb():
    return np.random.default_rng(7).integers(0, 256, (11, 17, 3), dtype=np.uint8)


@pytest.fixture
def deep():
    """16 bits, three channels."""
    return np.random.default_rng(8).integers(0, 65536, (11, 17, 3), dtype=np.uint16)


def png_bytes(samples, bits=16, chunks=b""):
    """A PNG of 8 or 16 bits and 1 (grey), 2 (grey, alpha), 3 or 4 channels."""
    height, width = samples.shape[:2]
    colour = {1: 0, 2: 4, 3: 2, 4: 6}[samples.shape[2] if samples.ndim == 3 else 1]
    rows = b"".join(b"\0" + row.astype(f">u{bits // 8}").tobytes() for row in samples)
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", header)
        + png_chunk(b"IDAT", zlib.compress(rows))
        + chunks
        + png_chunk(b"IEND", b"")
    )


def png_chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def tiff_bytes(samples, *, order="<", data=None, **tags):
    """An uncompressed TIFF. `tags` are numbers by name (t274=6) on top of what samples need."""
    height, width = samples.shape[:2]
    channels = samples.shape[2] if samples.ndim == 3 else 1
    if data is None:
        data = samples.astype(samples.dtype.newbyteorder(order)).tobytes()
    entries = {
        256: width,
        257: height,
        258: (samples.dtype.itemsize * 8,) * channels,
        259: 1,
        262: 2 if channels > 2 else 1,
        273: 1024,
        277: channels,
        278: height,
        279: len(data),
        339: ({"u": 1, "i": 2, "f": 3}[samples.dtype.kind],) * channels,
    } | {int(name[1:]): value for name, value in tags.items()}
    directory, beyond = struct.pack(order + "H", len(entries)), b""
    for tag, value in sorted(entries.items()):
        values = value if isinstance(value, tuple) else (value,)
        kind, code = (4, "I") if tag in (256, 257, 273, 278, 279) else (3, "H")
        packed = struct.pack(order + code * len(values), *values)
        if len(packed) > 4:
            place = 8 + 2 + 12 * len(entries) + 4 + len(beyond)
            beyond += packed
            packed = struct.pack(order + "I", place)
        directory += struct.pack(order + "HHI", tag, kind, len(values)) + packed.ljust(4, b"\0")
    magic = b"II*\0" if order == "<" else b"MM\0*"
    head = magic + struct.pack(order + "I", 8) + directory + bytes(4) + beyond
    return head.ljust(1024, b"\0") + data


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def read_bytes(tmp_path, data, name="photo.bin", **options):
    path = tmp_path / name
    path.write_bytes(data)
    return read_image(path, **options)


# --- Kinds of photos -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("PNG", {}),
        ("PPM", {}),
        ("BMP", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("TIFF", {"compression": "tiff_adobe_deflate", "big_tiff": True}),
        ("WEBP", {"lossless": True}),
    ],
)
def test_lossless_8_bit_files_keep_every_value(tmp_path, rgb, kind, options):
    pixels = read_bytes(tmp_path, encoded(Image.fromarray(rgb), kind, **options))
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    assert pixels.flags.writeable
    np.testing.assert_array_equal(pixels, rgb)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "MPO"])
def test_lossy_files_come_close(tmp_path, kind):
    photo = Image.open(GRAF).convert("RGB").crop((0, 0, 160, 96))
    more = {"save_all": True, "append_images": [photo.rotate(90)]} if kind == "MPO" else {}
    pixels = read_bytes(tmp_path, encoded(photo, kind, quality=95, **more))
    assert pixels.shape == (96, 160, 3)
    assert np.abs(pixels.astype(float) - np.asarray(photo)).mean() < 4


@pytest.mark.parametrize("kind", ["PNG", "PPM", "TIFF", "GIF"])
def test_grey_becomes_three_equal_channels(tmp_path, rgb, kind):
    grey = rgb[:, :, 0]
    pixels = read_bytes(tmp_path, encoded(Image.fromarray(grey), kind))
    np.testing.assert_array_equal(pixels, np.stack([grey] * 3, axis=2))


@pytest.mark.parametrize("kind", ["PNG", "PPM", "TIFF"])
def test_one_bit_becomes_black_and_white(tmp_path, rgb, kind):
    bits = rgb[:, :, 0] > 127
    pixels = read_bytes(tmp_path, encoded(Image.fromarray(bits), kind))
    np.testing.assert_array_equal(pixels[:, :, 1], bits * 255)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_alpha_is_dropped_and_the_colour_below_it_kept(tmp_path, rgb, kind):
    alpha = rgb[:, :, 0].copy()
    alpha[:5] = 0
    rgba = Image.fromarray(np.dstack([rgb, alpha]))
    np.testing.assert_array_equal(read_bytes(tmp_path, encoded(rgba, kind)), rgb)
    grey = Image.fromarray(np.dstack([rgb[:, :, 1], alpha]), "LA")
    np.testing.assert_array_equal(
        read_bytes(tmp_path, encoded(grey, kind)), np.stack([rgb[:, :, 1]] * 3, axis=2)
    )


@pytest.mark.parametrize("transparency", [None, 3, bytes([0, 128, 255, 7])])
@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_palette_gives_its_colours_also_where_transparent(tmp_path, kind, transparency):
    colours = np.array([[0, 0, 0], [255, 0, 10], [20, 30, 40], [1, 2, 250]], np.uint8)
    index = np.random.default_rng(0).integers(0, 4, (9, 8), dtype=np.uint8)
    image = Image.fromarray(index, "P")
    image.putpalette(colours.tobytes())
    if isinstance(transparency, bytes) and kind == "GIF":
        transparency = 1
    options = {} if transparency is None else {"transparency": transparency}
    pixels = read_bytes(tmp_path, encoded(image, kind, optimize=False, **options))
    np.testing.assert_array_equal(pixels, colours[index])


@pytest.mark.parametrize("kind", ["TIFF", "JPEG"])
def test_cmyk_becomes_rgb(tmp_path, kind):
    inks = np.zeros((16, 16, 4), np.uint8)
    inks[:, :8, 0] = 255  # cyan
    inks[:, 8:, 3] = 128  # half black
    options = {"quality": 100} if kind == "JPEG" else {}
    pixels = read_bytes(tmp_path, encoded(Image.fromarray(inks, "CMYK"), kind, **options))
    np.testing.assert_allclose(pixels[8, 2], [0, 255, 255], atol=3)
    np.testing.assert_allclose(pixels[8, 13], [127, 127, 127], atol=3)


def test_16_bit_cmyk_becomes_rgb(tmp_path):
    inks = np.zeros((4, 6, 4), np.uint16)
    inks[:, :, 0] = 65535
    assert (read_bytes(tmp_path, tiff_bytes(inks, t262=5)) == [0, 255, 255]).all()


def test_ycbcr_and_lab_tiff_become_rgb(tmp_path):
    red = Image.new("RGB", (8, 8), (200, 30, 60))
    pixels = read_bytes(tmp_path, encoded(red.convert("YCbCr"), "TIFF", compression="tiff_lzw"))
    np.testing.assert_allclose(pixels[4, 4], [200, 30, 60], atol=2)
    # L* = 53.6 and a* = b* = 0 is the grey 128 of sRGB; 53.6 % of 255 is 137.
    lab = Image.new("LAB", (8, 8), (137, 128, 128))
    np.testing.assert_allclose(read_bytes(tmp_path, encoded(lab, "TIFF"))[4, 4], 128, atol=3)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_first_of_several_frames(tmp_path, kind):
    frames = [Image.new("RGB", (12, 10), colour) for colour in ("red", "lime", "blue")]
    more = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **more)
    assert (read_bytes(tmp_path, data) == [255, 0, 0]).all()


# --- More than 8 bits ------------------------------------------------------------------------


def assert_deep(pixels, samples):
    """float32 in 0..255 that still holds each of the 65536 values."""
    assert pixels.dtype == np.float32
    truth = samples[:, :, None].repeat(3, axis=2) if samples.ndim == 2 else samples
    np.testing.assert_array_equal(np.rint(pixels.astype(np.float64) * 257), truth)
    assert pixels.max() <= 255


def test_16_bit_png_keeps_every_value(tmp_path, deep):
    deep[0, 0] = 0, 1, 65535
    alpha = deep[:, :, :1]
    assert_deep(read_bytes(tmp_path, png_bytes(deep[:, :, 0])), deep[:, :, 0])
    assert_deep(read_bytes(tmp_path, png_bytes(np.dstack([alpha, alpha]))), alpha[:, :, 0])
    assert_deep(read_bytes(tmp_path, png_bytes(deep)), deep)
    assert_deep(read_bytes(tmp_path, png_bytes(np.dstack([deep, alpha]))), deep)


@pytest.mark.parametrize("order", ["<", ">"])
def test_16_bit_tiff_keeps_every_value(tmp_path, deep, order):
    assert_deep(read_bytes(tmp_path, tiff_bytes(deep[:, :, 0], order=order)), deep[:, :, 0])
    assert_deep(read_bytes(tmp_path, tiff_bytes(deep, order=order)), deep)
    rgba = np.dstack([deep, deep[:, :, :1]])
    assert_deep(read_bytes(tmp_path, tiff_bytes(rgba, order=order, t338=2)), deep)


def test_16_bit_pgm_keeps_every_value(tmp_path, deep):
    stored = deep[:, :, 0].astype(">u2").tobytes()
    assert_deep(read_bytes(tmp_path, b"P5 17 11\n65535\n" + stored), deep[:, :, 0])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("white", [1.0, 255.0, 65535.0])
def test_float_tiff_is_scaled_by_its_largest_value(tmp_path, deep, channels, white):
    unit = (deep / np.float32(65535)).astype(np.float32)[:, :, :channels]
    unit[0, 0] = 1
    stored = unit * np.float32(white)
    pixels = read_bytes(tmp_path, tiff_bytes(stored[:, :, 0] if channels == 1 else stored))
    assert pixels.dtype == np.float32
    np.testing.assert_allclose(pixels, np.broadcast_to(unit * 255, deep.shape), rtol=1e-6)


def test_64_bit_float_tiff(tmp_path, deep):
    unit = deep[:, :, 0] / 65535
    unit[0, 0] = 1
    pixels = read_bytes(tmp_path, tiff_bytes(unit))
    np.testing.assert_allclose(pixels[:, :, 2], unit * 255, rtol=1e-6)


@pytest.mark.parametrize("white", [1, 255, 65535])
@pytest.mark.parametrize("highlight", [1.0005, 3, 1000])
def test_a_few_highlights_do_not_make_a_float_tiff_dark(tmp_path, deep, white, highlight):
    stored = (deep / np.float32(65535)).astype(np.float32) * np.float32(white)
    expected = stored * (255 / white)
    stored[3, 4, 0] *= highlight
    pixels = read_bytes(tmp_path, tiff_bytes(stored))
    np.testing.assert_allclose(pixels, expected.clip(0, 255), rtol=1e-4, atol=255)
    assert np.median(abs(pixels - expected)) < 1e-3
    assert pixels.max() <= 255


@pytest.mark.parametrize("bad", [np.nan, np.inf, -0.5, 70000.0])
def test_float_tiff_without_meaning_is_refused(tmp_path, bad):
    samples = np.full((4, 5), 0.5, np.float32)
    samples[1, 2] = bad
    with pytest.raises(ImageError, match=r"photo\.bin.*has (NaN|values from)"):
        read_bytes(tmp_path, tiff_bytes(samples))


def test_signed_tiff_with_negative_values_is_refused(tmp_path):
    with pytest.raises(ImageError, match="has values from -5 to 7"):
        read_bytes(tmp_path, tiff_bytes(np.array([[-5, 7]], np.int16)))


def test_signed_bytes_with_negative_values_are_refused(tmp_path):
    with pytest.raises(ImageError, match="has values from -5 to 7"):
        read_bytes(tmp_path, tiff_bytes(np.array([[-5, 7]], np.int8)))


@pytest.mark.parametrize("compression", [34712, 33003, 33005, 50002])
def test_compressions_that_opencv_reads_as_black_are_refused(tmp_path, rgb, compression):
    """JPEG 2000 of microscopes, and JPEG XL."""
    with pytest.raises(ImageError, match="compression is not supported"):
        read_bytes(tmp_path, tiff_bytes(rgb, t259=compression))


def test_deep_colours_in_separate_planes_are_refused(tmp_path, deep):
    with pytest.raises(ImageError, match="separate planes"):
        read_bytes(tmp_path, tiff_bytes(deep, t284=2))


def test_preview_of_a_raw_photo_is_refused(tmp_path, rgb):
    with pytest.raises(ImageError, match="raw photo"):
        read_bytes(tmp_path, tiff_bytes(rgb, t254=1))


def test_geotiff_prints_nothing(tmp_path, deep, capfd):
    """33550 is the pixel scale of an orthophoto, which OpenCV would warn of."""
    assert_deep(read_bytes(tmp_path, tiff_bytes(deep, t33550=1)), deep)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I"])
def test_pillow_images_of_16_bits(deep, mode):
    kind = {"I;16": "<u2", "I;16B": ">u2", "I": "<i4"}[mode]
    image = Image.frombytes(mode, (17, 11), deep[:, :, 0].astype(kind).tobytes())
    assert_deep(read_image(image), deep[:, :, 0])


@pytest.mark.parametrize("mode", ["RGBa", "La", "PA", "HSV", "RGBX", "CMYK", "YCbCr", "LAB"])
def test_pillow_images_of_every_mode(mode):
    if mode == "LAB":
        image = Image.new("LAB", (5, 4), (110, 128, 128))
    else:
        image = Image.new("RGB", (5, 4), (102, 102, 102))  # a colour of pillow's web palette
        for step in [*{"RGBa": ["RGBA"], "La": ["LA"]}.get(mode, []), mode]:
            image = image.convert(step)
    np.testing.assert_allclose(read_image(image), 102, atol=2)


# --- Orientation -----------------------------------------------------------------------------

# EXIF 2.3, tag 274: where the stored row 0 and column 0 are to be seen.
SIDES = {
    1: ("top", "left"),
    2: ("top", "right"),
    3: ("bottom", "right"),
    4: ("bottom", "left"),
    5: ("left", "top"),
    6: ("right", "top"),
    7: ("right", "bottom"),
    8: ("left", "bottom"),
}
SIDE = {
    "top": np.s_[0, :],
    "bottom": np.s_[-1, :],
    "left": np.s_[:, 0],
    "right": np.s_[:, -1],
}


def marked():
    """Row 0 red, column 0 blue, their corner black; 32 x 48 so that blocks of JPEG fit."""
    image = np.full((32, 48, 3), 128, np.uint8)
    image[:8] = 255, 0, 0
    image[:, :8] = 0, 0, 255
    image[:8, :8] = 0
    return image


def oriented(kind, orientation):
    image = Image.fromarray(marked())
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    if kind == "TIFF 16":
        return tiff_bytes(marked().astype(np.uint16) * 257, t274=orientation)
    if kind == "TIFF float":
        return tiff_bytes(marked().astype(np.float32) / 255, t274=orientation)
    if kind.startswith("PNG after"):
        chunk = png_chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0"))
        if kind == "PNG after 16":
            return png_bytes(marked().astype(np.uint16) * 257, chunks=chunk)
        return png_bytes(marked(), bits=8, chunks=chunk)
    options = {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"lossless": True}}
    return encoded(image, kind, exif=exif.tobytes(), **options.get(kind, {}))


KINDS = ["JPEG", "PNG", "PNG after 8", "PNG after 16", "WEBP", "TIFF", "TIFF 16", "TIFF float"]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", KINDS)
def test_exif_orientation(tmp_path, kind, orientation):
    data = oriented(kind, orientation)
    upright = read_bytes(tmp_path, data).astype(float)
    row, column = SIDES[orientation]
    assert upright.shape == ((32, 48, 3) if orientation < 5 else (48, 32, 3))
    np.testing.assert_allclose(np.median(upright[SIDE[row]], axis=0), [255, 0, 0], atol=12)
    np.testing.assert_allclose(np.median(upright[SIDE[column]], axis=0), [0, 0, 255], atol=12)
    stored = read_bytes(tmp_path, data, upright=False).astype(float)
    np.testing.assert_allclose(stored, marked(), atol=40 if kind == "JPEG" else 0.01)


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_orientation_of_an_opened_pillow_image(kind):
    image = Image.open(io.BytesIO(oriented(kind, 6)))
    assert read_image(image).shape == (48, 32, 3)
    assert read_image(image).shape == (48, 32, 3)  # a second time, now that pillow has loaded it
    fresh = Image.open(io.BytesIO(oriented(kind, 6)))
    assert read_image(fresh, upright=False).shape == (32, 48, 3)


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_meaningless_orientation_is_ignored(tmp_path, orientation):
    assert read_bytes(tmp_path, oriented("JPEG", orientation)).shape == (32, 48, 3)


def test_damaged_exif_does_not_hide_the_photo(tmp_path, rgb):
    for exif in (b"Exif\0\0garbage", b"Exif\0\0II*\0\x08\0\0\0\xff\xff", b"Exif\0\0MM\0*"):
        data = encoded(Image.fromarray(rgb), "WEBP", lossless=True, exif=exif)
        np.testing.assert_array_equal(read_bytes(tmp_path, data), rgb)


# --- What cannot be read ---------------------------------------------------------------------


@pytest.mark.parametrize("name", ["plain.png", "with space.png", "überall 写真.png", "a\nb.png"])
def test_any_file_name(tmp_path, rgb, name):
    np.testing.assert_array_equal(
        read_bytes(tmp_path, encoded(Image.fromarray(rgb), "PNG"), name), rgb
    )
    np.testing.assert_array_equal(read_image(str(tmp_path / name)), rgb)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "the file is empty"),
        (b"these are the names of my photos\n" * 9, "it is not a JPEG, PNG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "it is not a JPEG, PNG"),
        (b"\0\0\0\x18ftypisom\0\0\0\0mp41", "it is an AVIF or video file"),
        (b"P5 40000 30000 255\n", "it has more than 178 megapixels"),
        (b"P5 0 30 255\n", "it is not a JPEG, PNG"),
        (b"II*\0\x08\0\0\0", "the file is damaged"),
    ],
)
def test_files_that_are_no_photo(tmp_path, data, reason):
    with pytest.raises(ImageError, match=rf"^cannot read '.*photo\.bin': ({reason})"):
        read_bytes(tmp_path, data)


@pytest.mark.parametrize("source", [None, b"photo.jpg", np.zeros((5, 5), np.uint8)])
def test_what_is_neither_a_path_nor_a_pillow_image(source):
    with pytest.raises(InputError, match="must be given as a path or a pillow image"):
        read_image(source)


def test_missing_folder_and_odd_paths(tmp_path):
    cases = {
        tmp_path / "none.jpg": "there is no such file",
        tmp_path: "not a regular file",
        tmp_path / ("x" * 400): "name too long",
        str(tmp_path / "a\0b.jpg"): "null",
    }
    (tmp_path / "file.jpg").write_bytes(b"x")
    cases[tmp_path / "file.jpg" / "inside.jpg"] = "Not a directory|no such file"
    for path, reason in cases.items():
        with pytest.raises(ImageError, match=f"(?i)^cannot read .*: .*({reason})"):
            read_image(path)


@pytest.mark.skipif(sys.platform == "win32", reason="no such special files on Windows")
def test_pipes_and_sockets_do_not_block(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe.jpg")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.jpg")
        for name in ("pipe.jpg", "socket.jpg"):
            with pytest.raises(ImageError, match="not a regular file"):
                read_image(name)


def test_no_permission(tmp_path, monkeypatch):
    def refuse(*_arguments, **_options):
        raise PermissionError(13, "Permission denied")

    (tmp_path / "photo.jpg").write_bytes(b"x")
    monkeypatch.setattr(Path, "open", refuse)  # chmod does not stop the superuser
    with pytest.raises(ImageError, match=r"photo\.jpg': Permission denied"):
        read_image(tmp_path / "photo.jpg")


SMALL = {
    "JPEG": {"quality": 90},
    "MPO": {"save_all": True, "append_images": [Image.new("RGB", (40, 30))]},
    "PNG": {},
    "GIF": {},
    "TIFF": {},
    "TIFF lzw": {"compression": "tiff_lzw"},
    "WEBP": {},
    "WEBP lossless": {"lossless": True},
    "PPM": {},
    "BMP": {},
}


def small_files():
    photo = Image.open(GRAF).convert("RGB").resize((40, 30))
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    exif[0x010F] = "maker"
    for name, options in SMALL.items():
        kind = name.split()[0]
        more = {} if kind in ("GIF", "PPM", "BMP") else {"exif": exif.tobytes()}
        yield name, encoded(photo, kind, **options, **more)
    frames = [Image.new("RGB", (40, 30), c) for c in ("red", "blue")]
    yield "APNG", encoded(frames[0], "PNG", save_all=True, append_images=frames[1:])
    yield "P PNG", encoded(photo.quantize(9), "PNG", transparency=bytes(range(9)))
    deep = np.asarray(photo).astype(np.uint16) * 200
    yield "deep PNG", png_bytes(deep)
    yield "deep TIFF", tiff_bytes(deep, t274=6)
    yield "float TIFF", tiff_bytes((deep / 65535).astype(np.float32))
    yield "deep PPM", b"P6 40 30 65000\n" + deep.astype(">u2").tobytes()
    yield "plain PPM", b"P3 2 2 255\n" + b"1 2 3 " * 4


FILES = dict(small_files())


@pytest.mark.parametrize(
    "name", sorted(FILES.keys() - {"MPO", "APNG"})
)  # their first frames are whole
def test_truncated_files_are_errors(tmp_path, name):
    data = FILES[name]
    assert read_bytes(tmp_path, data).ndim == 3
    for share in (0.1, 0.5, 0.8):
        with pytest.raises(ImageError, match=r"^cannot read '.*photo\.bin': [^\n]+$"):
            read_bytes(tmp_path, data[: int(len(data) * share)])


@pytest.mark.parametrize("name", FILES)
def test_fuzzed_files_give_an_image_or_an_image_error(tmp_path, name):
    data = FILES[name]
    random = np.random.default_rng(zlib.crc32(name.encode()))
    for _ in range(80):
        damaged = np.frombuffer(data, np.uint8).copy()
        # The first bytes, where the structure is, as often as all of them together.
        reach = len(damaged) if random.random() < 0.5 else min(len(damaged), 200)
        where = random.integers(0, reach, random.integers(1, 12))
        damaged[where] = random.integers(0, 256, len(where))
        if random.random() < 0.2:
            damaged = damaged[: random.integers(1, len(damaged))]
        try:
            pixels = read_bytes(tmp_path, damaged.tobytes())
            assert pixels.ndim == 3
            assert pixels.shape[2] == 3
            assert pixels.size > 0
            assert np.isfinite(pixels).all()
        except ImageError as error:
            assert str(error).startswith("cannot read ")
            assert "\n" not in str(error)


# --- Files that pillow refuses although all pixels are there ---------------------------------


def png_with(rgb, chunk):
    plain = encoded(Image.fromarray(rgb), "PNG")
    end_of_header = 8 + 25
    return plain[:end_of_header] + chunk + plain[end_of_header:]


def test_png_with_long_text_large_profile_or_bad_checksum_of_text(tmp_path, rgb):
    text = png_chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"x" * 3_000_000))
    profile = png_chunk(b"iCCP", b"p\0\0" + zlib.compress(bytes(2_000_000)))
    bad = png_chunk(b"tEXt", b"Comment\0hello")[:-1] + b"\0"
    exif = Image.Exif()
    exif[ORIENTATION] = 3
    turn = png_chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0"))
    for chunk in (text, profile, bad):
        np.testing.assert_array_equal(read_bytes(tmp_path, png_with(rgb, chunk)), rgb)
        np.testing.assert_array_equal(
            read_bytes(tmp_path, png_with(rgb, chunk + turn)), rgb[::-1, ::-1]
        )


@pytest.mark.parametrize("progressive", [False, True])
def test_jpeg_without_end_marker_is_read_but_not_without_pixels(tmp_path, progressive):
    whole = encoded(Image.open(GRAF), "JPEG", progressive=progressive)
    pixels = read_bytes(tmp_path, whole[:-2])
    np.testing.assert_array_equal(pixels, read_bytes(tmp_path, whole))
    for num_missing in (3, 5, 50, 5000):
        with pytest.raises(ImageError, match="damaged"):
            read_bytes(tmp_path, whole[:-num_missing])


def test_heic_names_the_package_or_is_read(tmp_path):
    try:
        import pillow_heif
    except ImportError:
        with pytest.raises(ImageError, match=r"pip install 'd2net\[heic\]'"):
            read_bytes(tmp_path, b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
        return
    stored = np.full((48, 64, 3), 99, np.uint8)
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    heif = pillow_heif.from_pillow(Image.fromarray(stored))
    heif.save(tmp_path / "a.heic", exif=exif.tobytes())
    assert read_image(tmp_path / "a.heic").shape == (64, 48, 3)
