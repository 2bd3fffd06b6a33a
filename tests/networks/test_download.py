import json
import logging
import socket
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch

from d2net.errors import OutputBusyError, OutputError, WeightsError
from d2net.io.atomic import locked
from d2net.networks import download as module
from d2net.networks import weights
from d2net.networks.catalogue import CATALOGUE
from d2net.networks.checkpoint import LAYOUTS
from d2net.networks.download import cache_folder, download
from d2net.networks.weights import describe, download_weights, list_weights, load_weights

BODY = np.random.default_rng(0).bytes(1_000_003)


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


def anything(path):
    pass


def fetch(server, target, **arguments):
    download(server.url, target, accept=arguments.pop("accept", anything), **arguments)


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
    fetch(server, cache / "w.pth", progress=lambda _, done, total: calls.append((done, total)))
    assert (cache / "w.pth").read_bytes() == BODY
    assert names(cache) == ["w.pth"]
    assert len(calls) > 2
    assert calls[-1] == (len(BODY), len(BODY))
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)


def test_a_cut_download_leaves_nothing_and_can_be_started_again(server, cache):
    server.cut_after = 400_000
    with pytest.raises(WeightsError, match="of 1,000,003 bytes"):
        fetch(server, cache / "w.pth")
    assert names(cache) == []
    server.cut_after = None
    fetch(server, cache / "w.pth")
    assert (cache / "w.pth").read_bytes() == BODY


def test_a_server_that_states_no_length(server, cache):
    server.states_length = False
    calls = []
    fetch(server, cache / "w.pth", progress=lambda _, done, total: calls.append((done, total)))
    assert (cache / "w.pth").read_bytes() == BODY
    assert calls[-1] == (len(BODY), None)


def test_what_is_not_accepted_is_not_kept(server, cache):
    def refuse(path):
        assert path.read_bytes() == BODY
        raise WeightsError("it is a login page")

    with pytest.raises(WeightsError, match=r"127\.0\.0\.1.*not kept: it is a login page"):
        fetch(server, cache / "w.pth", accept=refuse)
    assert not (cache / "w.pth").exists()
    assert not (cache / "w.pth.part").exists()
    fetch(server, cache / "w.pth")
    assert (cache / "w.pth").read_bytes() == BODY


def test_a_missing_file_on_the_server(server, cache):
    server.status = 404
    with pytest.raises(WeightsError, match=r"d2_tf\.pth could not be downloaded \(HTTP Error 404"):
        fetch(server, cache / "w.pth")
    assert names(cache) == []


def test_offline_is_one_sentence_with_the_address_and_the_place_for_the_file(cache, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/d2_tf.pth"
    with pytest.raises(WeightsError) as offline:
        download(url, cache / "d2_tf.pth", accept=anything)
    message = str(offline.value)
    assert url in message
    assert str(cache / "d2_tf.pth") in message
    assert "refused" in message
    assert "\n" not in message


def test_a_silent_server_does_not_hang_the_program(cache, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(module, "_TIMEOUT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/w.pth"
        with pytest.raises(WeightsError, match="timed out"):
            download(url, cache / "w.pth", accept=anything)


def test_a_cache_that_cannot_be_made(server, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError):
        fetch(server, tmp_path / "file" / "w.pth")


def test_two_processes_do_not_download_the_same_file_at_once(server, cache):
    cache.mkdir()
    with locked(cache / "w.pth"), pytest.raises(OutputBusyError):
        fetch(server, cache / "w.pth")
    assert server.requests == 0


# --- weights by name


@pytest.fixture
def authors(server, monkeypatch, tmp_path):
    """The local server as the authors' address, with a file of weights."""
    path = tmp_path / "published.pth"
    names_in_file = LAYOUTS["release"]
    state = {names_in_file[name]: t for name, t in load_weights("ots").state.items()}
    torch.save({"model": state}, path, _use_new_zipfile_serialization=False)
    server.body = path.read_bytes()
    record = replace(CATALOGUE["d2_tf"], url=server.url)
    monkeypatch.setattr(weights, "CATALOGUE", {**CATALOGUE, "d2_tf": record})
    return server


def status():
    return next(entry for entry in list_weights() if entry.record.name == "d2_tf")


def test_a_name_is_downloaded_at_first_use_and_then_read_from_the_cache(authors, cache, caplog):
    assert status().state == "downloadable"
    with caplog.at_level(logging.WARNING):
        loaded = load_weights("d2_tf")
    assert authors.url in caplog.text
    assert loaded.record.name == loaded.name == "d2_tf"
    assert torch.equal(loaded.state["conv4_3.bias"], load_weights("ots").state["conv4_3.bias"])
    assert names(cache) == ["d2_tf.pth", "d2_tf.pth.sha256"]
    record = json.loads((cache / "d2_tf.pth.sha256").read_text())
    assert record == {"sha256": loaded.sha256, "bytes": len(authors.body), "url": authors.url}
    assert (status().state, status().bytes) == ("cached", len(authors.body))
    assert status().sha256 == loaded.sha256
    assert load_weights("d2_tf").sha256 == loaded.sha256
    assert authors.requests == 1


def test_describing_downloads_nothing(authors, cache):
    with pytest.raises(WeightsError, match=r"d2_tf is not on this machine yet.*by hand"):
        describe("d2_tf")
    assert authors.requests == 0
    assert download_weights("d2_tf") == cache / "d2_tf.pth"
    assert describe("d2_tf").layout == "release"
    assert download_weights("ots") == CATALOGUE["ots"].path
    with pytest.raises(WeightsError, match="no weights called"):
        download_weights("d2_tg")


def test_a_file_that_changes_after_the_first_load_is_refused(authors, cache):
    download_weights("d2_tf")
    data = bytearray((cache / "d2_tf.pth").read_bytes())
    data[-100] ^= 1
    (cache / "d2_tf.pth").write_bytes(data)
    for use in (load_weights, describe):
        with pytest.raises(WeightsError, match=r"d2_tf\.pth is damaged.*delete it.*sha256"):
            use("d2_tf")


def test_a_file_put_there_by_hand_is_taken_and_its_checksum_recorded(authors, cache):
    cache.mkdir()
    (cache / "d2_tf.pth").write_bytes(authors.body)
    assert status().sha256 is None
    loaded = load_weights("d2_tf")
    assert authors.requests == 0
    assert status().sha256 == loaded.sha256


def test_a_wrong_file_put_there_by_hand_is_not_recorded(authors, cache):
    cache.mkdir()
    (cache / "d2_tf.pth").write_bytes(b"<html>")
    with pytest.raises(WeightsError, match="not a weights file"):
        load_weights("d2_tf")
    assert names(cache) == ["d2_tf.pth"]


def test_a_login_page_instead_of_weights_is_not_kept(authors, cache):
    authors.body = b"<html>please log in</html>"
    with pytest.raises(WeightsError, match="is not a weights file and was not kept"):
        load_weights("d2_tf")
    assert "d2_tf.pth" not in names(cache)


def test_a_damaged_checksum_record_is_told(authors, cache):
    download_weights("d2_tf")
    (cache / "d2_tf.pth.sha256").write_text("[]")
    with pytest.raises(WeightsError, match=r"record .*sha256 is damaged: delete it"):
        load_weights("d2_tf")
