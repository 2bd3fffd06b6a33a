"""The learned matcher: what it matches, what it refuses, and what is stored."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest
import torch

from d2net import D2Net, match
from d2net.errors import InputError
from d2net.features import Features
from d2net.io.h5 import FeatureWriter, MatchFile
from d2net.matching.learned_matcher import _read, distinct_keypoints
from d2net.matching.match_pairs import match_pairs
from d2net.networks.matcher import (
    KeypointBatch,
    MatcherSettings,
    MatchingTransformer,
    Prepared,
)
from d2net.networks.weights import load_matcher, save_weights

from ..tiny import default_type

TYPE = "tiny 01234567 plain"


def make_photo(n: int, seed: int) -> Features:
    generator = torch.Generator().manual_seed(seed)
    cells = torch.randperm(48 * 64, generator=generator)[:n]
    descriptors = torch.randn(n, 16, generator=generator)
    return Features(
        keypoints=10 * torch.stack([cells % 64, cells // 64], dim=1).float(),
        scores=torch.rand(n, generator=generator),
        scales=torch.ones(n),
        descriptors=torch.nn.functional.normalize(descriptors, dim=1),
        image_size=(640, 480),
        uncertainty=torch.ones(n),
        descriptor_id=TYPE,
    )


@pytest.fixture(scope="module")
def matcher(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An untrained one, which starts from the similarity of the descriptors."""
    torch.manual_seed(0)
    network = MatchingTransformer(MatcherSettings(16, width=32, heads=2, layers=2))
    path = tmp_path_factory.mktemp("weights") / "matcher.safetensors"
    save_weights(path, network, {"name": "m", "descriptor_id": TYPE})
    return str(path)


def test_the_same_keypoints_match_the_most_confident_first(matcher: str) -> None:
    a = make_photo(60, 1)
    order = torch.randperm(60)
    matches = match(a, a[order], matcher=matcher)
    assert len(matches) > 40
    assert torch.equal(order[matches.indices[:, 1]], matches.indices[:, 0])
    torch.testing.assert_close(matches.similarity, torch.ones(len(matches)))
    assert matches.confidence is not None
    assert torch.equal(matches.confidence, matches.confidence.sort(descending=True).values)
    verified = match(a, a[order], matcher=matcher, verify="homography").verified()
    assert verified.confidence is not None
    assert len(verified.confidence) == len(verified) > 40
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(match(a, a[order], matcher=matcher).indices, matches.indices)


@pytest.mark.parametrize(("confident", "kept"), [(600, 600), (100, 500), (0, 500)])
def test_nearest_neighbours_make_up_the_number_where_few_matches_are_confident(
    matcher: str, monkeypatch: pytest.MonkeyPatch, confident: int, kept: int
) -> None:
    n = 700
    confidence = torch.full((n,), 0.09)
    confidence[torch.randperm(n)[:confident]] = 0.5
    # The network matches each keypoint with the next one; its nearest neighbour is itself.
    rows = torch.arange(n)
    found = torch.stack([rows, (rows + 1) % n], dim=1), confidence
    monkeypatch.setattr(MatchingTransformer, "match", lambda *_: found)
    photo = replace(make_photo(n, 1), scores=torch.linspace(1, 0, n))
    matches = match(photo, photo, matcher=matcher)
    assert len(matches) == kept
    assert matches.confidence is not None
    assert matches.confidence.tolist() == pytest.approx(
        [0.5] * confident + [0.05] * (kept - confident)
    )
    first, second = matches.indices.T
    assert torch.equal((first + 1)[:confident] % n, second[:confident])
    assert torch.equal(first[confident:], second[confident:])
    assert first.unique().numel() == second.unique().numel() == kept


def test_the_first_self_attention_of_a_photo_is_computed_once(
    matcher: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared: list[int] = []

    def prepare(self: MatchingTransformer, photo: KeypointBatch) -> Prepared:
        prepared.append(photo.positions.shape[1])
        return original(self, photo)

    original = MatchingTransformer.prepare
    monkeypatch.setattr(MatchingTransformer, "prepare", prepare)
    photos = [make_photo(n, 1) for n in (40, 41, 42)]
    alone = [match(a[:], b[:], matcher=matcher) for a, b in combinations(photos, 2)]
    prepared.clear()
    together = [match(a, b, matcher=matcher) for a, b in combinations(photos, 2)]
    assert prepared == [40, 41, 42]
    for one, other in zip(alone, together, strict=True):
        assert torch.equal(one.indices, other.indices)
        assert torch.equal(one.scores, other.scores)


def test_photos_without_keypoints_have_no_matches(matcher: str) -> None:
    some, none = make_photo(20, 1), make_photo(0, 1)
    assert [len(match(a, b, matcher=matcher)) for a, b in ((none, some), (some, none))] == [0, 0]
    assert match(some[:1], some, matcher=matcher).indices.tolist() == [[0, 0]]


def test_keypoints_outside_the_photo_and_half_precision_match(matcher: str) -> None:
    a = make_photo(60, 1)
    outside = replace(a, keypoints=3 * a.keypoints - 900)
    assert len(match(a, outside, matcher=matcher)) > 40
    half, full = match(a.half(), a, matcher=matcher), match(a, a, matcher=matcher)
    assert half.indices[:, 0].sort().values.tolist() == full.indices[:, 0].sort().values.tolist()


def test_other_descriptors_and_options_are_refused(matcher: str) -> None:
    a = make_photo(20, 1)
    with pytest.raises(InputError, match=f"'{TYPE}', not 'other' of length 16"):
        match(a, replace(a, descriptor_id="other"), matcher=matcher)
    shorter = replace(a, descriptors=a.descriptors[:, :8], descriptor_id=None)
    with pytest.raises(InputError, match="not 'unknown ones' of length 8"):
        match(shorter, shorter, matcher=matcher)
    for factor in (2.0, torch.nan):
        with pytest.raises(InputError, match="must have unit length"):
            match(a, replace(a, descriptors=factor * a.descriptors), matcher=matcher)
    with pytest.raises(InputError, match='ratio is for the matcher "nearest"'):
        match(a, a, matcher=matcher, ratio=0.8)
    with pytest.raises(InputError, match="there is no file 'nearst'"):
        match(a, a, matcher="nearst")


def test_learned_has_weights_for_the_descriptors_of_light_and_of_the_default() -> None:
    photos = []
    for network, loaded in map(load_matcher, ("learned", "learned_seasons")):
        shape = 30, network.settings.descriptor_length
        descriptors = torch.nn.functional.normalize(torch.randn(shape), dim=1)
        made_by = loaded.metadata["descriptor_id"]
        photo = replace(make_photo(30, 1), descriptors=descriptors, descriptor_id=made_by)
        assert match(photo, photo, matcher="learned").indices[:, 0].unique().numel() > 20
        photos.append(photo)
    of_light, of_default = photos
    assert of_light.descriptor_id == D2Net.from_pretrained("light").descriptor_id()
    assert of_default.descriptor_id == D2Net.from_pretrained().descriptor_id()
    with pytest.raises(InputError, match="cannot be compared"):
        match(of_light, of_default, matcher="learned")


def test_of_close_keypoints_the_best_stays() -> None:
    a = make_photo(4, 1)
    points = torch.tensor([[10.0, 10.0], [11.0, 10.0], [12.5, 10.0], [50.0, 10.0]])
    a = replace(a, keypoints=points, scores=torch.tensor([0.3, 0.4, 0.2, 0.9]))
    assert distinct_keypoints(a).tolist() == [3, 1]
    assert distinct_keypoints(replace(a, scales=torch.full((4,), 0.1))).tolist() == [3, 1, 0, 2]
    assert distinct_keypoints(replace(a, scales=torch.zeros(4))).tolist() == [3, 1, 0, 2]


def test_files_hold_the_confidence(matcher: str, tmp_path: Path) -> None:
    photos = {"a.jpg": make_photo(50, 1), "b.jpg": make_photo(50, 1)[torch.randperm(50)]}
    with FeatureWriter(tmp_path / "f.h5", {}) as writer:
        for name, photo in photos.items():
            writer.add(name, photo)
    match_pairs(tmp_path / "f.h5", [("a.jpg", "b.jpg")], tmp_path / "m.h5", matcher=matcher)
    expected = match(photos["a.jpg"], photos["b.jpg"], matcher=matcher)
    with MatchFile(tmp_path / "m.h5") as file:
        assert file.settings is not None
        assert file.settings["matcher"].startswith("m ")
        found = file.get("a.jpg", "b.jpg")
    assert found.confidence is not None
    assert expected.confidence is not None
    rows = expected.indices[:, 0].argsort()
    torch.testing.assert_close(found.confidence, expected.confidence[rows])
    for packaged in ("learned", "learned_seasons"):
        with pytest.raises(InputError, match="matches descriptors"):
            match_pairs(
                tmp_path / "f.h5", [("a.jpg", "b.jpg")], tmp_path / "n.h5", matcher=packaged
            )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_defaults_of_torch_do_not_matter(matcher: str, dtype: torch.dtype) -> None:
    a, b = make_photo(60, 1), make_photo(60, 1)
    expected = match(a, b, matcher=matcher)
    _read.cache_clear()
    with default_type(dtype):
        found = match(a, b, matcher=matcher)
    with torch.device("meta"):
        again = match(a, b, matcher=matcher)
    for other in (found, again):
        assert torch.equal(other.indices, expected.indices)
        torch.testing.assert_close(other.confidence, expected.confidence)


def test_the_file_of_an_unknown_user_is_missing() -> None:
    with pytest.raises(InputError, match="there is no file '~nobody-has-this-name/m"):
        match(make_photo(9, 1), make_photo(9, 1), matcher="~nobody-has-this-name/m.safetensors")
