"""Two ways to run the command line: in this process with a tiny network, or for real."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from d2net.cli import main
from d2net.extraction.d2net import D2Net

from ..tiny import make_tiny_model, write_photos

Run = Callable[..., "Result"]


@dataclass(frozen=True)
class Result:
    """What a command did."""

    code: int
    out: str
    err: str
    device: str = field(default="", compare=False)
    """The line about the device, which is not in `err`."""

    @property
    def json(self) -> Any:
        """The one JSON document on standard output, without the NaN that only Python reads."""
        return json.loads(self.out, parse_constant=lambda name: pytest.fail(f"{name} in JSON"))


def make_result(code: Any, out: str, err: str) -> Result:
    if not err.startswith("device: "):
        return Result(code, out, err)
    device, _, err = err.partition("\n")
    return Result(code, out, err, device)


@pytest.fixture
def d2net(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], here: Path) -> Run:
    """Run a command in this process, around the tiny network."""

    def from_pretrained(name: str, device: str = "cpu", **settings: Any) -> D2Net:
        return make_tiny_model(**settings).to(device)

    def run(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["d2net", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        return make_result(ended.value.code or 0, captured.out, captured.err)

    monkeypatch.setattr(D2Net, "from_pretrained", from_pretrained)
    return run


@dataclass(frozen=True)
class Real:
    """Runs the real command in processes of their own."""

    folder: Path

    def start(self, *arguments: object, **keywords: Any) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "d2net", *map(str, arguments)]
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "OMP_WAIT_POLICY": "passive",
            "PYTHONPATH": os.pathsep.join(sys.path),
            "COLUMNS": "80",
        }
        # The shell starts background jobs with Ctrl-C ignored, and children inherit that.
        keywords.setdefault("preexec_fn", partial(signal.signal, signal.SIGINT, signal.SIG_DFL))
        return subprocess.Popen(
            command,
            cwd=self.folder,
            env={**environment, **keywords.pop("env", {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **keywords,
        )

    def __call__(self, *arguments: object, **keywords: Any) -> Result:
        with self.start(*arguments, **keywords) as process:
            return finished(process)


def finished(process: subprocess.Popen[str]) -> Result:
    """Wait for a process to end."""
    out, err = process.communicate(timeout=120)
    return make_result(process.returncode, out, err)


@pytest.fixture
def real(here: Path) -> Real:
    """Run the real command with the packaged weights."""
    return Real(here)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def photos(here: Path) -> Path:
    """Small photos; of some the names are a trial."""
    return write_photos(here / "photos", "a.png", "day 1/ü b.png", "new\nline.png")
