"""A hundred photos made into a map, stage by stage, and a query placed in it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from benchmarks.table import Row
from benchmarks.timing import medians_in_turn
from d2net import Map, find_images, match
from d2net.features import Features

PHOTOS = Path(
    os.environ.get(
        "D2NET_PHOTOS",
        Path(__file__).parents[2] / "shared/data/train/statue_of_liberty/images",
    )
)
NUMBER = 100
QUERIES = 3

SCRIPT = """
import json, sys
from pathlib import Path
import d2net
from d2net.mapping.reconstruct import reconstruct

def peak():
    with open("/proc/self/status") as status:
        return next(1024 * int(line.split()[1]) for line in status if line.startswith("VmHWM"))

names = {"extracting": "features", "matching": "matches", "verifying": "verification"}
peaks, stage = {}, "features"
def progress(now, done, total):
    global stage
    now = now.partition(":")[0]
    now = names.get(now, now)
    if now != stage:
        peaks[stage] = peak()
        Path("/proc/self/clear_refs").write_text("5")  # the next stage has a peak of its own
        stage = now

model = d2net.D2Net.from_pretrained()
# A single camera, as in the model that came with the photos.
summary = reconstruct(
    sys.argv[1], sys.argv[2], model=model, camera_mode="single", progress=progress
)
peaks[stage] = peak()
print(json.dumps([summary.num_registered, summary.num_points, dict(summary.seconds), peaks]))
"""


def rows() -> list[Row]:
    """None without the photos, or elsewhere than on Linux."""
    if not PHOTOS.is_dir() or sys.platform != "linux":
        return []
    found = find_images([PHOTOS])
    if len(found) < NUMBER + QUERIES:
        sys.exit(f"{PHOTOS} holds {len(found)} photos; {NUMBER + QUERIES} of one place are wanted")
    with TemporaryDirectory() as work:
        photos, map_ = Path(work, "photos"), Path(work, "map")
        for photo in found[:NUMBER]:
            link = photos / photo.name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(photo.path.resolve())
        command = [sys.executable, "-c", SCRIPT, str(photos), str(map_)]
        run = subprocess.run(command, capture_output=True, text=True, check=True)
        registered, points, seconds, peaks = json.loads(run.stdout)
        queries = [photo.path for photo in found[NUMBER : NUMBER + QUERIES]]
        return [*_stages(registered, points, seconds, peaks), *_query(Map.open(map_), queries)]


def _stages(
    registered: int, points: int, seconds: dict[str, float], peaks: dict[str, int]
) -> list[Row]:
    total, slowest = sum(seconds.values()), max(seconds, key=lambda stage: seconds[stage])
    whole = Row(
        f"a map of {NUMBER} photos of 640 px: seconds",
        f"{total:,.0f}",
        "-",
        True,
        f"longest stage: {slowest}; peak memory {max(peaks.values()) / 1e9:.2f} GB; "
        f"{registered} photos registered, {points:,} points",
        headline=True,
    )
    stages = [
        Row(
            f"a map of {NUMBER} photos, stage `{stage}`: share of the time",
            f"{share / total:.1%}",
            "-",
            True,
            f"{share:,.1f} s"
            + (f", peak memory {peaks[stage] / 1e9:.2f} GB" if stage in peaks else ""),
        )
        for stage, share in seconds.items()
    ]
    return [whole, *stages]


def _query(opened: Map, photos: list[Path]) -> list[Row]:
    """A query's time, its parts, and where the map's features are read from."""
    features = {photo: opened.model.extract(photo) for photo in photos}
    retrieved = {photo: opened.localize(photo).photos for photo in photos}
    kept = {name: opened.features(name) for names in retrieved.values() for name in names}

    def each(work: Callable[[Path], object]) -> Callable[[], object]:
        def run() -> None:
            for photo in photos:
                opened.features.cache_clear()  # as for the first query
                work(photo)

        return run

    with TemporaryDirectory() as work:
        stored = _stored(kept, Path(work))
        seconds = medians_in_turn(
            {
                "query": each(opened.localize),
                "extraction": each(opened.model.extract),
                "matching": each(lambda p: [match(features[p], kept[n]) for n in retrieved[p]]),
                "reading": each(lambda p: [opened.features(name) for name in retrieved[p]]),
                "mapped": each(lambda p: [np.array(stored[name]) for name in retrieved[p]]),
            },
            rounds=5,
        )
    ms = {name: 1000 * value / len(photos) for name, value in seconds.items()}
    rest = ms["query"] - ms["extraction"] - ms["matching"]
    return [
        Row(
            f"a query in a map of {len(opened.names)} photos: share of the time besides extraction "
            "and matching",
            f"{rest / ms['query']:.1%}",
            "at most 10%",
            rest <= 0.1 * ms["query"],
            f"{rest:.0f} of {ms['query']:.0f} ms; extraction {ms['extraction']:.0f} ms, matching "
            f"{ms['matching']:.0f} ms",
            headline=True,
        ),
        Row(
            "a query: share of the time for reading the features of the matched map photos from "
            "HDF5",
            f"{ms['reading'] / ms['query']:.1%}",
            "at most 10%",
            ms["reading"] <= 0.1 * ms["query"],
            f"{ms['reading']:.0f} ms; descriptors alone from memory-mapped files "
            f"{ms['mapped']:.0f} ms",
        ),
    ]


def _stored(features: dict[str, Features], folder: Path) -> dict[str, NDArray[np.float16]]:
    """Descriptors in memory-mapped files."""
    stored = {}
    for number, (name, photo) in enumerate(features.items()):
        file = folder / f"{number}.npy"
        np.save(file, photo.descriptors.half().numpy())
        stored[name] = np.load(file, mmap_mode="r")
    return stored
