"""Cameras that do not fit the photos are reported before any work."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pycolmap
import pytest
from PIL import Image

from ..tiny import SIZE, write_photos
from .conftest import Run

WIDTH, HEIGHT = SIZE


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ("nan,48,40,0", "needs finite numbers and a positive focal length, not nan, 48, 40, 0"),
        ("-90,48,40,0", "a positive focal length, not -90, 48, 40, 0"),
        ("90,48,40", "SIMPLE_RADIAL takes the parameters f, cx, cy, k, not 3 numbers"),
        ("90,480,40,0", f"is outside a photo of {WIDTH} x {HEIGHT}"),
        ("90;48", "--camera-params takes F,CX,CY,..., not '90;48'"),
    ],
)
def test_known_parameters_of_a_map(d2net: Run, photos: Path, params: str, message: str) -> None:
    run = d2net("reconstruct", photos, "-o", "map", f"--camera-params={params}")
    assert run.code == 2
    assert message in run.err
    assert run.err.count("\n") == 1
    assert not Path("map").exists()


@pytest.mark.parametrize("options", [("--camera-params", "90,48,40,0"), ("--camera-mode=single",)])
def test_photos_of_two_sizes_share_no_camera(
    d2net: Run, photos: Path, options: tuple[str, ...]
) -> None:
    Image.new("RGB", (64, 48)).save(photos / "small.png")
    run = d2net("reconstruct", photos, "-o", "map", *options)
    assert run.code == 2
    assert f"a.png ({WIDTH} x {HEIGHT}) and small.png (64 x 48) cannot" in run.err
    assert not Path("map").exists()


def write_model(folder: Path, names: list[str]) -> None:
    """Cameras of half the photos' size."""
    model = pycolmap.synthesize_dataset(
        pycolmap.SyntheticDatasetOptions(
            num_rigs=1, num_cameras_per_rig=1, num_frames_per_rig=len(names), num_points3D=20
        )
    )
    for camera in model.cameras.values():
        camera.rescale(WIDTH // 2, HEIGHT // 2)
    for image, name in zip(model.images.values(), names, strict=True):
        image.name = name
    folder.mkdir()
    model.write_text(folder)


def test_cameras_of_known_poses_and_of_benchmarks(
    d2net: Run, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("D2NET_CACHE", str(here / "cache"))
    names = ["a.png", "b.png", "c.png"]
    write_photos(here / "scene" / "images", *names)
    write_model(here / "scene" / "model", names)
    runs = [d2net("reconstruct", "scene/images", "-o", "map", "--poses", "scene/model")]
    for protocol in ("pose", "reconstruction", "localization"):
        runs.append(d2net("evaluate", protocol, "scene", "--features", "rootsift"))
    for run in runs:
        assert run.code == 2
        sizes = f"{WIDTH} x {HEIGHT} pixels, but its camera {WIDTH // 2} x {HEIGHT // 2}"
        assert f".png has {sizes}; they must be the same\n" in run.err
    assert not Path("map").exists()
    assert not list(here.glob("cache/**/*.h5*"))


def test_cameras_of_queries(d2net: Run, photos: Path) -> None:
    """Before the map is opened."""
    line = "a.png SIMPLE_PINHOLE 48 40 90 24 20\n"
    for text, message in (
        (line, f"a.png has {WIDTH} x {HEIGHT} pixels, but its camera 48 x 40"),
        (line.replace("a.png", "b.png"), "the list of intrinsics cameras.txt does not name a.png"),
        (line.replace("90", "-90"), "a positive focal length, not -90, 24, 20"),
    ):
        Path("cameras.txt").write_text(text)
        run = d2net("localize", "map", photos / "a.png", "--intrinsics", "cameras.txt")
        assert run.code == 2
        assert message in run.err
        assert run.err.count("\n") == 1


def test_turned_photos_fit_their_cameras(d2net: Run, photos: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    noise = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)
    Image.fromarray(noise).save(photos / "turned.png", exif=exif)
    Path("cameras.txt").write_text(f"turned.png SIMPLE_PINHOLE {HEIGHT} {WIDTH} 90 24 20\n")
    run = d2net("localize", "map", photos / "turned.png", "--intrinsics", "cameras.txt")
    assert "map is not a map" in run.err
