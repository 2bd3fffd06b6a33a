"""Training of the learned matcher, with a tiny network that makes the features."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from d2net import D2Net, match
from d2net.errors import D2NetError, InputError
from d2net.networks.light import Light, LightSettings
from d2net.networks.weights import load_matcher, save_weights
from d2net.training.matcher import (
    MatcherObjective,
    calibration_error,
    fit_calibration,
    ground_truth,
)
from d2net.training.recipes import train
from d2net.training.settings import MatcherTrainingSettings
from d2net.training.stored_pairs import (
    CropKeypoints,
    Labels,
    StoredPair,
    are_different,
    places_of,
    random_part,
)

from .made import DATA
from .plane_pair import H, grid, warped_pair


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Weights of a small network light."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "light.safetensors"
    small = LightSettings(channels=(8, 8, 8, 16, 16))
    save_weights(path, Light(small), {"name": "tiny"})
    return str(path)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for place in ("graf", "other"):
        (tmp_path / place).mkdir()
        name = {"graf": "graf1.jpg", "other": "graf3.jpg"}[place]
        shutil.copy(DATA / name, tmp_path / place / name)
    return tmp_path


def make_settings(network: str, **changes: Any) -> MatcherTrainingSettings:
    places = [
        {"kind": "photos", "path": place, "min_correspondences": 16, "rotation": 5.0, "scale": 1.2}
        for place in ("graf", "other")
    ]
    return MatcherTrainingSettings.from_dict(
        {
            "sources": places,
            "start": network,
            "widths": {"width": 32, "heads": 2, "layers": 2},
            "pairs": 4,
            "keypoints": 64,
            "step_keypoints": 48,
            "crop": 128,
            "batch": 3,
            "steps": 4,
            "save_every": 2,
            "learning_rate": 1e-3,
            **changes,
        }
    )


def test_keypoints_match_by_the_true_homography() -> None:
    pair = warped_pair()
    a = torch.tensor([[100.0, 100.0], [120.0, 90.0], [60.0, 200.0], [0.0, 250.0]])
    partners = np.c_[a.numpy(), np.ones(4)] @ H.T
    b = torch.from_numpy(partners[:, :2] / partners[:, 2:]).float()
    b[1] += 3  # neither a match nor a proof of none
    b[2] += 9
    truth = ground_truth(a, b, pair.points_a, pair.points_b).labels
    assert truth.matches.tolist() == [[0, 0], [3, 3]]
    assert truth.unmatched_a.tolist() == [False, False, True, False]
    assert truth.unmatched_b.tolist() == [False, False, True, False]


def test_where_correspondences_are_unknown_nothing_is_taught() -> None:
    pair = warped_pair()
    near = (pair.points_a[:, 0] < 80) & (pair.points_a[:, 1] < 200)
    noise = np.random.default_rng(0).normal(0, 0.3, (near.sum(), 2)).astype(np.float32)
    known = pair.points_a[near], pair.points_b[near] + noise  # as tracks
    a = torch.from_numpy(grid(32)).float()
    truth = ground_truth(a, a[:0], *known)
    assert truth.labels.unmatched_a.all()  # no keypoint in b at all
    truth = ground_truth(a, a, *known)
    far = a[:, 0] > 120
    assert truth.errors[far].isnan().all()
    assert not truth.labels.unmatched_a[far].any()
    assert truth.labels.unmatched_a[~far].any()


def test_places_are_the_folders_of_sources() -> None:
    settings = MatcherTrainingSettings.from_dict(
        {"sources": [{"kind": "photos", "path": path} for path in ("a", "b", ".")]}
    )
    a, b, elsewhere = (
        places_of([photo], settings, Path("/d")) for photo in ("/d/a/1", "/d/b/1", "/x")
    )
    assert (a, b, elsewhere) == ({0, 2}, {1, 2}, frozenset())
    assert not are_different(a, b)  # the third source contains both
    assert are_different(a - {2}, b - {2})
    assert not are_different(a, elsewhere)


def test_a_part_keeps_matches_whose_keypoints_both_stay() -> None:
    rng = np.random.default_rng(0)
    keypoints = rng.uniform(0, 100, (60, 2)).astype(np.float32)
    size = np.array([100, 100], np.float32)
    descriptors = np.eye(60, dtype=np.float16)
    crop = CropKeypoints(keypoints, descriptors, size)
    rows = torch.arange(60)
    alone = torch.zeros(60, dtype=torch.bool)
    pair = StoredPair(crop, crop, Labels(torch.stack([rows, rows], 1), alone, alone), frozenset())
    smaller, whole = False, 0
    for seed in range(40):
        seen = random_part(pair, 30, np.random.default_rng(seed))
        ids = [crop.descriptors.argmax(1) for crop in (seen.a, seen.b)]
        assert max(map(len, ids)) <= 30
        assert {tuple(row) for row in seen.labels.matches.tolist()} == {
            (i, j) for i, a in enumerate(ids[0]) for j, b in enumerate(ids[1]) if a == b
        }
        distances = np.linalg.norm(keypoints[ids[0]][:, None] - keypoints[ids[1]], axis=2)
        assert seen.labels.unmatched_a.tolist() == (distances.min(1) > 6).tolist()
        assert (seen.a.keypoints <= seen.a.size).all()
        assert (seen.a.keypoints >= 0).all()
        smaller |= bool((seen.a.size < size).all())
        if (seen.a.size == size).all() and (seen.b.size == size).all():
            whole += 1
            assert len(seen.labels.matches) == 30  # a draw keeps both keypoints of a match or none
    assert smaller
    assert whole


def test_the_loss_of_one_batch_falls(data: Path, tmp_path: Path) -> None:
    settings = make_settings("light", different=0.4)
    objective = MatcherObjective(settings, data, tmp_path / "pairs")
    drawn = objective.dataset(0, 1)[0]
    assert not isinstance(drawn, D2NetError)
    batch = drawn.content
    optimizer = objective.optimizer(settings)
    losses = []
    for _ in range(40):
        loss, figures = objective(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert [len(labels.matches) == 0 for labels in batch.labels] == [True, False, False]
    assert figures["matches"] > 5
    assert losses[-1] < 0.6 * losses[0]


def test_features_are_stored_and_made_again_if_they_are_damaged(
    network: str, data: Path, tmp_path: Path
) -> None:
    def fill() -> dict[str, int]:
        MatcherObjective(make_settings(network), data, tmp_path / "pairs").dataset(0, 1)
        return {path.name: path.stat().st_mtime_ns for path in (tmp_path / "pairs").glob("*.npz")}

    first = fill()
    assert len(first) == 4
    assert fill() == first
    whole = (tmp_path / "pairs" / "000001.npz").read_bytes()
    damaged = {"000001.npz": whole[:-9], "000002.npz": b"", "000003.npz": b"damaged"}
    for name, content in damaged.items():
        (tmp_path / "pairs" / name).write_bytes(content)
    assert {name for name, time in fill().items() if time != first[name]} == damaged.keys()


def test_pairs_of_different_places_need_two_places(
    network: str, data: Path, tmp_path: Path
) -> None:
    sources = [{"kind": "photos", "path": path} for path in ("graf", ".")]
    with pytest.raises(InputError, match="different = 0"):
        MatcherObjective(make_settings(network, sources=sources), data, tmp_path / "pairs")


def test_a_run_resumes_with_the_same_bits_and_its_file_matches(
    network: str, data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def interrupt(stage: str, done: int, _: int | None) -> None:
        if stage.startswith("training") and done == 3:
            raise KeyboardInterrupt

    settings = make_settings(network, validation_pairs=2, name="m").updated(
        validation=[{"kind": "photos", "path": "graf", "min_correspondences": 16}]
    )
    with pytest.raises(KeyboardInterrupt):
        train(settings, tmp_path / "b", data=data, workers=0, progress=interrupt)
    paths = [train(settings, tmp_path / name, data=data, workers=0).weights for name in "ab"]
    one, two = (load_matcher(path)[0].state_dict() for path in paths)
    for name, value in one.items():
        assert torch.equal(value, two[name]), name
    assert "the confidence is not calibrated" in caplog.text  # two pairs are too few
    model = D2Net.from_pretrained(network, max_keypoints=64)
    a = model.extract(DATA / "graf1.jpg", max_edge=160)
    assert match(a, a, matcher=str(paths[0])).confidence is not None
    with pytest.raises(InputError, match="matches descriptors 'tiny"):
        match(a, replace(a, descriptor_id="other"), matcher=str(paths[0]))


def test_calibration_makes_confidences_true() -> None:
    generator = torch.Generator().manual_seed(0)
    true = torch.rand(20_000, generator=generator)
    right = (torch.rand(20_000, generator=generator) < true).long()
    stated = torch.sigmoid(3 * true.logit() + 1)  # too sure
    assert calibration_error(stated, right) > 0.1
    scale, shift = fit_calibration(stated, right)
    assert calibration_error(torch.sigmoid(scale * stated.logit() + shift), right) < 0.02
