"""The outputs of the 2019 release that stand in `golden/`."""

from __future__ import annotations

from pathlib import Path

import pytest

FOLDER = Path(__file__).with_name("golden")


def released(name: str) -> Path:
    """A file of them; the sdist has no room for these, and skips tests that want one."""
    if not FOLDER.is_dir():
        pytest.skip("wants tests/golden, which the repository holds and the sdist does not")
    return FOLDER / name
