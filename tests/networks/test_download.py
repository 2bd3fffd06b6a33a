import logging
import socket
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from d2net.errors import OutputBusyError, WeightsError
from d2net.io.atomic import locked
from d2net.networks import weights
from d2net.networks.catalogue import CATALOGUE, cache_folder
from d2net.networks.checkpoint import unpack
from d2net.networks.weights import download_weights, load_weights

BODY = unpack(CATALOGUE["ots"].path.read_bytes())


class Server(ThreadingHTTPServer):
    """A file server that can misbehave."""

    body = BODY
    states_length = True
    cut_after = None
    status = 200

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests = 0

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}/d2_tf.pth"


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        server = self.server
        server.requests += 1
        if server.status != 200:
            self.send_error(server.status)
            return
        self.send_response(200)
        if server.states_length:
            self.send_header("Content-Length", str(len(server.body)))
        self.end_headers()
        self.wfile.write(server.body[: server.cut_after])
        self.close_connection = True


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "the cache"
    monkeypatch.setenv("D2NET_CACHE", str(folder))
    return folder


@pytest.fixture(autouse=True)
def authors(server, monkeypatch):
    """The local server as the authors' address, with a file of weights."""
    record = replace(CATALOGUE["d2_tf"], url=server.url)
    monkeypatch.setattr(weights, "CATALOGUE", {**CATALOGUE, "d2_tf": record})
    return record


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# --- where the cache is


def test_the_cache_is_where_the_environment_says(monkeypatch):
    monkeypatch.setenv("D2NET_CACHE", "/data/d2net cache")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    monkeypatch.setenv("HOME", "/home/someone")
    assert cache_folder() == Path("/data/d2net cache")
    monkeypatch.delenv("D2NET_CACHE")
    assert cache_folder() == Path("/xdg/d2net")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path("/home/someone/.cache/d2net")


# --- transfers


def test_a_file_arrives_whole_with_its_progress(server, cache):
    calls = []
    download_weights("d2_tf", lambda _, done, total: calls.append((done, total)))
    assert (cache / "d2_tf.pth").read_bytes() == BODY
    assert names(cache) == ["d2_tf.pth"]
    assert len(calls) > 2
    assert calls[-1] == (15, 15)  # MB
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)


def test_a_cut_download_leaves_nothing_and_can_be_started_again(server, cache):
    server.cut_after = 400_000
    with pytest.raises(WeightsError, match=f"of {len(BODY):,} bytes"):
        download_weights("d2_tf")
    assert names(cache) == []
    server.cut_after = None
    download_weights("d2_tf")
    assert (cache / "d2_tf.pth").read_bytes() == BODY


def test_a_login_page_instead_of_weights_is_not_kept(server, cache):
    server.body = b"<html>please log in</html>"
    with pytest.raises(WeightsError, match="is not a weights file and was not kept"):
        load_weights("d2_tf")
    assert names(cache) == []


def test_a_missing_file_on_the_server(server, cache):
    server.status = 404
    with pytest.raises(WeightsError, match=r"d2_tf\.pth could not be downloaded \(HTTP Error 404"):
        download_weights("d2_tf")
    assert names(cache) == []


def test_offline_is_one_sentence_with_the_address_and_the_place_for_the_file(
    authors, cache, monkeypatch
):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/d2_tf.pth"
    monkeypatch.setattr(weights, "CATALOGUE", {"d2_tf": replace(authors, url=url)})
    with pytest.raises(WeightsError) as offline:
        download_weights("d2_tf")
    message = str(offline.value)
    assert url in message
    assert str(cache / "d2_tf.pth") in message
    assert "refused" in message
    assert "\n" not in message


def test_a_silent_server_does_not_hang_the_program(authors, monkeypatch):
    monkeypatch.setattr(weights, "_TIMEOUT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/w.pth"
        monkeypatch.setattr(weights, "CATALOGUE", {"d2_tf": replace(authors, url=url)})
        with pytest.raises(WeightsError, match="timed out"):
            download_weights("d2_tf")


def test_two_processes_do_not_download_the_same_file_at_once(server, cache):
    cache.mkdir()
    with locked(cache / "d2_tf.pth"), pytest.raises(OutputBusyError):
        download_weights("d2_tf")
    assert server.requests == 0


def test_a_name_is_downloaded_at_first_use_and_then_read_from_the_cache(
    server, authors, cache, caplog
):
    assert authors.state == "downloadable"
    with caplog.at_level(logging.WARNING):
        loaded = load_weights("d2_tf")
    assert server.url in caplog.text
    assert loaded.name == "d2_tf"
    assert loaded.record is authors
    assert authors.state == "cached"
    assert load_weights("d2_tf").sha256 == loaded.sha256
    assert server.requests == 1
