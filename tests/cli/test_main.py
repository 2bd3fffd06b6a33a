"""What holds for every command: help, errors, exit codes, and what goes to which stream."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from rich.text import Text

from d2net import __version__ as version
from d2net.cli import console, progress
from d2net.cli.options import Printing
from d2net.progress import Progress
from d2net.settings import ExtractionSettings

from .conftest import Real, Run

COMMANDS = ("match", "extract", "pairs", "export colmap", "export onnx", "show", "weights", "info")


def assert_error(err: str) -> None:
    """One sentence, and never a traceback."""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert "Traceback" not in err


def test_help_answers_in_half_a_second() -> None:
    """Half a second of the processor's time: this does not depend on what else the machine does."""
    command = shutil.which("d2net", path=str(Path(sys.executable).parent))
    start = [command] if command else [sys.executable, "-m", "d2net"]
    seconds = []
    for _ in range(3):
        before = os.times()
        run = subprocess.run([*start, "--help"], capture_output=True, text=True, check=True)
        after = os.times()
        seconds.append(
            after.children_user
            + after.children_system
            - before.children_user
            - before.children_system
        )
        assert all(name.split()[0] in run.stdout for name in COMMANDS)
    assert min(seconds) < 0.5


def test_version(d2net: Run) -> None:
    assert d2net("--version").out == f"d2net {version}\n"


def test_a_terminal_of_unknown_width(real: Real) -> None:
    assert real("--version", env={"COLUMNS": "0"}).out == f"d2net {version}\n"


def test_shells_complete_commands_options_and_choices(real: Real) -> None:
    for line, completion in (
        ("d2net ext", "extract"),
        ("d2net extract --desc", "--descriptor"),
        ("d2net extract --descriptor wh", "whitened"),
    ):
        environment = {
            "_D2NET_COMPLETE": "complete_bash",
            "COMP_WORDS": line,
            "COMP_CWORD": str(line.count(" ")),
        }
        assert real(env=environment).out.split() == [completion]


def test_help_shows_choices_and_no_types_of_python(d2net: Run) -> None:
    out = d2net("extract", "--help").out
    assert str(ExtractionSettings().max_keypoints) in out
    assert "<incremental|global>" in d2net("reconstruct", "--help").out
    for text in ("<bool>", "Path]>", "(none)"):
        assert text not in out


def test_the_chosen_device_is_printed(d2net: Run, photos: Path) -> None:
    assert d2net("extract", photos, "-o", "f.h5").device.startswith("device: ")
    assert d2net("extract", photos, "-o", "f.h5", "--device", "cpu").device == ""
    assert d2net("extract", photos, "-o", "f.h5", "--quiet").device == ""


def test_one_photo_is_not_plural(d2net: Run, photos: Path) -> None:
    assert d2net("extract", photos / "a.png", "-o", "f.h5").out.startswith("1 photo extracted")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_explained_within_80_columns(
    d2net: Run, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    run = d2net(*command.split(), "--help")
    assert run.code == 0
    lines = run.out.splitlines()
    assert max(map(len, lines)) <= 80
    rows = [line for line in lines if re.match(r"│ (\*|   )? *--", line[:8])]
    options = [row.strip("│* ").split() for row in rows]
    assert len(options) >= 3
    for option in options:
        words = [word for word in option if not word.startswith(("-", "<", "["))]
        assert len(words) >= 2, f"{option[0]} has no help text"


def test_no_arguments_show_the_help(d2net: Run) -> None:
    assert d2net().out == d2net("--help").out
    assert d2net("-h").code == 0


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("extrac", "No such command 'extrac'"),
        ("extract --colour", "--colour"),
        ("extract photos --format zip", "'zip' is not one of 'h5', 'npz', 'mat'"),
        ("extract photos --max-keypoints many", "--max-keypoints"),
        ("extract photos -o f.h5 --max-keypoints -1", "max_keypoints must be"),
        ("extract photos -o f.h5 --max-edge -3", "max_edge must be"),
        ("extract photos -o f.h5 --score-threshold nan", "score_threshold must be"),
        ("extract photos -o f.h5 --precision int4", "int4"),
        ("extract photos", "Missing option '--output'"),
        ("extract -o f.h5", "PHOTOS or --image-list"),
        ("extract photos --image-list list.txt -o f.h5", "PHOTOS or --image-list"),
        ("extract --image-list none.txt -o f.h5", "none.txt cannot be read"),
        ("extract none.png -o f.h5", "there is no file or folder 'none.png'"),
        ("extract empty -o f.h5", "no photos"),
        ("extract photos -o none/f.h5", "none does not exist"),
        ("extract photos -o photos", "folder"),
        ("extract photos -o text.txt/f.h5", "text.txt"),
        (
            "extract photos -o f.h5 --masks none",
            "the folder 'none' has no mask of these photos",
        ),
        ("extract photos --root empty -o f.h5", "not below the root folder 'empty'"),
        ("match", "two photos"),
        ("match photos/a.png", "two photos"),
        ("match photos/a.png photos/a.png photos/a.png", "two photos"),
        ("match photos/a.png photos/none.png", "none.png"),
        ("match photos photos", "not a regular file"),
        ("match photos/a.png photos/a.png --ratio 2", "ratio"),
        ("match photos/a.png photos/a.png --verify affine", "affine"),
        ("match photos/a.png photos/a.png --verify none --threshold 3", "threshold"),
        ("match photos/a.png photos/a.png -o matches.txt", "matches.txt"),
        ("match photos/a.png photos/a.png -o none/matches.png", "none does not exist"),
        ("match --features f.h5", "two photos"),
        ("pairs photos", "Choose from: exhaustive, sequential"),
        ("match --features f.h5 --pairs p.txt -o m.h5", "p.txt"),
        ("match photos/a.png photos/a.png --features f.h5", "two photos"),
        ("export colmap db", "--features"),
        ("export colmap db --features none.h5", "none.h5"),
        ("export colmap db --features text.txt", "text.txt is not an HDF5 file"),
        ("export excel db --features none.h5", "excel"),
        ("show none.png", "none.png"),
        ("show text.txt", "text.txt"),
        ("show photos/a.png -o a.bmp", "a.bmp"),
        ("info none.h5", "none.h5"),
        ("info text.txt", "text.txt is not an HDF5 file"),
        ("info photos", "photos"),
        ("weights nonsense", "nonsense"),
        ("weights text.txt", "text.txt is not a weights file"),
        ("weights none.pth", "none.pth"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(
    d2net: Run, here: Path, photos: Path, line: str, message: str
) -> None:
    (here / "text.txt").write_text("only text\n")
    (here / "empty").mkdir()
    run = d2net(*line.split())
    assert run.code == 2
    assert run.out == ""
    assert_error(run.err)
    assert message in run.err
    assert {path.name for path in here.iterdir()} == {"photos", "text.txt", "empty"}


def test_an_error_is_a_json_document_too(real: Real) -> None:
    run = real("extract", "none.png", "-o", "f.h5", "--json")
    assert run.code == 2
    assert run.json == {"error": "there is no file or folder 'none.png'"}
    assert_error(run.err)


def test_ctrl_c_during_the_imports_is_no_traceback(real: Real) -> None:
    (real.folder / "typer.py").write_text("raise KeyboardInterrupt")
    run = real("--version")
    assert (run.code, run.out, run.err) == (130, "", "")


def test_ctrl_c_while_features_are_stored_is_no_traceback(
    monkeypatch: pytest.MonkeyPatch, photos: Path, d2net: Run
) -> None:
    """NumPy's zip file answers it with another error."""

    def interrupted(*args: object, **kwargs: object) -> None:
        raise ValueError("Can't close the ZIP file") from KeyboardInterrupt()

    monkeypatch.setattr(np, "savez", interrupted)
    run = d2net("extract", photos, "-o", "f.h5")
    assert run.code == 130
    assert "stopped by Ctrl-C" in run.err


def test_names_that_would_garble_the_terminal_are_escaped(d2net: Run) -> None:
    run = d2net("extract", "a\n\x1b[31mb.png", "-o", "f.h5")
    assert_error(run.err)
    assert "\x1b" not in run.err


def test_a_reader_that_goes_away_is_no_error(real: Real) -> None:
    with real.start("extract", "none.png", "-o", "f.h5", "--json") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert_error(process.stderr.read())


def report_three_photos(report: Progress) -> None:
    report("extracting", 0, 3)
    report("extracting: [bold]first\n.png", 1, 3)
    report("extracting: second.png", 2, 3)


def test_a_terminal_shows_the_time_left_and_the_last_photo(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console, "err", Console(stderr=True, force_terminal=True, width=90))
    with progress.shown(Printing()) as report:
        report_three_photos(report)
    shown = Text.from_ansi(capsys.readouterr().err).plain
    for text in ("extracting", "2/3", "0:00:", "second.png"):
        assert text in shown


def test_without_a_terminal_long_runs_print_a_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seconds = itertools.count(step=6)
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(seconds))
    with progress.shown(Printing()) as report:
        report_three_photos(report)
    assert capsys.readouterr().err == "extracting: 1 of 3, 0:00:12 left, [bold]first\\n.png\n"


@pytest.mark.parametrize("printing", [Printing(quiet=True), Printing(json=True)])
def test_quiet_and_json_show_no_progress(
    printing: Printing, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console, "err", Console(stderr=True, force_terminal=True))
    with progress.shown(printing) as report:
        report_three_photos(report)
    assert capsys.readouterr().err == ""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM")
@pytest.mark.parametrize("command", ["reconstruct .", "localize . .", "export scene . scene"])
def test_commands_end_without_a_stack_trace_when_they_are_terminated(
    tmp_path: Path, command: str
) -> None:
    """Pycolmap has a handler that prints one."""
    code = f"""
import os, signal, sys
from d2net.cli import main
sys.argv[1:] = {command.split()}
try:
    main()
except SystemExit:
    assert "pycolmap" in sys.modules
    os.kill(os.getpid(), signal.SIGTERM)
"""
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, check=False, capture_output=True, text=True
    )
    assert run.returncode == -signal.SIGTERM
    assert "***" not in run.stderr
