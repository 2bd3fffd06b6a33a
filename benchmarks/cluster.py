"""Photos per second of two workers with one core each, on a Ray cluster, against one."""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.table import Row
from d2net import D2Net, extract_folder
from d2net.io.image_lists import FoundImage

PHOTO = Path(__file__).parents[1] / "tests" / "data" / "graf1.jpg"
PHOTOS = 24
TARGET = 1.8


def rows() -> list[Row]:
    """One row; none without Ray."""
    if importlib.util.find_spec("ray") is None:
        return []
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
    import ray
    from ray.cluster_utils import Cluster

    model = D2Net.from_pretrained()
    cluster: Any = Cluster()
    try:
        cluster.add_node(num_cpus=0, include_dashboard=False)
        ray.init(cluster.address, logging_level=logging.ERROR, log_to_driver=False)
        rates = []
        for _ in range(2):
            cluster.add_node(num_cpus=1)
            cluster.wait_for_nodes()
            _rate(model, 4)  # processes start and fetch the network
            rates.append(_rate(model, PHOTOS))
    finally:
        ray.shutdown()
        cluster.shutdown()
    one, two = rates
    return [
        Row(
            "extraction at 800 x 640 on a cluster: speed-up by a second one-core worker",
            f"{two / one:.2f} x",
            f"at least {TARGET} x",
            two / one >= TARGET,
            f"{two:.2f} and {one:.2f} photos/s, {PHOTOS} photos to the finished file",
        )
    ]


def _rate(model: D2Net, count: int) -> float:
    """Photos per second."""
    with TemporaryDirectory() as folder:
        photos = [FoundImage(Path(folder, f"{i}.png"), f"{i}.png") for i in range(count)]
        for photo in photos:
            shutil.copyfile(PHOTO, photo.path)
        start = time.perf_counter()
        extract_folder(model, photos, Path(folder, "features.h5"), cluster="auto")
        return count / (time.perf_counter() - start)
