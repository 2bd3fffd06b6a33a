"""Photos that do not belong in a map, and the verdict on a map."""

from __future__ import annotations

from itertools import combinations
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
    bad, empty, *_ = made.images.values()
    names = {image.name for image in made.images.values()}
    empty_name, camera_id = empty.name, bad.camera_id
    other = pycolmap.Camera(made.cameras[camera_id].todict())
    assert len(made.cameras) == 1
    for row in range(len(empty.points2D)):
        if empty.points2D[row].has_point3D():
            made.delete_observation(empty.image_id, row)
    kept, removed = remove_impossible_photos([made], refine=True)
    assert list(removed) == [empty_name]
    assert made.num_reg_images() == 5
    other.params = [1e7, *other.params[1:]]
    made.cameras[camera_id].params = other.params
    kept, removed = remove_impossible_photos([made], refine=True)
    assert not kept
    assert set(removed) == names - {empty_name}


def test_a_map_of_nearly_parallel_rays_is_doubtful(tmp_path: Path) -> None:
    verdicts = []
    for distance in (4, 40):
        model = upright(ball(), np.array([[x, -distance, 0] for x in (-1.0, 0.0, 1.0)]))
        noise = pycolmap.SyntheticNoiseOptions()
        noise.point2D_stddev = 0.5
        pycolmap.set_random_seed(3)
        pycolmap.synthesize_noise(noise, model)
        verdicts.append(judge_map(model, tmp_path / "no.db"))
    assert [verdict.verdict for verdict in verdicts] == ["good", "doubtful"]
    assert "barely constrain the cameras" in verdicts[1].reasons[0]


def test_a_camera_that_few_points_determine_is_named(tmp_path: Path) -> None:
    model = upright(ball(), np.array([[x, -6.0, 0] for x in (-2.0, -1.0, 0.0, 1.0, 2.0)]))
    noise = pycolmap.SyntheticNoiseOptions()
    noise.point2D_stddev = 0.5
    pycolmap.set_random_seed(3)
    pycolmap.synthesize_noise(noise, model)
    assert judge_map(model, tmp_path / "no.db").uncertain == ()
    poor = model.images[5]
    for row in range(5, len(poor.points2D)):
        model.delete_observation(5, row)
    judged = judge_map(model, tmp_path / "no.db")
    assert (judged.verdict, judged.uncertain) == ("good", (poor.name,))


def test_a_photo_without_points_does_not_prevent_a_verdict(tmp_path: Path) -> None:
    model = synthetic()
    empty = next(iter(model.images.values()))
    for row, seen in enumerate(empty.points2D):
        if seen.has_point3D():
            model.delete_observation(empty.image_id, row)
    assert judge_map(model, tmp_path / "no.db").verdict == "good"


def test_pairs_whose_matches_have_no_points_contradict_the_map(tmp_path: Path) -> None:
    made = upright(ball(), np.array([[x, -6.0, 0] for x in (-2.0, -1.0, 0.0, 1.0, 2.0)]))
    database = tmp_path / "database.db"
    rows = np.arange(150, dtype=np.uint32)
    with pycolmap.Database.open(database) as opened:
        opened.write_camera(made.cameras[1], True)
        for rig in made.rigs.values():
            opened.write_rig(rig, True)
        for frame in made.frames.values():
            opened.write_frame(frame, True)
        for image in made.images.values():
            opened.write_image(image, True)
        for first, second in combinations(sorted(made.images), 2):
            geometry = pycolmap.TwoViewGeometry()
            geometry.config = pycolmap.TwoViewGeometryConfiguration.UNCALIBRATED
            same = (first, second) != (1, 2)
            geometry.inlier_matches = np.stack([rows, rows if same else rows[::-1]], axis=1)
            opened.write_two_view_geometry(first, second, geometry)
    assert judge_map(made, database).verdict == "good"  # one of ten pairs
    for row in rows:
        made.delete_observation(5, int(row))
    assert "5 of 10 pairs contradict" in " ".join(judge_map(made, database).reasons)
    advice = "give --camera-params, or --camera-mode single"
    assert advice.partition(",")[0] in judge_map(made, database).reasons[-1]
    assert advice not in judge_map(made, database).reasons[-1]  # they share a camera
    made.add_camera(pycolmap.Camera({**made.cameras[1].todict(), "camera_id": 2}))
    assert advice in judge_map(made, database).reasons[-1]
