"""The code of the README, of the guides and of the package's docstring runs, or says why not.

A block that a test cannot run stands after `<!-- not run: the reason -->`; the options of its
commands exist all the same. Lines that set up an environment (pip, git, make) are left out: whoever
runs this has done that.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tomli
import typer.main
from PIL import Image

import d2net
from d2net.cli import app

from .rendered import write_room
from .test_public_names import PUBLIC

ROOT = Path(__file__).parent.parent
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob(".github/*.md")), *DOCS]

BLOCK = re.compile(
    r"(?:^ *<!-- not run: (?P<reason>[^>]+) -->\n)?"
    r"^(?P<indent> *)```(?P<language>[a-z]+)\n(?P<code>.*?)^(?P=indent)```",
    flags=re.DOTALL | re.MULTILINE,
)
SETUP = re.compile(r"(git|cd|make|pip|ray) ")


@dataclass(frozen=True)
class Block:
    """Code between fences."""

    language: str
    code: str
    reason: str | None

    @property
    def commands(self) -> list[list[str]]:
        """Words of the lines of a shell's block, but for those that set up an environment."""
        lines = self.code.replace("\\\n", " ").splitlines()
        words = [shlex.split(line, comments=True) for line in lines if not SETUP.match(line)]
        return [line for line in words if line]


def blocks(text: str) -> list[Block]:
    return [
        Block(m["language"], textwrap.dedent(m["code"]), m["reason"]) for m in BLOCK.finditer(text)
    ]


def test_python_of_the_readme(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    (code,) = [b.code for b in blocks((ROOT / "README.md").read_text()) if b.language == "python"]
    names: dict[str, object] = {}
    exec(code, names)
    matches = names["matches"]
    assert isinstance(matches, d2net.Matches)
    assert matches.num_inliers > 400


def test_python_of_the_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for photo, name in (("graf1", "a"), ("graf3", "b")):
        with Image.open(ROOT / "tests" / "data" / f"{photo}.jpg") as image:
            image.resize((240, 192)).convert("RGB").save(f"{name}.jpg")
    assert d2net.__doc__ is not None
    (block,) = blocks(d2net.__doc__)
    exec(block.code, {})
    assert Path("matches.png").exists()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Photos of a room under all names that pages use."""
    for photos in ("PHOTOS", "photos", "NEW"):
        (tmp_path / photos).mkdir()
    places = dict(zip("ABCDE", (-1, -0.5, 0, 0.5, 1), strict=True))
    views = {f"{name}.jpg": (x, 4 * x) for name, x in places.items()}
    write_room(tmp_path / "PHOTOS", views)
    write_room(tmp_path / "photos", views)
    write_room(tmp_path / "NEW", {"F.jpg": (0.2, 2), "G.jpg": (-0.2, -2)})
    single = dict.fromkeys(("PHOTO.jpg", "QUERY.jpg", "query.jpg", "new.jpg"), (0.3, 3))
    write_room(tmp_path, {**views, **single})
    (tmp_path / "pairs.txt").write_text("A.jpg B.jpg\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return tmp_path


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("page", DOCS, ids=lambda page: page.stem)
def test_code_of_a_guide(page: Path, folder: Path) -> None:
    """In its order: later blocks use what earlier ones wrote."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    names: dict[str, object] = {}
    for block in blocks(page.read_text()):
        if block.reason is not None:
            continue
        if block.language == "python":
            exec(block.code, names)
        elif block.language == "bash":
            for words in block.commands:
                program = ["-m", "d2net"] if words[0] == "d2net" else []
                run = subprocess.run(
                    [sys.executable, *program, *words[1:]],
                    env=environment,
                    check=False,
                    capture_output=True,
                    text=True,
                )
                assert run.returncode == 0, f"{words}: {run.stderr}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_block_is_run_or_says_why_not(page: Path) -> None:
    """And what is not run is not wrong at first sight."""
    text = page.read_text()
    found = blocks(text)
    assert text.count("<!-- not run:") == sum(block.reason is not None for block in found)
    for block in found:
        if block.language == "bash":
            for words in block.commands:
                assert words[0] in ("d2net", "python", "torchrun"), f"nobody runs {words}"
                if words[0] == "d2net":
                    check_command(words[1:])
            assert page.parent != ROOT or block.reason or not block.commands
        elif block.language == "toml":
            tomli.loads(block.code)
        else:
            assert block.language in ("python", "bibtex", "text")
        if block.language == "python":
            compile(block.code, page.name, "exec")


def check_command(words: list[str]) -> None:
    """The command exists, and its options."""
    command: Any = typer.main.get_command(app)
    while words and words[0] in getattr(command, "commands", {}):
        command, words = command.commands[words[0]], words[1:]
    assert not hasattr(command, "commands"), f"{command.name} has no command {words[:1]}"
    known = {name for parameter in command.params for name in parameter.opts} | {"--help"}
    for word in words:
        if re.match(r"--?[a-z]", word):
            assert word in known, f"{command.name} has no option {word}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    pictures = ROOT / "docs" / "images"  # which the sdist leaves out
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if "://" not in target:
            path = (page.parent / target).resolve()
            assert path.exists() or (path.parent == pictures and not pictures.exists()), target


def test_the_api_page_has_every_public_name() -> None:
    listed = re.findall(r"^::: d2net\.(\w+)", (ROOT / "docs" / "api.md").read_text(), re.MULTILINE)
    assert sorted([*listed, "__version__"]) == sorted(PUBLIC)


def test_every_page_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text().partition("nav:")[2]
    tutorials = (ROOT / "docs" / "tutorials").glob("*.ipynb")
    for page in (*DOCS, *tutorials):
        assert f": {page.relative_to(ROOT / 'docs').as_posix()}\n" in navigation
