"""Random sequences of extraction, matching, edits and stops, compared with undisturbed runs."""

from __future__ import annotations

import itertools
import os
import random
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from d2net import D2Net
from d2net.errors import D2NetError
from d2net.extraction.folder import extract_folder
from d2net.io.h5 import FeatureFile, MatchFile
from d2net.matching.match_pairs import match_pairs
from d2net.networks.vgg import VGG

from ..tiny import make_tiny_network

MODEL = D2Net(VGG(make_tiny_network()))
NAMES = [f"{folder}{number}.png" for folder in ("", "sub/") for number in range(4)]


class World:
    """Photos, masks, and the files made of them."""

    def __init__(self, root: Path, seed: int) -> None:
        self.random = random.Random(seed)
        self.root, self.photos, self.masks = root, root / "photos", root / "masks"
        self.steps: list[str] = []
        for name in NAMES:
            for folder in (self.photos, self.masks):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
        for name in NAMES[:5]:
            self.write(self.photos / name)
        self.write(self.masks / NAMES[0])

    def write(self, path: Path) -> None:
        pixels = np.random.default_rng(self.random.randrange(10**6)).integers(0, 256, (4, 6, 3))
        small = Image.fromarray(pixels.astype(np.uint8))
        if path.is_relative_to(self.masks):
            small = small.convert("1")
        small.resize((72, 48), Image.Resampling.BICUBIC if small.mode == "RGB" else 0).save(path)

    def edit(self) -> None:
        """Change photos or masks as people do; often within one tick of the clock."""
        folder = self.random.choice([self.photos, self.photos, self.masks])
        target = folder / self.random.choice(NAMES)
        known = sorted(path for path in folder.rglob("*.png"))
        source = self.random.choice(known or [target])
        kind = self.random.randrange(7)
        self.steps.append(f"edit {kind}: {source} {target}")
        with suppress(FileNotFoundError, shutil.SameFileError):
            match kind:
                case 0 | 1:
                    self.write(target)
                case 2:
                    source.unlink()
                case 3:
                    source.replace(target)
                case 4:
                    shutil.copy2(source, target)
                case 5:
                    times = source.stat()
                    self.write(source)  # the old time, as some programs leave it
                    os.utime(source, ns=(times.st_atime_ns, times.st_mtime_ns))
                case 6:
                    source.write_bytes(source.read_bytes()[:60])

    def extract(self) -> None:
        masks = self.masks if self.random.random() < 0.5 else None
        output = self.root / f"features{masks is not None}.h5"
        stop = self.random.choice([None, None, self.random.randrange(1, 6)])
        self.steps.append(f"extract {output} stop {stop}")
        fresh = self.root / "fresh.h5"
        fresh.unlink(missing_ok=True)
        expected = outcome(extract_folder, MODEL, self.photos, fresh, masks=masks)
        came = outcome(
            extract_folder, MODEL, self.photos, output, masks=masks, progress=stopping(stop)
        )
        if isinstance(came, KeyboardInterrupt) or isinstance(expected, D2NetError):
            assert isinstance(came, KeyboardInterrupt) or str(came) == str(expected)
            return
        assert came.failed == expected.failed
        assert {*came.extracted, *came.skipped} == {*expected.extracted}
        with FeatureFile(fresh) as right, FeatureFile(output) as features:
            old = {*features} & {*came.failed}
            assert {*features} >= {*right}
            assert len(features) == len(right) + len(old) + came.other_photos
            for name in right:
                same(features[name], right[name])

    def match(self) -> None:
        source = self.root / f"features{self.random.random() < 0.5}.h5"
        if not source.exists():
            return
        with FeatureFile(source) as file:
            pairs = list(itertools.combinations(sorted(file), 2))
        pairs = self.random.sample(pairs, min(len(pairs), self.random.randrange(1, 8)))
        pairs = [pair[:: self.random.choice([1, -1])] for pair in pairs]
        output, fresh = source.with_name(f"matches-{source.name}"), self.root / "fresh-matches.h5"
        stop = self.random.choice([None, None, self.random.randrange(1, 6)])
        self.steps.append(f"match {source} {pairs} stop {stop}")
        fresh.unlink(missing_ok=True)
        expected = outcome(match_pairs, source, pairs, fresh)
        came = outcome(match_pairs, source, pairs, output, progress=stopping(stop))
        if isinstance(came, KeyboardInterrupt) or isinstance(expected, D2NetError):
            assert isinstance(came, KeyboardInterrupt) or str(came) == str(expected)
            return
        assert {*came.matched, *came.skipped} == {*expected.matched}
        with MatchFile(fresh) as right, MatchFile(output) as matches:
            for pair in pairs:
                same(matches.get(*pair), right.get(*pair))


def outcome(run: Any, *values: Any, **options: Any) -> Any:
    """The result or the error."""
    try:
        return run(*values, **options)
    except (D2NetError, KeyboardInterrupt) as error:
        return error


def stopping(number: int | None) -> Any:
    """Progress that stops a run, as Ctrl-C does."""
    calls = itertools.count()

    def progress(*_: object) -> None:
        if next(calls) == number:
            raise KeyboardInterrupt

    return progress


def same(a: Any, b: Any) -> None:
    for name, value in vars(a).items():
        other = getattr(b, name)
        assert torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other


@pytest.mark.parametrize("seed", range(3))
def test_random_runs(tmp_path: Path, seed: int) -> None:
    world = World(tmp_path, seed)
    try:
        for _ in range(40):
            world.random.choice([world.edit, world.edit, world.extract, world.match])()
    except BaseException:
        print("\n".join(world.steps))
        raise
