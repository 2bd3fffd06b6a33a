import errno
import os
import stat
from pathlib import Path

import pytest
from filelock import FileLock

from d2net.cli.outputs import check_output
from d2net.errors import InputError, OutputBusyError, OutputError
from d2net.io.atomic import locked, new_folder, replacing
from d2net.io.h5 import FeatureFile
from d2net.training.settings import read_toml

from . import workers


def names_in(folder):
    return [path.name for path in folder.iterdir()]


def write_to(path):
    with replacing(path) as temporary:
        temporary.write_text("new")


def test_the_old_file_stays_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "out.txt"
    path.write_text("old")
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
        assert temporary.parent == path.parent
    assert path.read_text() == "new"
    assert names_in(tmp_path) == ["out.txt"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_error_leaves_the_old_file_alone_and_nothing_beside_it(tmp_path, error):
    path = tmp_path / "out.txt"
    path.write_text("old")
    with pytest.raises(error), replacing(path) as temporary:
        temporary.write_text("half")
        raise error
    assert path.read_text() == "old"
    assert names_in(tmp_path) == ["out.txt"]


def test_what_a_killed_run_left_is_overwritten(tmp_path):
    path = tmp_path / "out.txt"
    (tmp_path / "out.txt.d2net-tmp").write_text("left behind by a killed run")
    (tmp_path / "out.txt.d2net-lock").touch()
    with replacing(path) as temporary:
        assert temporary.read_text() == ""
        temporary.write_text("new")
    assert names_in(tmp_path) == ["out.txt"]
    assert path.read_text() == "new"


def test_files_of_the_user_beside_the_output_stay(tmp_path):
    beside = [tmp_path / f"out{end}" for end in (".tmp", ".lock", ".bak", "~")]
    for path in beside:
        path.write_text("mine")
    with replacing(tmp_path / "out") as temporary:
        temporary.write_text("new")
    (tmp_path / "out").unlink()
    with new_folder(tmp_path / "out"):
        pass
    assert [path.read_text() for path in beside] == ["mine"] * len(beside)


@pytest.mark.parametrize("name", [".", "", "/"])
def test_a_folder_without_a_name_of_its_own(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    Path("mine.txt").touch()
    with pytest.raises(OutputError), new_folder(Path(name)):
        pass
    with pytest.raises(OutputError), replacing(Path(name)):
        pass
    assert names_in(tmp_path) == ["mine.txt"]


def test_permissions_are_those_of_any_new_file(tmp_path):
    path, other = tmp_path / "out.txt", tmp_path / "other.txt"
    other.touch()
    write_to(path)
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(other.stat().st_mode)


def test_the_permissions_of_an_existing_file_stay(tmp_path):
    path = tmp_path / "out.txt"
    for mode in (0o600, 0o640, 0o664):
        path.touch()
        path.chmod(mode)
        with replacing(path) as temporary:
            assert stat.S_IMODE(temporary.stat().st_mode) == mode
            temporary.write_text("new")
        assert stat.S_IMODE(path.stat().st_mode) == mode


@pytest.mark.parametrize("write", [write_to, check_output])
def test_a_write_protected_file_is_not_replaced(tmp_path, monkeypatch, write):
    path = tmp_path / "out.png"
    path.write_text("old")
    path.chmod(0o444)
    if os.geteuid() == 0:  # who may write every file
        monkeypatch.setattr(os, "access", lambda path, _: bool(path.stat().st_mode & 0o200))
    with pytest.raises(OutputError, match=r"out\.png is write-protected"):
        write(path)
    assert path.read_text() == "old"


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("missing/out.txt", "the folder .*missing does not exist"),
        ("folder", "it is a folder"),
        ("file/out.txt", "Not a directory"),
    ],
)
def test_places_that_cannot_be_written_are_one_sentence(tmp_path, place, reason):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    path = tmp_path / place
    with pytest.raises(OutputError, match=f"cannot be written: {reason}") as caught:
        write_to(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_name_that_is_too_long_is_named(tmp_path):
    path = tmp_path / ("x" * 251)  # fits itself, but not with the name of its lock
    for write in (write_to, lambda path: new_folder(path).__enter__()):
        with pytest.raises(InputError, match=r"written: .*xxx\.d2net-lock is too long"):
            write(path)
    assert names_in(tmp_path) == []


def test_no_permission_is_one_sentence(processes, tmp_path):
    tmp_path.chmod(0o500)
    path = tmp_path / "out.txt"
    receiver, sender = processes.Pipe(duplex=False)
    process = processes.Process(target=workers.without_rights, args=(sender, write_to, path))
    process.start()
    process.join(60)
    assert f"{path} cannot be written: no permission to write in {tmp_path}" in receiver.recv()


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "folder"
    with pytest.raises(ValueError, match="half way"), new_folder(path) as temporary:
        (temporary / "a").touch()
        raise ValueError("half way")
    assert names_in(tmp_path) == []
    with new_folder(path) as temporary:
        (temporary / "a").touch()
    assert names_in(tmp_path) == ["folder"]
    assert names_in(path) == ["a"]
    with pytest.raises(OutputError, match="exists already"), new_folder(path):
        pytest.fail("the folder is in use")
    assert names_in(path) == ["a"]


def test_a_drive_without_locks_is_named(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(FileLock, "acquire", refuse)
    with pytest.raises(OutputError, match="its drive lacks file locks"), locked(tmp_path / "a.h5"):
        pass


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes")
@pytest.mark.timeout(20)
def test_a_pipe_or_a_device_is_neither_read_nor_replaced(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for use in (write_to, FeatureFile, read_toml, check_output):
        with pytest.raises(InputError, match="is a pipe or a device"):
            use(pipe)
    assert names_in(tmp_path) == ["pipe"]
    assert pipe.is_fifo()


def test_a_link_stays_and_its_file_is_written(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    file, link = tmp_path / "elsewhere" / "out.txt", tmp_path / "link.txt"
    file.write_text("old")
    link.symlink_to(file)
    with locked(link), pytest.raises(OutputBusyError):
        write_to(file)
    write_to(link)
    assert (link.is_symlink(), file.read_text()) == (True, "new")
    assert names_in(tmp_path / "elsewhere") == ["out.txt"]


def test_a_link_to_an_empty_folder_stays_and_the_folder_is_written(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "elsewhere")
    with new_folder(link) as folder:
        (folder / "out.txt").write_text("new")
    assert link.is_symlink()
    assert names_in(tmp_path / "elsewhere") == ["out.txt"]
    assert names_in(tmp_path) == ["elsewhere", "link"]
