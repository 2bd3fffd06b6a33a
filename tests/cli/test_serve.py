"""`d2net serve`: it starts, says where, and ends; what cannot be is told."""

from __future__ import annotations

import json
import signal
import socket
import sys
import urllib.request

import pytest

from .conftest import Real, Run, finished


def test_it_says_where_it_is_and_ends_with_ctrl_c(real: Real) -> None:
    with real.start("serve", "--port", 0, "--json") as process:
        assert process.stdout is not None
        lines = iter(process.stdout.readline, "}\n")
        address = json.loads("".join(lines) + "}")["address"]
        assert address.startswith("http://127.0.0.1:")
        with urllib.request.urlopen(address, timeout=20) as page:
            assert "<title>d2net" in page.read().decode()
        process.send_signal(signal.SIGINT)
        result = finished(process)
    assert (result.code, result.err) == (0, "")


def test_a_port_in_use_is_told(d2net: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        result = d2net("serve", "--port", other.getsockname()[1])
    assert result.code == 2
    assert "already in use; change --port or --host" in result.err


def test_an_empty_host_does_not_open_the_page_to_the_network(d2net: Run) -> None:
    result = d2net("serve", "--port", 0, "--host", "")
    assert result.code == 2
    assert "--host needs an address" in result.err


def test_a_folder_that_is_no_map_is_told(d2net: Run) -> None:
    result = d2net("serve", "--port", 0, "--map", ".")
    assert result.code == 2
    assert "is not a map" in result.err


def test_a_matcher_that_is_not_there_is_told(d2net: Run) -> None:
    result = d2net("serve", "--port", 0, "--matcher", "none.safetensors")
    assert result.code == 2
    assert "there is no file 'none.safetensors'" in result.err


def test_a_missing_package_is_told(d2net: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "d2net.serving.app", raising=False)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    result = d2net("serve", "--port", 0)
    assert result.code == 2
    assert 'pip install "d2net[serve]"' in result.err
