"""A cluster that is asked for and not there."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from d2net.cluster import share
from d2net.errors import InputError, MissingPackageError


def test_ray_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingPackageError, match=r'pip install "d2net\[cluster\]"'):
        list(share("auto", len, None, [], batch=1, gpu=False))


def test_there_is_no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray")

    def init(address: str, **_: Any) -> None:
        raise ConnectionError(f"Could not find any running Ray instance at {address}.\nUse ...")

    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(InputError, match=r"no Ray cluster at 'auto' .*start one"):
        list(share("auto", len, None, [], batch=1, gpu=False))
