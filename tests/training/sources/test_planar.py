"""Single and aligned photos: correspondences show the same thing, layouts are understood."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from d2net.errors import FormatError, ImageError, InputError
from d2net.training.check_pairs import sift_errors
from d2net.training.sources import detect_kind, open_source
from d2net.training.sources.base import pair_generator

from ...tiny import DATA

CROP = 128
LISTED = '[{{"a": "a.png", "b": "b.png", "H_a_to_b": {}}}]'
STILL = {"rotation": 0.0, "scale": 1.0, "perspective": 0.0, "photometric": 0.0}


@pytest.fixture
def graf(tmp_path):
    with Image.open(DATA / "graf1.jpg") as image:
        return image.convert("RGB").crop((100, 100, 500, 420))


def opened(folder, kind, **options):
    return open_source(kind, folder, CROP, options)


def sift_agreement(source, count=12):
    """Share of SIFT matches that end where correspondences lead."""
    errors = []
    for step in range(count):
        rng = pair_generator(3, step)
        pair = source.pair(int(rng.integers(len(source))), rng)
        if pair is not None:
            errors += sift_errors(pair).tolist()
    assert len(errors) > 40
    return np.mean(np.array(errors) < 2)


def test_two_views_of_one_photo(tmp_path, graf):
    graf.save(tmp_path / "a.png")
    (tmp_path / "more").mkdir()
    graf.rotate(180).save(tmp_path / "more" / "b.jpg")
    source = opened(tmp_path, "photos", photometric=0.0)
    assert detect_kind(tmp_path) == "photos"
    assert len(source) == 2
    assert sift_agreement(source) > 0.95
    pair = source.pair(0, pair_generator(0, 1))
    assert pair.image_a.shape == pair.image_b.shape == (CROP, CROP, 3)
    assert pair.photos == (str(tmp_path / "a.png"),) * 2
    cells = (pair.points_a - 3.5) / 8, (pair.points_b - 3.5) / 8
    assert (cells[0] == np.rint(cells[0])).all() and not (cells[1] == np.rint(cells[1])).all()


def test_a_pair_depends_on_the_generator_alone(tmp_path, graf):
    for name in "abc":
        graf.save(tmp_path / f"{name}.png")
    first, second = (opened(tmp_path, "photos") for _ in range(2))
    first.pair(2, pair_generator(0, 0))  # what was drawn before does not matter
    a, b = (source.pair(1, pair_generator(5, 9)) for source in (first, second))
    for name in ("image_a", "image_b", "points_a", "points_b"):
        assert np.array_equal(getattr(a, name), getattr(b, name))


def test_without_warp_and_light_crops_are_the_photo(tmp_path, graf):
    graf.save(tmp_path / "a.png")
    pair = opened(tmp_path, "photos", **STILL).pair(0, pair_generator(0, 0))
    assert np.array_equal(pair.image_a, pair.image_b)
    assert np.allclose(pair.points_a, pair.points_b, atol=1e-4)
    assert len(pair.points_a) == (CROP // 8) ** 2


def test_listed_homographies(tmp_path, graf):
    """The second photo is the first, shifted and twice as large."""
    (tmp_path / "images").mkdir()
    graf.save(tmp_path / "images" / "a.png")
    big = graf.resize((800, 640)).crop((40, 20, 800, 640))
    big.save(tmp_path / "images" / "b.png")
    b_from_a = [[2, 0, 0.5 - 40], [0, 2, 0.5 - 20], [0, 0, 1]]
    entries = [{"a": "a.png", "b": "b.png", "H_a_to_b": b_from_a}]
    (tmp_path / "pairs.json").write_text(json.dumps(entries))
    assert detect_kind(tmp_path) == "aligned"
    assert sift_agreement(opened(tmp_path, "aligned")) > 0.9
    assert sift_agreement(opened(tmp_path, "aligned", max_edge=300, photometric=0.0)) > 0.9


def test_offsets_of_webcams(tmp_path, graf):
    for view in ("one", "two"):
        (tmp_path / view).mkdir()
        graf.crop((0, 0, 380, 300)).save(tmp_path / view / "a.png")
        graf.crop((5, 3, 385, 303)).save(tmp_path / view / "b.png")
        graf.crop((9, 0, 389, 300)).save(tmp_path / view / "c.png")
        offsets = {"a.png": [0, 0], "b.png": [-5, -3], "c.png": [-9, 0]}
        (tmp_path / view / "offsets.json").write_text(json.dumps(offsets))
    source = opened(tmp_path, "aligned")
    assert len(source) == 6
    assert sift_agreement(source) > 0.95


def test_folders_of_the_same_names(tmp_path, graf, caplog):
    for folder, extension in (("visible", "jpg"), ("thermal", "png")):
        (tmp_path / folder).mkdir()
        graf.save(tmp_path / folder / f"x.{extension}")
    source = opened(tmp_path, "aligned")
    assert len(source) == 1
    assert sift_agreement(source) > 0.95
    assert detect_kind(tmp_path) == "aligned"
    assert "are taken as aligned" in caplog.text  # they may be photos of two cameras
    graf.resize((300, 300)).save(tmp_path / "thermal" / "x.png")
    with pytest.raises(FormatError, match="differ in size"):
        opened(tmp_path, "aligned")
    assert detect_kind(tmp_path) == "photos"


def test_what_is_wrong_is_told(tmp_path, graf):
    with pytest.raises(InputError, match="holds no photos"):
        opened(tmp_path, "photos")
    with pytest.raises(InputError, match="is not a folder of aligned photos"):
        opened(tmp_path, "aligned")
    with pytest.raises(InputError, match="is not a folder of aligned"):
        opened(tmp_path / "nowhere", "aligned")
    graf.save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"\x89PNG and no more")
    with pytest.raises(ImageError, match=r"cannot read .*b\.png"):
        opened(tmp_path, "photos").pair(1, pair_generator(0, 0))
    file = tmp_path / "pairs.json"
    for text, message in (
        ("{", "cannot be read as JSON"),
        ('[{"a": "a.png"}]', "pair 1: expected a, b and an invertible"),
        (
            '[{"a": "a.png", "b": "z.png", "H_a_to_b": []}]',
            "names the photo z.png, which is not in",
        ),
        ('[{"a": "a.png", "b": "b.png", "H_a_to_b": [[1, 2]]}]', "an invertible 3 x 3"),
        (LISTED.format("[[Infinity, 0, 0], [0, 1, 0], [0, 0, 1]]"), "an invertible 3 x 3"),
        (LISTED.format("[[1e300, 0, 0], [0, 1e300, 0], [0, 0, 1]]"), "an invertible 3 x 3"),
        (LISTED.format("[[NaN, 0, 0], [0, 1, 0], [0, 0, 1]]"), "an invertible 3 x 3"),
        ("null", r"must contain \[...\], not null"),
        ("3", r"must contain \[...\], not 3"),
    ):
        file.write_text(text)
        with pytest.raises(FormatError, match=message):
            opened(tmp_path, "aligned")
    file.unlink()
    for text, message in (
        ('{"a.png": 3}', r"offset of a\.png is not two numbers"),
        ('{"a.png": "12"}', r"offset of a\.png is not two numbers"),
        ('{"a.png": [NaN, 0]}', r"offset of a\.png is not two numbers"),
        ("null", r"must contain {...}, not null"),
        ("[1, 2]", r"must contain {...}, not \[1, 2\]"),
    ):
        (tmp_path / "offsets.json").write_text(text)
        with pytest.raises(FormatError, match=message):
            opened(tmp_path, "aligned")


@pytest.mark.parametrize("matrix", ["[1, 0, 0, 0, 1, 0, 0, 0, 1]", "[[[1,0,0],[0,1,0],[0,0,1]]]"])
def test_homographies_in_another_shape(tmp_path, graf, matrix):
    for name in ("a.png", "b.png"):
        graf.save(tmp_path / name)
    (tmp_path / "pairs.json").write_text(LISTED.format(matrix))
    assert opened(tmp_path, "aligned", **STILL).pair(0, pair_generator(0, 0)) is not None


def test_a_photo_gone_since_is_told(tmp_path, graf):
    graf.save(tmp_path / "a.png")
    source = opened(tmp_path, "photos")
    (tmp_path / "a.png").unlink()
    with pytest.raises(ImageError, match=r"a\.png"):
        source.pair(0, pair_generator(0, 0))
