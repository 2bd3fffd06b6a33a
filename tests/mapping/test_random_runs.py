"""Random sequences of runs, edits and stops: stopped runs never change the map made after them."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Container
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pycolmap
import pytest
from PIL import Image

from d2net.errors import D2NetError, FormatError, InputError
from d2net.io.h5 import FeatureFile
from d2net.mapping import stages
from d2net.mapping.localize import Map
from d2net.mapping.map_folder import MapFolder
from d2net.mapping.mapper import verified_pairs
from d2net.mapping.reconstruct import add_photos, reconstruct
from d2net.matching.pair_selection import PairChoice

from .made import LENS, SIZE, PreparedNetwork, camera, seen, write_photos

POSES = [camera(x, -4 * x) for x in np.linspace(-2.5, 2.5, 8)]
PREPARED = [*map(seen, POSES), *(seen(pose, other=True) for pose in POSES[:4])]
STAGES = [
    "match_pairs",
    "write_database",
    "verify_pairs",
    "run_mapper",
    "read_cloud",  # at the beginning of the report
    "write_report",
]
OPTIONS: list[dict[str, Any]] = [{}, {}, {"camera_mode": "single"}, {"camera_model": "PINHOLE"}]


class World:
    """Two folders of photos, a map, and a copy of the map from the last finished run."""

    def __init__(self, root: Path, seed: int) -> None:
        self.random = random.Random(seed)
        self.root = root
        self.folders = [root / "a", root / "b"]
        self.map, self.copy = root / "map", root / "copy"
        self.steps: list[str] = []
        write_photos(self.folders[0], range(5))
        write_photos(self.folders[1], self.random.sample(range(5, 8), 2))
        self.masks = root / "masks" if seed % 2 else None  # a map is made with masks or without
        for name in ("photo00.png", "photo05.png", "photo06.png", "photo07.png"):
            self.write_mask(name, 60)

    def write_mask(self, name: str, hidden: int) -> None:
        """Write a mask that hides the left columns of a photo."""
        if self.masks is not None:
            self.masks.mkdir(exist_ok=True)
            mask = Image.new("L", SIZE, "white")
            mask.paste("black", (0, 0, hidden, SIZE[1]))
            mask.save(self.masks / name)

    def edit(self) -> None:
        """Change the photos, the masks or the place of the map, as people do."""
        photos = sorted(path for folder in self.folders for path in folder.iterdir())
        photo = self.random.choice(photos)
        other = self.random.choice(self.folders) / f"photo{self.random.randrange(12):02}.png"
        match self.random.randrange(11):
            case 0:
                self.steps.append(f"write {other}")
                write_photos(other.parent, [int(other.stem[-2:])])
            case 1 if len(photos) > 3:
                self.steps.append(f"delete {photo}")
                photo.unlink()
            case 2:
                self.steps.append(f"move {photo} to {other}")
                photo.replace(other)
            case 3:
                self.steps.append(f"copy {photo} to {other}")
                with suppress(shutil.SameFileError):
                    shutil.copy2(photo, other)
            case 4:
                self.steps.append(f"touch {photo}")
                photo.write_bytes(photo.read_bytes() + b"edited")
            case 5:
                self.steps.append(f"damage {photo}")
                photo.write_bytes(photo.read_bytes()[:40])
            case 6:
                number = self.random.randrange(2)
                old = self.folders[number]
                self.folders[number] = old.with_name(
                    {"a": "c", "c": "a", "b": "d", "d": "b"}[old.name]
                )
                self.steps.append(f"rename {old} to {self.folders[number]}")
                old.rename(self.folders[number])
            case 7:
                hidden = self.random.choice([0, 100, 200, SIZE[0]])
                self.steps.append(f"mask {hidden} columns of {other.name}")
                self.write_mask(other.name, hidden)
            case 8:
                self.steps.append(f"position of {other}")
                write_photos(other.parent, [int(other.stem[-2:])])
                with Image.open(other) as image:
                    image.save(other, exif=self.position(int(other.stem[-2:])))
            case 9 if self.map.exists():
                self.map = self.map.rename(self.root / f"map {len(self.steps)}")
                self.steps.append(f"rename the map to {self.map}")
            case 10:
                self.steps.append("back up, or restore the backup")
                backups = [self.root / "backup of map", self.root / "backup of copy"]
                if self.copy.exists() and not backups[1].exists():
                    for place, backup in zip((self.map, self.copy), backups, strict=True):
                        shutil.copytree(place, backup)
                elif backups[1].exists():
                    for place, backup in zip((self.map, self.copy), backups, strict=True):
                        shutil.rmtree(place)
                        backup.rename(place)

    def position(self, number: int) -> Image.Exif:
        """EXIF data with the place of a camera on the earth, sometimes a wrong one."""
        x = np.linspace(-2.5, 2.5, 8)[number % 8] * self.random.choice([1, 1, 3])
        seconds = 3600 * (8 + x / 70_000), 3600 * (50 + np.sin(2 * x) / 222_000)
        east, north = ((0.0, 0.0, round(value, 6)) for value in seconds)
        exif = Image.Exif()
        exif[0x8825] = {1: "N", 2: north, 3: "E", 4: east, 5: b"\0", 6: 100.0}
        return exif

    def run(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Make the map or add photos, sometimes stop, and compare with an undisturbed run."""
        adding = self.copy.exists() and self.random.random() < 0.6
        photos = self.folders[adding != (self.random.random() < 0.1)]
        stage = self.random.choice([*STAGES, None, None, None, None, None])
        options = dict(self.random.choice(OPTIONS))
        if self.masks is not None:
            options["masks"] = self.masks
        if not adding and self.random.random() < 0.3:
            method = self.random.choice(["exhaustive", "sequential", "retrieval", "gps"])
            options["pairs"] = PairChoice(method=method, num_matched=3, overlap=2)
        if not adding and self.random.random() < 0.3:
            poses = true_model([path.name for path in photos.iterdir()])
            ends = ("photo00.png", "photo01.png", 2.0)
            options |= self.random.choice([{"poses": poses}, {"known_distance": ends}])
        self.steps.append(f"{'add' if adding else 'reconstruct'} {photos} {options} stop {stage}")
        if "poses" in options:
            shutil.rmtree(self.root / "poses", ignore_errors=True)
            (self.root / "poses").mkdir()
            options["poses"].write_text(self.root / "poses")
            options["poses"] = self.root / "poses"
        model = PreparedNetwork(PREPARED)

        def into(folder: Path) -> dict[str, Any]:
            if adding:
                return add_photos(folder, photos, model=model, **options).to_dict()
            return reconstruct(photos, folder, model=model, **options).to_dict()

        before = finished_files(self.map)
        with monkeypatch.context() as patched:
            if stage is not None:
                patched.setattr(stages, stage, _interrupt)
            came = outcome(into, self.map)
        if not isinstance(came, dict):
            assert "FormatError" not in came  # d2net wrote the files itself
            assert finished_files(self.map) == before
            if self.copy.exists() and stage is None and "run the stopped" not in came:
                undisturbed = shutil.copytree(self.copy, self.root / "undisturbed")
                expected = outcome(into, undisturbed)
                assert expected == came.replace(str(self.map), str(undisturbed))
                shutil.rmtree(undisturbed)
            return
        fresh = shutil.copytree(self.copy, self.root / "fresh") if adding else self.root / "fresh"
        assert outcome(into, fresh) == came
        assert sparse_of(fresh) == sparse_of(self.map)
        assert database_of(fresh) == database_of(self.map)
        shutil.rmtree(self.copy, ignore_errors=True)
        fresh.rename(self.copy)

    def check(self) -> None:
        """What the map says of itself is true, or it asks to be made again."""
        if not self.copy.exists():
            return
        folder, network = MapFolder(self.map), PreparedNetwork([*PREPARED, seen(camera(0.9, 6))])
        try:
            opened = Map(folder, network)
        except InputError as error:
            assert "run the stopped d2net reconstruct again" in str(error)
            return
        query = np.full((SIZE[1], SIZE[0], 3), len(PREPARED), np.uint8)
        came, expected = (
            m.localize(query, camera=LENS) for m in (opened, Map(MapFolder(self.copy), network))
        )
        assert came.verdict == expected.verdict
        if came.cam_from_world is not None:
            poses = [answer.cam_from_world.matrix() for answer in (came, expected)]
            np.testing.assert_array_equal(*poses)
        report = json.loads((self.map / "report.json").read_text())
        assert sum(len(part["photos"]) for part in report["maps"]) >= len(opened.names)
        with FeatureFile(folder.features) as features:
            for model, _ in folder.read_models():
                for image in model.images.values():
                    rows = np.array([point.xy for point in image.points2D])
                    kept = features[image.name].keypoints.numpy() + 0.5
                    np.testing.assert_allclose(rows, kept, atol=1e-3)
                    with suppress(FormatError):
                        shade = int(folder.read_photo(image.name)[0, 0, 0])
                        prepared = PREPARED[shade].keypoints.numpy() + 0.5
                        distances = np.abs(rows[:, None] - prepared).max(axis=2).min(axis=1)
                        assert distances.max(initial=0) < 1e-3
                        assert self.masks is not None or len(rows) == len(prepared)


def true_model(names: Container[str]) -> pycolmap.Reconstruction:
    """The true poses of the photos whose names say their original shade."""
    model = pycolmap.Reconstruction()
    lens = pycolmap.Camera(LENS.todict())
    lens.camera_id = 1
    model.add_camera_with_trivial_rig(lens)
    for number, (pose, prepared) in enumerate(zip(POSES, PREPARED, strict=False)):
        name = f"photo{number:02}.png"
        if name in names:
            points = prepared.keypoints.double().numpy() + 0.5
            image = pycolmap.Image(name=name, keypoints=points, camera_id=1, image_id=number + 1)
            model.add_image_with_trivial_frame(image, pose)
    return model


def outcome(run: Callable[[Path], dict[str, Any]], folder: Path) -> dict[str, Any] | str:
    """The summary without times, or the text of the error."""
    try:
        summary = run(folder)
    except (D2NetError, KeyboardInterrupt) as error:
        return repr(error)
    return {key: value for key, value in summary.items() if key != "seconds"}


def finished_files(folder: Path) -> dict[str, bytes]:
    """The files of a map that runs replace."""
    names = ("database.db", "map.json", "pairs.txt", "report.json", "map.html", "map.png")
    files = [*(folder / name for name in names), *(folder / "sparse").rglob("*.*")]
    known = {str(file.relative_to(folder)): file.read_bytes() for file in files if file.exists()}
    return known if (folder / "sparse").exists() else {}


def sparse_of(folder: Path) -> dict[str, bytes]:
    return {name: data for name, data in finished_files(folder).items() if "sparse" in name}


def database_of(folder: Path) -> list[object]:
    database = folder / "database.db"
    with pycolmap.Database.open(database) as content:
        images = [(image.image_id, image.name) for image in content.read_all_images()]
        cameras = [str(camera) for camera in content.read_all_cameras()]
    return [
        images,
        cameras,
        [(a, b, len(view.inlier_matches)) for a, b, view in verified_pairs(database)],
    ]


def _interrupt(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    "seed", [*range(3), *(pytest.param(s, marks=pytest.mark.slow) for s in range(3, 20))]
)
def test_random_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    world = World(tmp_path, seed)
    try:
        for _ in range(15):
            if world.random.random() < 0.4:
                world.edit()
            else:
                world.run(monkeypatch)
            world.check()
    except BaseException:
        print("\n".join(world.steps))
        raise
