"""What the tests let other processes do; each function is one process's work."""

import os
import signal
import sqlite3
import sys
import time
from contextlib import suppress
from pathlib import Path

from d2net.errors import D2NetError, OutputError
from d2net.io import h5
from d2net.io.atomic import locked
from d2net.io.colmap_database import write_database
from d2net.io.release_2019 import write_release

from .samples import make_features, make_matches

NAMES = [f"day {i % 3}/ü{i}.jpg" for i in range(7)]
PAIRS = [(NAMES[i], NAMES[j]) for i in range(4) for j in range(i)]
SETTINGS = {"version": "1", "extraction": {"max_keypoints": 1000}}


def write_features(path, names=NAMES):
    with h5.FeatureWriter(path, SETTINGS) as writer:
        for name in names:
            if name not in writer.done():
                writer.add(name, make_features(20, seed=NAMES.index(name)))


def write_matches(path, pairs=PAIRS):
    with h5.MatchWriter(path, SETTINGS) as writer:
        for pair in pairs:
            if pair not in writer.done():
                writer.add(*pair, make_matches(10, seed=PAIRS.index(pair)), 20)


def write_one_too_large(path):
    """Add three photos; there is no room for the second, and the run is interrupted."""
    with suppress(KeyboardInterrupt), h5.FeatureWriter(path, SETTINGS) as writer:
        writer.add("first", make_features(10))
        with suppress(OutputError):
            writer.add("too large", make_features(10_000))
        writer.add("third", make_features(10))
        raise KeyboardInterrupt


def watched(step, work, *arguments):
    """Do `work`, but die by SIGKILL at the given call or return in d2net.io.

    Calls from there into C count too, so that a kill can come before and after each one.

    Returns:
        How many there were.
    """
    count = 0

    def watch(frame, event, _argument):
        nonlocal count
        if f"{os.sep}io{os.sep}" in frame.f_code.co_filename:
            count += 1
            if count == step:
                os.kill(os.getpid(), signal.SIGKILL)

    before = sys.getprofile()
    sys.setprofile(watch)
    try:
        work(*arguments)
    finally:
        sys.setprofile(before)
    return count


def with_file_size_limit(limit, report, work, *arguments):
    """Do `work` on what behaves like a nearly full disk; tell `report` how it ended."""
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    report.send(_ending(work, *arguments))


def without_rights(report, work, *arguments):
    """Do `work` as nobody, if the user is root; tell `report` how it ended."""
    if os.geteuid() == 0:
        os.seteuid(65534)
    report.send(_ending(work, *arguments))


def _ending(work, *arguments):
    try:
        work(*arguments)
    except D2NetError as error:
        return f"{type(error).__name__}: {error}"
    return "done"


def hold_lock(path, ready, forking=False):
    with locked(Path(path)):
        if forking and os.fork() == 0:
            ready.set()
            time.sleep(30)
            os._exit(0)
        if not forking:
            ready.set()
        time.sleep(30)


def write_release_of(path):
    write_release(path, make_features(100))


def write_database_of(path, overwrite):
    photos = {name: make_features(2000, seed=i) for i, name in enumerate(NAMES)}
    write_database(path, photos, overwrite=overwrite)


def read_database(path, ready):
    connection = sqlite3.connect(path)
    connection.execute("BEGIN")
    connection.execute("SELECT * FROM images").fetchall()
    ready.set()
    time.sleep(30)
