"""Fixtures that many tests share."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from d2net import D2Net
from d2net.networks.vgg_backbone import VGGBackbone

from .tiny import make_tiny_model, make_tiny_network

if TYPE_CHECKING:
    from multiprocessing.context import ForkServerContext


@pytest.fixture
def tiny_network() -> VGGBackbone:
    """The real code with few channels and random weights, its activations alive."""
    return make_tiny_network()


@pytest.fixture
def tiny_model() -> D2Net:
    """A model around `tiny_network`."""
    return make_tiny_model()


@pytest.fixture(scope="session")
def processes() -> ForkServerContext:
    """Starts processes quickly: they fork from a server that has imported everything, and no more.

    (A process with threads, as pytest is after torch has computed, should not be forked.)
    """
    if sys.platform == "win32":
        pytest.skip("Windows has no fork server")
    from multiprocessing import forkserver

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["d2net.extraction.folder", "d2net.matching.match_pairs"])
    with pytest.MonkeyPatch.context() as patch:  # the server knows no other way to find modules
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        forkserver.ensure_running()
    return context


@pytest.fixture(scope="module")  # while it is open no other loop can run in this thread
def browser() -> Iterator[Any]:
    """Chromium without a window, WebGL included, driven by Playwright."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="wants playwright")
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("wants chromium")
    flags = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
    flags += ["--no-first-run", "--disable-background-networking", "--disable-sync"]
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=flags)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of photos and truth beside the repository, which the repository cannot hold.

    Without it the test is skipped, or fails if D2NET_REQUIRE_SHARED is 1.
    """
    folder = Path(__file__).parents[2] / "shared"
    if not folder.is_dir():
        reason = "wants the folder ../shared (photos with truth, not part of the repository)"
        if os.environ.get("D2NET_REQUIRE_SHARED", "0") != "0":
            pytest.fail(f"D2NET_REQUIRE_SHARED is 1, and this test {reason}")
        pytest.skip(reason)
    return folder
