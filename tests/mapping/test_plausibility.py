"""Photos that do not belong in a map, and the verdict on a map."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pycolmap
import pytest

from d2net.mapping.plausibility import camera_fault, judge_map, remove_impossible_photos

from .clouds import ball, synthetic, upright


def lens(*params: float) -> pycolmap.Camera:
    return pycolmap.Camera(model="SIMPLE_RADIAL", width=640, height=480, params=params)


@pytest.mark.parametrize(
    ("camera", "fault"),
    [
        (lens(9_981_934, 320, 240, -1.9e7), "focal length"),
        (lens(20, 320, 240, 0), "focal length"),
        (lens(768, 320, 240, -3.0), "folds"),
        (lens(-768, 320, 240, 0), "focal length"),
        (lens(768, 320, 240, -0.2), None),
        (lens(500, 300, 250, 0.3), None),
        (lens(3000, 320, 240, 0), None),
    ],
)
def test_cameras_that_no_lens_has(camera: pycolmap.Camera, fault: str | None) -> None:
    reason = camera_fault(camera)
    assert reason is None if fault is None else fault in (reason or "")


def test_photos_with_impossible_cameras_or_without_points_are_removed() -> None:
    made = synthetic(frames=6)
    bad, empty, *good = made.images.values()
    other = pycolmap.Camera(made.cameras[bad.camera_id].todict())
    assert len(made.cameras) == 1
    for row in range(len(empty.points2D)):
        if empty.points2D[row].has_point3D():
            made.delete_observation(empty.image_id, row)
    kept, removed = remove_impossible_photos([made], refine=True)
    assert list(removed) == [empty.name]
    assert made.num_reg_images() == 5
    other.params = [1e7, *other.params[1:]]
    made.cameras[bad.camera_id].params = other.params
    kept, removed = remove_impossible_photos([made], refine=True)
    assert not kept
    assert set(removed) == {bad.name, *(image.name for image in good)}


def test_a_map_with_few_points_is_doubtful(tmp_path: Path) -> None:
    good = judge_map(synthetic(points=200), tmp_path / "no.db", 4.0)
    doubtful = judge_map(synthetic(points=30), tmp_path / "no.db", 4.0)
    assert (good.verdict, doubtful.verdict) == ("good", "doubtful")
    assert "30 points per photo" in doubtful.reasons[0]


def test_a_map_of_nearly_parallel_rays_is_doubtful(tmp_path: Path) -> None:
    centres = np.array([[x, -40.0, 0] for x in (-1.0, 0.0, 1.0)])
    verdict = judge_map(upright(ball(), centres), tmp_path / "no.db", 4.0)
    assert "one direction (2.9 degrees" in verdict.reasons[0]
