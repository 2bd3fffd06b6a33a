"""Which pairs are chosen, against brute force, COLMAP itself, and planted truth."""

from __future__ import annotations

import itertools
import math
import unicodedata

import numpy as np
import pycolmap
import pytest
from hypothesis import given
from hypothesis import strategies as st

from d2net.errors import InputError
from d2net.io.exif import Position
from d2net.matching import pair_selection as pairs

NAMES = st.lists(st.text("ab 0.", min_size=1, max_size=4), max_size=12, unique=True)
METRES_PER_DEGREE = 111_320  # along the equator
ROW = [f"photo {i}.jpg" for i in range(6)]


def assert_sound(found, names):
    """No pair twice in either order, none with itself, sorted by place."""
    places = [(names.index(a), names.index(b)) for a, b in found]
    assert all(i < j for i, j in places)
    assert places == sorted(set(places))


@given(NAMES)
def test_exhaustive(names):
    found = pairs.choose_pairs(pairs.PairChoice("exhaustive"), names)
    assert_sound(found, names)
    assert len(found) == math.comb(len(names), 2)


@given(NAMES, st.integers(1, 15))
def test_sequential(names, overlap):
    found = pairs.sequential(names, overlap)
    assert_sound(found, names)
    allowed = {*range(1, overlap + 1), *(2**i for i in range(overlap))}
    distances = {(i, j): j - i for i, j in itertools.combinations(range(len(names)), 2)}
    assert found == [(names[i], names[j]) for (i, j), d in distances.items() if d in allowed]


def test_a_huge_overlap_means_all_pairs():
    assert pairs.sequential("abcd", 10**12) == list(itertools.combinations("abcd", 2))


def colmap_sequential(path, names, overlap, quadratic):
    """The pairs that COLMAP itself chooses."""
    options = pycolmap.SequentialPairingOptions(
        overlap=overlap, quadratic_overlap=quadratic, expand_rig_images=False
    )
    with pycolmap.Database.open(path) as database:
        ids = {image.image_id: image.name for image in database.read_all_images()}
        generator = pycolmap.SequentialPairGenerator(options, database)
        return {tuple(sorted((ids[a], ids[b]))) for a, b in generator.all_pairs()}


def test_sequential_gives_what_colmap_matches(tmp_path):
    names, path = [f"{i:03}.jpg" for i in range(40)], tmp_path / "database.db"
    with pycolmap.Database.open(path) as database:
        camera = pycolmap.Camera.create_from_model_name(1, "SIMPLE_PINHOLE", 500, 640, 480)
        camera_id = database.write_camera(camera)
        for name in names:
            database.write_image(pycolmap.Image(name=name, camera_id=camera_id))
    linear, quadratic = (colmap_sequential(path, names, 5, both) for both in (False, True))
    assert set(pairs.sequential(names, 5)) == linear | quadratic


def test_numbers_in_names_count_as_numbers():
    names = ["b/1.jpg", "a10.jpg", "a9.jpg", "A 2 x 10.jpg", "A 2 x 9.jpg", "a09.jpg", "٣.jpg", ""]
    expected = [
        "",
        "A 2 x 9.jpg",
        "A 2 x 10.jpg",
        "a09.jpg",
        "a9.jpg",
        "a10.jpg",
        "b/1.jpg",
        "٣.jpg",
    ]
    assert pairs.natural_order(names) == expected
    assert pairs.natural_order(reversed(names)) == expected


# --- GPS -------------------------------------------------------------------------------------


def test_gps_pairs_are_the_nearest_within_the_distance():
    east = {"a.jpg": 0, "my photo.jpg": 30, "c.jpg": 50, "d.jpg": 149, "far.jpg": 251}
    positions = {name: Position(0, metres / METRES_PER_DEGREE) for name, metres in east.items()}
    assert pairs.from_gps(positions, num_matched=1, max_distance=100) == [
        ("a.jpg", "my photo.jpg"),
        ("my photo.jpg", "c.jpg"),
        ("c.jpg", "d.jpg"),
    ]
    assert pairs.from_gps(positions, max_distance=45) == [
        ("a.jpg", "my photo.jpg"),
        ("my photo.jpg", "c.jpg"),
    ]
    assert len(pairs.from_gps(positions, max_distance=1000)) == 10


@pytest.mark.parametrize(
    ("a", "b", "metres"),
    [
        # One degree along the equator, along the meridian there and at the pole (WGS84).
        (Position(0, 0), Position(0, 0.001), 111.3195),
        (Position(-0.0005, 0), Position(0.0005, 0), 110.5743),
        (Position(89.999, 0), Position(90, 0), 111.6940),
        (Position(0, 179.9995), Position(0, -179.9995), 111.3195),
        (Position(60, 10), Position(60, 10.001), 55.8),
    ],
    ids=["equator", "meridian", "pole", "date line", "north"],
)
def test_distances_on_the_ellipsoid(a, b, metres):
    positions = {"a": a, "b": b}
    assert pairs.from_gps(positions, max_distance=metres + 0.01) == [("a", "b")]
    assert pairs.from_gps(positions, max_distance=metres - 0.01) == []


def test_photos_taken_at_one_place_are_neighbours():
    positions = {name: Position(50, 8) for name in "abcd"} | {"e": Position(50, 8.0001)}
    found = pairs.from_gps(positions, num_matched=2)
    assert_sound(found, list("abcde"))
    degree = {name: sum(name in pair for pair in found) for name in "abcde"}
    assert min(degree.values()) >= 2


def test_one_photo_has_no_pair():
    assert pairs.from_gps({"a": Position(1, 1)}) == pairs.from_gps({}) == []
    exhaustive = pairs.PairChoice("exhaustive")
    assert pairs.choose_pairs(exhaustive, ["a"]) == pairs.sequential(["a"]) == []


# --- Covisibility ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model():
    """Six photos along a row of points: each sees forty, twelve further on than the one before."""
    pycolmap.set_random_seed(0)
    options = pycolmap.SyntheticDatasetOptions(
        num_rigs=1, num_cameras_per_rig=1, num_frames_per_rig=6, num_points3D=100
    )
    found = pycolmap.synthesize_dataset(options)
    for place, (image_id, image) in enumerate(sorted(found.images.items())):
        image.name = ROW[place]
        for i, point in enumerate(image.points2D):
            if point.has_point3D() and not 12 * place <= point.point3D_id < 12 * place + 40:
                found.delete_observation(image_id, i)
    return found


def test_shared_points_against_brute_force(model):
    names, shared = pairs.shared_points(model)
    assert names == ROW
    sees = {
        image.name: {p.point3D_id for p in image.points2D if p.has_point3D()}
        for image in model.images.values()
    }
    for i, j in itertools.combinations(range(6), 2):
        assert shared[i, j] == shared[j, i] == len(sees[names[i]] & sees[names[j]])
    assert not shared.diagonal().any()
    assert shared[0, 1] > shared[0, 2] > shared[0, 4] == 0


def test_covisible_photos_share_the_most_points(model):
    chain = list(itertools.pairwise(ROW))
    assert pairs.from_covisibility(model, 1) == chain
    every = pairs.from_covisibility(model, 5)
    assert_sound(every, ROW)
    assert len(every) == np.count_nonzero(np.triu(pairs.shared_points(model)[1])) < 15
    some = pairs.from_covisibility(model, 1, names=[*ROW[2:], "unknown.jpg"])
    assert some == chain[2:]


def test_a_model_without_points_has_no_pairs():
    assert pairs.from_covisibility(pycolmap.Reconstruction()) == []


# --- Bad input -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"overlap": 0}, "overlap must be"),
        ({"num_matched": 0}, "num_matched must be"),
        ({"max_distance": math.nan}, "max_distance must be"),
        ({"method": "covisibility"}, "covisibility needs a COLMAP model"),
    ],
)
def test_bad_input(options, message):
    with pytest.raises(InputError, match=message):
        pairs.PairChoice(**options)


def test_a_list_may_have_another_unicode_form(tmp_path):
    names = ["a.jpg", unicodedata.normalize("NFC", "é.jpg")]
    path = tmp_path / "pairs.txt"
    path.write_text(unicodedata.normalize("NFD", " ".join(names)), encoding="utf-8")
    choice = pairs.PairChoice(method="list", file=path)
    assert pairs.choose_pairs(choice, names) == [tuple(names)]
