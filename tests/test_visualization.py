import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from d2net.errors import InputError, OutputError
from d2net.features import Features, Matches
from d2net.io.images import to_pixels
from d2net.mapping.picture.drawing import small_jpeg
from d2net.visualization import plot_keypoints, plot_matches, plot_points

DATA = Path(__file__).parent / "data"
GRAF1, GRAF3 = DATA / "graf1.jpg", DATA / "graf3.jpg"
GAP = 8


def features(points, size=(800, 640), scores=None, scale=1.0):
    points = torch.as_tensor(np.asarray(points), dtype=torch.float32).reshape(-1, 2)
    n = len(points)
    return Features(
        keypoints=points,
        scores=torch.ones(n) if scores is None else torch.as_tensor(scores).float(),
        scales=torch.full((n,), scale),
        descriptors=torch.ones(n, 1),
        image_size=size,
        uncertainty=torch.ones(n),
    )


def random_features(n, size=(800, 640), seed=0):
    rng = np.random.default_rng(seed)
    return features(rng.uniform([0, 0], size, (n, 2)), size, rng.uniform(size=n))


def pairs(n, inliers=None, model=None, found=True):
    indices = torch.arange(n)[:, None].repeat(1, 2)
    if inliers is None:
        return Matches(indices, torch.ones(n))
    matrix = np.eye(3) if found else None
    return Matches(indices, torch.ones(n), torch.tensor(inliers, dtype=torch.bool), model, matrix)


def photos_of(picture, height=640):
    """The part below the caption, H x W x 3."""
    return np.asarray(picture)[picture.height - height :].astype(int)


def saturation(pixels):
    return pixels.max(axis=-1) - pixels.min(axis=-1)


@pytest.fixture
def texts(monkeypatch):
    """What is written into pictures, with the place where each text ends."""
    written = []
    draw = ImageDraw.ImageDraw.text

    def record(self, xy, text, fill, font, **rest):
        written.append((text, xy[0] + font.getlength(text)))
        return draw(self, xy, text, fill, font, **rest)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", record)
    return written


@pytest.fixture
def grey():
    """A photo without colours: every colour in the picture has been drawn."""
    return np.random.default_rng(0).integers(0, 256, (640, 800), dtype=np.uint8)


def test_photos_stand_side_by_side_below_a_caption():
    picture = plot_matches(GRAF1, GRAF3, random_features(9), random_features(9), pairs(0))
    assert picture.mode == "RGB"
    assert picture.width == 800 + GAP + 800
    assert 640 + 30 < picture.height < 640 + 120
    shown = photos_of(picture)
    for photo, left in ((GRAF1, 0), (GRAF3, 800 + GAP)):
        np.testing.assert_array_equal(shown[:, left : left + 800], np.asarray(Image.open(photo)))


def test_a_photo_of_little_contrast_is_visible(grey):
    """12 bits stored in 16, as many cameras do, and a picture of their map."""
    dim = grey.astype(np.uint16) * 16
    shown = photos_of(plot_matches(dim, grey, random_features(9), random_features(9), pairs(0)))
    assert np.abs(shown[:, :800].mean(2) - shown[:, 800 + GAP :].mean(2)).max() < 4
    thumbnail = Image.open(io.BytesIO(small_jpeg(to_pixels(dim), 800, 95)))
    assert np.asarray(thumbnail).std() > grey.std() / 2


@pytest.mark.parametrize("verified", [True, False])
def test_ends_of_a_match_have_its_colour_at_their_places(grey, verified):
    a, b = features([[100, 50], [300, 600]]), features([[700, 80], [420, 570]])
    matches = pairs(2, [True, True], "homography") if verified else pairs(2)
    shown = photos_of(plot_matches(grey, grey, a, b, matches))
    ends = [
        (shown[int(y), int(x)], shown[int(v), 800 + GAP + int(u)])
        for (x, y), (u, v) in zip(a.keypoints.tolist(), b.keypoints.tolist(), strict=True)
    ]
    for first, second in ends:
        assert saturation(first) > 100
        assert np.abs(first - second).max() < 20
    assert np.abs(ends[0][0] - ends[1][0]).max() > 100  # top and bottom differ


def test_colours_show_the_confidence_if_there_is_one(grey, texts):
    a, b = features([[100, 300], [100, 305]]), features([[700, 300], [700, 305]])
    matches = replace(pairs(2), confidence=torch.tensor([0.95, 0.15]))
    shown = photos_of(plot_matches(grey, grey, a, b, matches, lines=0))
    sure, unsure = shown[300, 100], shown[305, 100]
    assert sure.sum() > unsure.sum() + 100  # bright yellow and dark violet
    assert "colour: probability that a match is right  0" in [text for text, _ in texts]


def test_a_line_joins_the_ends(grey):
    a, b = features([[100, 300]]), features([[600, 300]])
    shown = photos_of(plot_matches(grey, grey, a, b, pairs(1)))
    line = saturation(shown[300, 100 : 800 + GAP + 600])
    assert (line > 60).mean() > 0.98  # all but the dark rims of the ends
    assert saturation(shown[:290]).max() < 10


def test_outliers_are_faint_and_without_colour(grey):
    a, b = features([[100, 300]]), features([[600, 300]])
    empty = photos_of(plot_matches(grey, grey, a, b, pairs(0)))
    shown = photos_of(plot_matches(grey, grey, a, b, pairs(1, [False], "fundamental", found=False)))
    assert saturation(shown).max() < 10
    change = np.abs(shown - empty).max(axis=2)
    assert 10 < change[300].max() < 90
    assert change[:290].max() == 0


def test_caption_tells_names_counts_and_model(texts):
    a, b = random_features(1234), random_features(56)
    plot_matches(GRAF1, GRAF3, a, b, pairs(4, [True, True, True, False], "fundamental"))
    written = "\n".join(text for text, _ in texts)
    assert "graf1.jpg   1,234 keypoints" in written
    assert "graf3.jpg   56 keypoints" in written
    assert "3 inliers of 4 matches (75%), fundamental matrix" in written


@pytest.mark.parametrize(
    ("matches", "text"),
    [
        (pairs(0), "0 matches"),
        (pairs(1), "1 match"),
        (pairs(0, [], "homography", found=False), "no homography fits the 0 matches"),
        (pairs(5, [False] * 5, "essential", found=False), "no essential matrix fits the 5 matches"),
        (pairs(5, [True] * 5, "pose", found=False), "5 of 5 matches agree with the pose"),
    ],
)
def test_caption_of_little_or_nothing_found(texts, matches, text):
    plot_matches(GRAF1, GRAF3, random_features(9), random_features(9), matches)
    assert texts[-1][0] == text


def test_odd_and_long_names_leave_the_count_readable(texts, tmp_path):
    name = "line\nbreak " + "é写" * 90 + "_0042.png"
    photo = tmp_path / name.encode()[:200].decode(errors="ignore")
    Image.new("RGB", (60, 50)).save(photo, format="PNG")
    picture = plot_keypoints(photo, random_features(7, (60, 50)))
    text, end = texts[0]
    assert text.endswith("   7 keypoints")
    assert text.isascii() or text.startswith("…")
    assert end <= picture.width


def test_large_photos_are_reduced_to_the_same_height(texts):
    portrait = np.zeros((3000, 2000, 3), np.uint8)
    landscape = np.full((1500, 2500, 3), 255, np.uint8)
    a, b = features([[1000, 1500]], (2000, 3000)), features([[1250, 750]], (2500, 1500))
    picture = plot_matches(portrait, landscape, a, b, pairs(1))
    assert 1900 <= picture.width <= 2000
    # Middle to middle of photos of one height: a level line through the middle of the picture.
    height = round((2000 - GAP) / (2 / 3 + 5 / 3))
    shown = photos_of(picture, height)
    middle = saturation(shown[height // 2])
    coloured = np.flatnonzero(middle > 60)
    expected = [height * (2 / 3) / 2, height * (2 / 3 + 5 / 6) + GAP]
    np.testing.assert_allclose([coloured[0], coloured[-1]], expected, atol=6)


@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 5000), (20000, 40), (60, 50)])
def test_photos_of_odd_sizes_fit_beside_an_ordinary_one(width, height):
    strip = np.full((height, width, 3), 200, np.uint8)
    a, b = features([[width / 2, height / 2]], (width, height)), random_features(5)
    for picture in (
        plot_matches(strip, GRAF1, a, b, pairs(1)),
        plot_matches(GRAF1, strip, b, a, pairs(1)),
        plot_keypoints(strip, a, score_map=np.ones((1, 1))),
    ):
        assert 480 <= picture.width <= 2600
        assert 100 <= picture.height <= 1400


def test_thousands_of_matches_show_every_end_and_some_lines(grey, texts):
    a, b = random_features(5000), random_features(5000, seed=1)
    shown = photos_of(plot_matches(grey, grey, a, b, pairs(5000)))
    assert "lines drawn" in texts[-1][0]
    inside = a.keypoints.round().long().clamp(min=3, max=630)
    ends = saturation(shown[inside[:, 1], inside[:, 0]])
    assert (ends > 60).mean() > 0.75  # some lie below the rim of a neighbour


def test_lines_are_limited_and_inliers_come_first(grey, texts):
    a, b = random_features(60), random_features(60, seed=1)
    matches = pairs(60, [True] * 20 + [False] * 40, "fundamental")

    def changed(lines):
        none, some = (photos_of(plot_matches(grey, grey, a, b, matches, lines=n)) for n in lines)
        return np.abs(some - none).max(axis=2)

    assert changed((0, 20)).max() > 100  # coloured lines
    assert "20 lines drawn" in texts[-1][0]
    outliers = changed((20, 100))
    assert 10 < outliers.max() < 150
    assert "lines drawn" not in texts[-1][0]
    with pytest.raises(InputError, match="lines must be 0 or more, not -1"):
        plot_matches(grey, grey, a, b, matches, lines=-1)


def test_no_keypoints_at_all():
    none = features(np.zeros((0, 2)))
    assert plot_matches(GRAF1, GRAF3, none, none, pairs(0)).width == 1608
    assert plot_keypoints(GRAF1, none, score_map=np.zeros((4, 5))).width == 1608
    points = np.zeros((0, 2)), np.zeros((0, 2))
    for right in (None, np.zeros(0, bool)):
        assert plot_points((GRAF1, GRAF3), points, right).width == 1608


def test_keypoints_are_circles_of_their_scale(grey):
    small, large = features([[400, 300]], scale=1.0), features([[400, 300]], scale=4.0)
    widths = []
    for each in (small, large):
        coloured = saturation(photos_of(plot_keypoints(grey, each))) > 60
        rows, columns = np.nonzero(coloured)
        assert abs(rows.mean() - 300) < 1
        assert abs(columns.mean() - 400) < 1
        assert not coloured[300, 400]
        widths.append(np.ptp(columns))
    assert widths[1] == pytest.approx(4 * widths[0], rel=0.2)


def test_better_keypoints_are_brighter_and_the_scale_says_so(grey, texts):
    each = features([[100, 300], [400, 300], [700, 300]], scores=[10.0, 20.0, 30.0])
    shown = photos_of(plot_keypoints(grey, each))
    greens = [shown[285:316, x - 15 : x + 16, 1] for x in (100, 400, 700)]
    coloured = [saturation(shown[285:316, x - 15 : x + 16]) > 100 for x in (100, 400, 700)]
    low, middle, high = (g[c].mean() for g, c in zip(greens, coloured, strict=True))
    assert low < middle < high
    assert [text for text, _ in texts if "score" in text] == ["colour: score, radius: scale  10.2"]
    assert texts[-1][0] == "29.8"


def test_score_map_is_laid_over_the_photo_beside(grey):
    scores = np.zeros((16, 20))
    scores[12, 5] = 1  # covers x 200 .. 240, y 480 .. 520 of the photo
    scores[12, 6] = 1
    picture = plot_keypoints(grey, features(np.zeros((0, 2))), score_map=torch.from_numpy(scores))
    shown = photos_of(picture)
    heat = shown[:, 800 + GAP :]
    warm = heat[:, :, 0] - heat[:, :, 2]
    y, x = np.unravel_index(warm.argmax(), warm.shape)
    assert 190 <= x < 290
    assert 470 <= y < 530
    assert saturation(shown[:, :800]).max() < 10


def test_the_legend_of_a_narrow_photo_ends_before_that_of_its_score_map(texts):
    narrow = np.zeros((640, 480), np.uint8)
    three = features([[100, 300], [200, 300], [300, 300]], (480, 640), [0.000261, 0.1, 0.0123])
    plot_keypoints(narrow, three, score_map=np.eye(9))
    (highest,) = [end for text, end in texts if text.startswith("0.") and len(text) < 8]
    assert highest < 480 + GAP


@pytest.mark.parametrize(
    "bad", [np.zeros(5), np.zeros((2, 3, 4)), np.full((2, 2), np.nan), [], -np.ones((2, 2))]
)
def test_what_is_no_score_map_is_refused(bad):
    with pytest.raises(InputError, match="score map"):
        plot_keypoints(GRAF1, features([]), score_map=bad)


@pytest.mark.parametrize("extension", ["png", "jpg", "JPEG"])
def test_written_file_is_the_picture(tmp_path, extension):
    output = tmp_path / f"matches.{extension}"
    output.touch()
    a = random_features(20)
    picture = plot_matches(GRAF1, GRAF3, a, a, pairs(20), output=output)
    with Image.open(output) as written:
        assert written.format == ("PNG" if extension == "png" else "JPEG")
        difference = np.abs(np.asarray(written).astype(int) - np.asarray(picture))
    assert difference.mean() < (0.001 if extension == "png" else 6)
    assert list(tmp_path.iterdir()) == [output]


@pytest.mark.parametrize("name", ["matches", "matches.gif", "matches.png.tmp"])
def test_unknown_extensions_are_told_before_the_work(tmp_path, name):
    with pytest.raises(InputError, match=r"\.png, \.jpg, \.jpeg"):
        plot_keypoints("missing.jpg", features([]), output=tmp_path / name)


def test_missing_folder_is_told(tmp_path):
    with pytest.raises(OutputError, match="does not exist"):
        plot_keypoints(GRAF1, features([]), output=tmp_path / "missing" / "a.png")


def test_photo_of_another_size_is_refused():
    with pytest.raises(InputError, match=r"800 x 600 pixels, but graf1\.jpg has 800 x 640"):
        plot_keypoints(GRAF1, features([], (800, 600)))


def test_matches_of_other_features_are_refused():
    with pytest.raises(InputError, match="rows 0 to 8 of the second photo"):
        plot_matches(GRAF1, GRAF3, random_features(9), random_features(5), pairs(9))


def test_features_of_the_stored_orientation_are_drawn_on_it(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned: upright it is 50 x 60
    Image.new("RGB", (60, 50)).save(tmp_path / "turned.jpg", exif=exif)
    for size, upright in (((60, 50), False), ((50, 60), True)):
        picture = plot_keypoints(tmp_path / "turned.jpg", features([], size), upright=upright)
        assert (picture.width < picture.height) is upright


def test_matches_without_evidence_are_not_coloured():
    grey = np.full((640, 800, 3), 128, np.uint8)
    a = random_features(60)
    matches = pairs(60, inliers=[True] * 60, model="fundamental")
    for significance, coloured in ((50.0, True), (0.0, False)):
        found = replace(matches, significance=significance)
        picture = plot_matches(grey, grey, a, a, found)
        assert (saturation(photos_of(picture)).max() > 100) == coloured


@pytest.mark.parametrize("format", ["jpg", "png"])
def test_photos_are_not_replaced_but_pictures_are(tmp_path, format):
    photo, other = tmp_path / f"in.{format}", tmp_path / f"other.{format}"
    for path in (photo, other):
        Image.open(GRAF1).save(path)
    before, a = photo.read_bytes(), random_features(20)
    for output in (photo, other):
        with pytest.raises(OutputError, match=output.name):
            plot_keypoints(photo, a, output=output)
        with pytest.raises(OutputError, match=output.name):
            plot_matches(photo, photo, a, a, pairs(20), output=str(output))
        assert output.read_bytes() == before
    picture = tmp_path / f"picture.{format}"
    plot_keypoints(photo, a, output=picture)
    drawn = picture.read_bytes()
    plot_matches(photo, photo, a, a, pairs(20), output=picture)
    assert picture.read_bytes() != drawn
