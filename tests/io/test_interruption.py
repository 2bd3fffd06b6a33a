"""Kill -9 at any moment, a full disk, and two processes: nothing is lost, nothing is corrupted."""

import random
import shutil
import signal
import time

import pytest

from d2net.errors import OutputBusyError, OutputError
from d2net.io import h5

from . import workers
from .samples import assert_same_features, make_features

RUNS = {
    "features": (workers.write_features, workers.NAMES),
    "matches": (workers.write_matches, workers.PAIRS),
}


def run(processes, target, *arguments):
    """The exit code of a process that does `target`; negative when it was killed."""
    process = processes.Process(target=target, args=arguments)
    process.start()
    process.join(60)
    return process.exitcode


def killed(processes, step, work, *arguments):
    return run(processes, workers.watched, step, work, *arguments)


@pytest.fixture(params=RUNS)
def kind(request):
    return request.param


@pytest.fixture
def undisturbed(kind, tmp_path):
    work, _ = RUNS[kind]
    path = tmp_path / "undisturbed.h5"
    work(path)
    return path.read_bytes()


@pytest.fixture
def calls(kind, tmp_path):
    """How many moments to kill at a whole run has."""
    work, _ = RUNS[kind]
    return workers.watched(None, work, tmp_path / "counted.h5")


def assert_nothing_left_beside(path):
    assert [p.name for p in path.parent.glob(f"{path.name}*")] == [path.name]


@pytest.mark.parametrize("begun", [False, True], ids=["new", "added to an older file"])
def test_killed_at_any_step_and_resumed_gives_the_same_bytes(
    kind, begun, processes, undisturbed, calls, tmp_path
):
    work, entries = RUNS[kind]
    older = tmp_path / "older.h5"
    work(older, entries[::3])
    chance = random.Random(kind + str(begun))
    kills = 0
    for attempt in range(2):
        path = tmp_path / f"{attempt}.h5"
        if begun:
            shutil.copy(older, path)
        while (code := killed(processes, chance.randrange(1, calls), work, path, entries)) != 0:
            assert code == -signal.SIGKILL
            kills += 1
            content = path.read_bytes() if path.exists() else b""
            assert content in (older.read_bytes() if begun else b"", undisturbed)
        assert path.read_bytes() == undisturbed
        assert_nothing_left_beside(path)
    assert kills >= 2


def test_killed_at_every_step_of_the_ending(kind, processes, undisturbed, calls, tmp_path):
    """Assembling, replacing the old file and removing the work file are the delicate part."""
    work, entries = RUNS[kind]
    prepared = tmp_path / "prepared.h5"
    with pytest.raises(KeyboardInterrupt):
        interrupted_at_the_end(kind, prepared)
    unfinished = prepared.with_name("prepared.h5.partial").read_bytes()
    path = tmp_path / "killed.h5"
    for step in range(40, calls, 97):
        path.unlink(missing_ok=True)
        path.with_name("killed.h5.partial").write_bytes(unfinished)
        code = killed(processes, step, work, path, entries)
        assert code in (0, -signal.SIGKILL)
        if code == 0:
            break
        work(path)
        assert path.read_bytes() == undisturbed
        assert_nothing_left_beside(path)
    else:
        pytest.fail("no run got to its end")
    assert path.read_bytes() == undisturbed


def interrupted_at_the_end(kind, path):
    if kind == "features":
        with h5.FeatureWriter(path, workers.SETTINGS) as writer:
            for name in workers.NAMES:
                writer.add(name, make_features(20, seed=workers.NAMES.index(name)))
            raise KeyboardInterrupt
    with h5.MatchWriter(path, workers.SETTINGS) as writer:
        for i, pair in enumerate(workers.PAIRS):
            writer.add(*pair, workers.make_matches(10, seed=i), 20)
        raise KeyboardInterrupt


def test_a_work_file_that_is_none_is_one_sentence(tmp_path):
    (tmp_path / "features.h5.partial").write_text("something else\n" * 100)
    with pytest.raises(OutputError, match=r"partial cannot be used.*: delete it, and run again"):
        workers.write_features(tmp_path / "features.h5")


def test_what_is_finished_is_not_done_again(tmp_path):
    path = tmp_path / "features.h5"
    with pytest.raises(KeyboardInterrupt):
        interrupted_at_the_end("features", path)
    assert not path.exists()
    with h5.FeatureWriter(path, workers.SETTINGS) as writer:
        assert writer.done() == set(workers.NAMES)
    with h5.FeatureFile(path) as file:
        for i, name in enumerate(workers.NAMES):
            assert_same_features(file[name], make_features(20, seed=i))


def test_a_full_disk_is_one_sentence_and_a_resume(kind, processes, undisturbed, tmp_path):
    work, entries = RUNS[kind]
    path = tmp_path / "full.h5"
    endings = []
    for limit in [0, 300, *range(10_000, 10 * len(undisturbed) + 100_000, len(undisturbed))]:
        ending = limited(processes, limit, work, path, entries)
        endings.append(ending)
        if ending != "done":
            assert ending.startswith("OutputError: "), ending
            assert "the disk is full" in ending
            assert not path.exists()
            assert not path.with_name("full.h5.d2net-tmp").exists()
        else:
            break
    assert endings[-1] == "done"
    assert len(endings) > 3
    assert path.read_bytes() == undisturbed
    assert_nothing_left_beside(path)


def test_a_photo_too_large_for_the_disk_takes_no_other_with_it(processes, tmp_path):
    path = tmp_path / "features.h5"
    assert limited(processes, 200_000, workers.write_one_too_large, path) == "done"
    with h5.FeatureWriter(path, workers.SETTINGS) as writer:
        assert writer.done() == {"first", "third"}


def limited(processes, limit, work, *arguments):
    receiver, sender = processes.Pipe(duplex=False)
    code = run(processes, workers.with_file_size_limit, limit, sender, work, *arguments)
    assert code == 0, "the process crashed"
    return receiver.recv()


def test_two_processes_on_one_output(processes, tmp_path):
    path = tmp_path / "features.h5"
    ready = processes.Event()
    process = processes.Process(target=workers.hold_lock, args=(path, ready))
    process.start()
    assert ready.wait(60)
    with pytest.raises(OutputBusyError, match="another process"):
        workers.write_features(path)
    process.kill()
    process.join()
    assert (tmp_path / "features.h5.d2net-lock").exists()  # left by the kill, and in nobody's way
    workers.write_features(path)
    assert_nothing_left_beside(path)


def test_a_child_of_a_killed_process_does_not_keep_its_lock(processes, tmp_path):
    path = tmp_path / "features.h5"
    ready = processes.Event()
    process = processes.Process(target=workers.hold_lock, args=(path, ready, True))
    process.start()
    assert ready.wait(60)
    process.kill()
    process.join()
    workers.write_features(path)
    assert len(h5.FeatureFile(path)) == len(workers.NAMES)


def test_two_writers_in_one_process(tmp_path):
    path = tmp_path / "features.h5"
    with h5.FeatureWriter(path, {}), pytest.raises(OutputBusyError):
        workers.write_features(path)


def test_the_time_of_writing_leaves_no_trace(kind, undisturbed, tmp_path):
    work, entries = RUNS[kind]
    time.sleep(1.1)
    work(tmp_path / "later.h5", entries[::-1])
    assert (tmp_path / "later.h5").read_bytes() == undisturbed
