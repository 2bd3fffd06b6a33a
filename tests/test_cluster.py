"""Work on a cluster of two nodes on this machine, of which one is killed in mid-run."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from d2net.cluster import share
from d2net.errors import D2NetError, InputError, OutputError
from d2net.extraction.folder import extract_folder
from d2net.io.h5 import FeatureFile, MatchFile
from d2net.io.image_lists import find_images
from d2net.matching.match_pairs import match_pairs

from . import cluster_work as work
from .io.samples import as_set, assert_same_features
from .tiny import make_tiny_model, write_photos

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::FutureWarning:ray"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # Ray's, of its processes' files
]

NAMES = [f"{i % 3}/{i:02}.png" for i in range(28)]


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[Any]:
    """A cluster of two nodes with a core each, and this process connected to it."""
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("RAY_worker_niceness", "0")  # else they starve where others work too
        cluster = Cluster()
        try:
            cluster.add_node(num_cpus=0, include_dashboard=False)  # the head, which only directs
            cluster.nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
            ray.init(cluster.address, logging_level=logging.ERROR, log_to_driver=False)
            cluster.wait_for_nodes()
            yield cluster
        finally:
            ray.shutdown()
            cluster.shutdown()


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("cluster") / "photos", *NAMES)


def assert_same_files(found: Path, expected: Path) -> None:
    with FeatureFile(found) as a, FeatureFile(expected) as b:
        assert list(a) == list(b)
        assert a.settings == b.settings
        for name in a:
            assert_same_features(a[name], b[name])


# --- The engine ------------------------------------------------------------------------------


def test_every_part_once_on_all_nodes(two_nodes: Any) -> None:
    results = list(share("auto", work.double, {"factor": 2}, range(40), batch=1, gpu=False))
    assert sorted(result for _, result in results) == [2 * i for i in range(40)]
    assert len({process for process, _ in results}) == 2


def test_errors_are_the_works_own(two_nodes: Any) -> None:
    with pytest.raises(InputError, match=r"^no photo 1$"):
        list(share("auto", work.refuse, "no photo", [1], batch=1, gpu=False))


def test_work_that_kills_its_process_ends(
    two_nodes: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("d2net.cluster._MAX_RETRIES", 1)
    with pytest.raises(D2NetError, match="died 2 times"):
        list(share("auto", work.die, tmp_path / "notes", [1], batch=1, gpu=False))
    assert (tmp_path / "notes").read_text() == "xx"


# --- Photos and pairs -------------------------------------------------------------


def test_as_one_process_does_it(two_nodes: Any, photos: Path, tmp_path: Path) -> None:
    (photos / "bad.jpg").write_text("no photo")
    calls: list[int] = []
    listed = find_images([photos])
    try:
        for output, cluster in (("many.h5", "auto"), ("one.h5", None)):
            summary = extract_folder(
                make_tiny_model(),
                listed,
                tmp_path / output,
                cluster=cluster,
                progress=lambda stage, done, total: calls.append(done),
            )
            assert sorted(summary.extracted) == sorted(NAMES)
            assert list(summary.failed) == ["bad.jpg"]
            assert summary.skipped == []
    finally:
        (photos / "bad.jpg").unlink()
    on_cluster = calls[: calls.index(len(listed)) + 1]
    assert on_cluster[0] == 0
    assert on_cluster == sorted(on_cluster)
    assert_same_files(tmp_path / "many.h5", tmp_path / "one.h5")
    again = extract_folder(make_tiny_model(), listed, tmp_path / "many.h5", cluster="auto")
    assert again.skipped == sorted(NAMES)

    pairs = list(combinations(sorted(NAMES)[:8], 2))
    for output, cluster in (("many m.h5", "auto"), ("one m.h5", None)):
        matched = match_pairs(
            tmp_path / "many.h5", pairs, tmp_path / output, verify="homography", cluster=cluster
        )
        assert list(matched.matched) == pairs
    with MatchFile(tmp_path / "many m.h5") as many, MatchFile(tmp_path / "one m.h5") as one:
        assert many.pairs == one.pairs == sorted(pairs)
        assert many.settings == one.settings
        for pair in pairs:
            assert as_set(many.get(*pair)) == as_set(one.get(*pair))


def test_nothing_is_left_when_no_photo_can_be_read(two_nodes: Any, tmp_path: Path) -> None:
    (tmp_path / "bad.jpg").write_text("no photo")
    with pytest.raises(InputError, match="no photo could be extracted"):
        extract_folder(
            make_tiny_model(), find_images([tmp_path]), tmp_path / "f.h5", cluster="auto"
        )
    assert [path.name for path in tmp_path.iterdir()] == ["bad.jpg"]


def test_other_settings_are_refused(two_nodes: Any, photos: Path, tmp_path: Path) -> None:
    few = find_images([photos])[:3]
    extract_folder(make_tiny_model(), few, tmp_path / "f.h5", cluster="auto")
    with pytest.raises(OutputError, match="max_keypoints was 4096, is now 5"):
        extract_folder(make_tiny_model(), few, tmp_path / "f.h5", cluster="auto", max_keypoints=5)


def test_every_photo_is_done_once_although_a_node_dies(
    two_nodes: Any, photos: Path, tmp_path: Path
) -> None:
    """The last test: one node is gone then."""
    listed = find_images([photos])
    notes = tmp_path / "notes"
    notes.touch()

    def done() -> list[str]:
        return notes.read_text().split()

    def kill() -> None:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and len(set(done())) < 2:  # until both nodes work
            time.sleep(0.05)
        two_nodes.remove_node(two_nodes.nodes.pop(), allow_graceful=False)

    killer = threading.Thread(target=kill)
    killer.start()
    model = work.WatchedModel(notes, seconds=0.4)
    summary = extract_folder(model, listed, tmp_path / "many.h5", cluster="auto")
    killer.join()
    processes = done()
    assert len(set(processes)) >= 2
    assert len(NAMES) <= len(processes)  # the batch that the dead one had begun is done again
    assert sorted(summary.extracted) == sorted(NAMES)
    extract_folder(make_tiny_model(), listed, tmp_path / "one.h5")
    assert_same_files(tmp_path / "many.h5", tmp_path / "one.h5")
    assert not list(tmp_path.rglob("*.partial"))
