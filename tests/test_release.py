"""What a release says about itself is true."""

from __future__ import annotations

import re
from pathlib import Path

import tomli

import d2net

ROOT = Path(__file__).parent.parent
THIRD_PARTY = ROOT / "docs" / "third-party.md"
PROJECT = tomli.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_the_version_stands_in_one_place() -> None:
    assert PROJECT["dynamic"] == ["version"]
    assert f"## {d2net.__version__} (" in (ROOT / "CHANGELOG.md").read_text()


def test_every_dependency_is_among_the_third_party_packages() -> None:
    listed = re.findall(r"^\| ([\w-]+) \| [^|]+ \|", THIRD_PARTY.read_text(), re.M)
    extras = PROJECT["optional-dependencies"]
    wanted = PROJECT["dependencies"] + [
        requirement
        for extra in extras
        if extra not in ("dev", "docs")
        for requirement in extras[extra]
    ]
    names = {
        re.match(r"[\w-]+", requirement)[0] for requirement in wanted if "; " not in requirement
    }
    assert names <= set(listed), "run: python tools/licences.py --write"
    assert not re.search(r"\| see its home \|", THIRD_PARTY.read_text())
