"""Retrieval finds photos that share local features, and only depends on them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from torch.nn.functional import normalize

from d2net.errors import InputError, OutputError
from d2net.io.h5 import FeatureFile, FeatureWriter
from d2net.matching import pair_selection as pairs
from d2net.matching.retrieval import Codebook, GlobalDescriptors

from ..io.samples import make_features

DIMENSION = 16
NAMES = [f"place {place}/{view}.jpg" for place in range(4) for view in range(3)]


def view(place, number, n=150):
    """Features of a photo: of a place, each view shows other 150 of 200 points, with noise."""
    generator = torch.Generator().manual_seed(place)
    points = normalize(torch.randn(200, DIMENSION, generator=generator), dim=1)
    generator = torch.Generator().manual_seed(100 * place + number + 1)
    shown = points[torch.randperm(200, generator=generator)[:n]]
    noisy = shown + 0.05 * torch.randn(shown.shape, generator=generator)
    return replace(make_features(n, dimension=DIMENSION), descriptors=normalize(noisy, dim=1))


def nothing():
    return make_features(0, dimension=DIMENSION)


@pytest.fixture(scope="module")
def photos():
    return {
        name: view(place, number) for name, (place, number) in zip(NAMES, places(), strict=True)
    }


def places():
    return [(place, number) for place in range(4) for number in range(3)]


@pytest.fixture(scope="module")
def described(photos):
    return GlobalDescriptors.build(photos)


def assert_same(a, b):
    assert a.names == b.names
    assert_array_equal(a.vectors, b.vectors)
    assert_array_equal(a.codebook.centres, b.codebook.centres)
    assert a.codebook.descriptor_id == b.codebook.descriptor_id


# --- What is found ---------------------------------------------------------------------------


def test_photos_of_one_place_are_neighbours(described):
    for name, hits in described.neighbours(2).items():
        assert {other.partition("/")[0] for other, _ in hits} == {name.partition("/")[0]}
        assert name not in dict(hits)
        assert 1 > hits[0][1] >= hits[1][1] > 0
    found = pairs.from_retrieval(described, 2)
    assert found == [
        (a, b)
        for i, a in enumerate(NAMES)
        for b in NAMES[i + 1 :]
        if a.split("/")[0] == b.split("/")[0]
    ]


def test_query_finds_the_place(described):
    for place in range(4):
        hits = described.query(view(place, 77), 3)
        assert {name for name, _ in hits} == {f"place {place}/{i}.jpg" for i in range(3)}
        assert [cosine for _, cosine in hits] == sorted((c for _, c in hits), reverse=True)


def test_every_photo_is_nearest_to_itself(photos, described):
    for name, features in photos.items():
        ((found, cosine),) = described.query(features, 1)
        assert found == name
        assert cosine == pytest.approx(1, abs=1e-3)  # stored in half precision


def test_the_search_is_exact(described):
    vectors = described.vectors.astype(np.float64)
    cosines = vectors @ vectors.T
    np.fill_diagonal(cosines, -2)
    for i, (name, hits) in enumerate(described.neighbours(5).items()):
        assert name == NAMES[i]
        best = (-cosines[i]).argsort()[:5]
        assert [other for other, _ in hits] == [NAMES[j] for j in best]
        assert_allclose([cosine for _, cosine in hits], cosines[i, best], atol=1e-5)


def test_more_neighbours_than_photos(described):
    assert all(len(hits) == len(NAMES) - 1 for hits in described.neighbours(50).values())
    assert len(described.query(view(0, 5), 50)) == len(NAMES)
    with pytest.raises(InputError, match="at least 1"):
        described.query(view(0, 5), 0)


# --- What a vector is ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scores", "weights"),
    [([4.0, 2, 1], [4, 2, 1]), ([0.0, 0, 0], [1, 1, 1]), ([-1.0, 2, 5], [1, 1, 1])],
    ids=["by score", "no scores", "logarithms"],
)
def test_vlad_by_hand(scores, weights):
    centres = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1]], np.float32)
    descriptors = normalize(torch.tensor([[3.0, 4, 0], [4.0, 3, 0], [0.0, 1, 0.1]]), dim=1)
    photo = replace(
        make_features(3, dimension=3), descriptors=descriptors, scores=torch.tensor(scores)
    )
    a, b, c = descriptors.numpy()
    sums = np.zeros((3, 3))
    sums[0] = weights[1] * (b - centres[0])
    sums[1] = weights[0] * (a - centres[1]) + weights[2] * (c - centres[1])
    rooted = np.sign(sums) * np.sqrt(np.abs(sums))
    expected = rooted / np.linalg.norm(rooted)
    assert_allclose(Codebook(centres).describe(photo), expected.ravel(), atol=1e-6)


def test_the_order_of_keypoints_and_their_places_do_not_matter(described):
    photo = view(1, 9)
    shuffled = photo[torch.randperm(len(photo))]
    moved = replace(shuffled, keypoints=shuffled.keypoints + 7, image_size=(9, 9))
    describe = described.codebook.describe
    assert_allclose(describe(photo), describe(moved), atol=1e-5)


# --- Codebook, file and more photos ----------------------------------------------------------


def test_the_same_photos_give_the_same_descriptors(photos, described):
    assert_same(GlobalDescriptors.build(photos), described)


def test_a_file_holds_all(photos, tmp_path):
    with FeatureWriter(tmp_path / "f.h5", {"weights": "some"}) as writer:
        for name, features in photos.items():
            writer.add(name, replace(features, descriptor_id="some plain"))
    with FeatureFile(tmp_path / "f.h5") as file:
        built = GlobalDescriptors.build(file)
    built.save(tmp_path / "g.h5")
    opened = GlobalDescriptors.open(tmp_path / "g.h5")
    assert_same(opened, built)
    assert opened.neighbours(3) == built.neighbours(3)
    before = (tmp_path / "g.h5").read_bytes()
    opened.save(tmp_path / "g.h5")
    assert (tmp_path / "g.h5").read_bytes() == before


@pytest.mark.parametrize("name", ["photo.jpg", "features.h5"])
def test_other_files_are_not_replaced(photos, described, tmp_path, name):
    if name == "features.h5":
        with FeatureWriter(tmp_path / name, {"weights": "some"}) as writer:
            writer.add("a.jpg", next(iter(photos.values())))
    else:
        (tmp_path / name).write_bytes(b"pixels")
    before = (tmp_path / name).read_bytes()
    with pytest.raises(OutputError, match=rf"{name} exists"):
        described.save(tmp_path / name)
    assert (tmp_path / name).read_bytes() == before


def test_numpy_may_raise_on_underflow(photos, described):
    with np.errstate(all="raise"):
        assert_same(GlobalDescriptors.build(photos), described)


# --- Little or nothing -----------------------------------------------------------------------


def test_photos_without_features_look_like_no_other(photos):
    found = GlobalDescriptors.build({**photos, "black.jpg": nothing()})
    assert found.neighbours(20)["black.jpg"] == []
    assert all("black.jpg" not in dict(hits) for hits in found.neighbours(20).values())
    assert found.query(nothing(), 5) == []
    assert all("black.jpg" not in pair for pair in pairs.from_retrieval(found))


def test_one_photo(photos):
    found = GlobalDescriptors.build(photos, NAMES[:1])
    assert found.neighbours(5) == {NAMES[0]: []}
    assert pairs.from_retrieval(found) == []
    assert found.query(view(0, 8), 5)[0][0] == NAMES[0]


@pytest.mark.parametrize("n", [1, 2, 10, 50])
def test_few_features(tmp_path, n):
    few = {f"{place}/{i}": view(place, i, n=n) for place in range(2) for i in range(2)}
    found = GlobalDescriptors.build(few)
    assert np.isfinite(found.vectors.astype(np.float32)).all()
    found.save(tmp_path / "g.h5")
    assert_same(GlobalDescriptors.open(tmp_path / "g.h5"), found)
    assert all(len(hits) == 1 for hits in found.neighbours(1).values())


def test_identical_photos():
    same = {name: view(0, 0) for name in "abcd"}
    found = pairs.from_retrieval(GlobalDescriptors.build(same), 2)
    degree = {name: sum(name in pair for pair in found) for name in "abcd"}
    assert min(degree.values()) >= 2


@pytest.mark.parametrize("photos", [{}, {"black.jpg": nothing()}], ids=["none", "no features"])
def test_nothing_to_learn_from(photos):
    with pytest.raises(InputError, match="these photos have none"):
        GlobalDescriptors.build(photos)


def test_descriptors_of_another_type_are_refused(photos, described):
    with pytest.raises(InputError, match=r"20-D descriptors .* learned from 16-D"):
        described.query(make_features(5, dimension=20), 3)
    plain = {name: replace(photo, descriptor_id="ots plain") for name, photo in photos.items()}
    found = GlobalDescriptors.build(plain)
    with pytest.raises(InputError, match=r"\(ots root\), .* learned from 16-D ones \(ots plain\)"):
        found.query(replace(view(0, 0), descriptor_id="ots root"), 3)
    assert found.query(replace(view(0, 0), descriptor_id=None), 3)
