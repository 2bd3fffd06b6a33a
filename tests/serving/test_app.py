"""The server, asked for real: answers, refusals, limits."""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from d2net import D2Net
from d2net.features import Features
from d2net.serving import app

from ..tiny import make_tiny_model
from .served import SIZE, Served, photo, serving


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving(make_tiny_model()) as served:
        yield served


@pytest.fixture
def slow() -> Iterator[tuple[Served, threading.Event, list[int]]]:
    """A server whose extraction waits for the event, and what it has begun."""
    go, begun = threading.Event(), []

    class Slow(D2Net):
        def extract(self, *arguments: Any, **keywords: Any) -> Features:
            begun.append(1)
            assert go.wait(20)
            return super().extract(*arguments, **keywords)

    model = make_tiny_model()
    model.__class__ = Slow
    with serving(model) as served:
        yield served, go, begun
        go.set()


def test_two_photos_are_sent_shown_and_matched(served: Served) -> None:
    sent = served.send(photo(), "ü b.png")
    assert sent.status == 201
    assert sent.json["name"] == "ü b.png"
    assert sent.json["size"] == list(SIZE)
    first, second = sent.json["key"], served.found(photo(216, 208))
    picture = served.ask(f"/api/photos/{first}/picture")
    assert picture.headers["content-type"] == "image/jpeg"
    assert picture.content[:2] == b"\xff\xd8"
    keypoints = served.ask(f"/api/photos/{first}/keypoints?preset=default")
    rows = np.frombuffer(keypoints.content, "<f4").reshape(-1, 2)
    assert len(rows) > 50
    query = f"/api/match?first={first}&second={second}&preset=default"
    found = served.ask(f"{query}&number=8000").json
    assert found["inliers"] > 20
    assert max(found["first"]) < len(rows)
    fewer = served.ask(f"{query}&number=40&threshold=2").json
    assert len(fewer["first"]) < len(found["first"])
    assert fewer["threshold"] == 2


def test_nobody_has_a_photo_without_its_key_and_a_forgotten_one_is_gone(served: Served) -> None:
    key = served.sent(photo())
    assert len(key) > 20
    assert served.ask("/api/photos").status == 405
    assert served.ask(f"/api/photos/{key}", "DELETE").status == 204
    for path in ("picture", "keypoints?preset=default"):
        answer = served.ask(f"/api/photos/{key}/{path}")
        assert answer.status == 410
        assert "choose it again" in answer.json["error"]


@pytest.mark.parametrize(
    ("path", "status", "reason"),
    [
        ("/nothing", 404, "Not Found"),
        ("/static/../../config.py", 404, "Not Found"),
        ("/api/photos/{key}/keypoints?preset=sift", 400, "preset must be default, deep, original"),
        ("/api/photos/{key}/localize", 404, "--map MAP"),
        ("/map", 404, "--map MAP"),
        (
            "/api/match?first={key}&second={key}&preset=original&number=5",
            409,
            "of both photos first",
        ),
        ("/api/match?first={key}&second={key}&preset=default&number=-3", 400, "from 1 to 8192"),
        (
            "/api/match?first={key}&second={key}&preset=default&number=5&threshold=nan",
            400,
            "threshold",
        ),
        ("/api/match?first={key}&preset=default&number=5", 410, "no longer has this photo"),
    ],
)
def test_wrong_requests_are_reported(served: Served, path: str, status: int, reason: str) -> None:
    answer = served.ask(path.format(key=served.found(photo())))
    assert answer.status == status
    assert reason in answer.json["error"]


def test_other_files_and_large_ones_are_refused(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = served.send(b"not a photo")
    assert answer.status == 422
    assert "not a JPEG, PNG" in answer.json["error"]
    monkeypatch.setattr(app, "MAX_FILE", 2**20)
    whole = served.send(bytes(2**20 + 1))
    parts = served.ask("/api/photos", "POST", iter([bytes(2**19)] * 3))  # of unknown length
    for answer in (whole, parts):
        assert answer.status == 413
        assert "up to 1 MB" in answer.json["error"]


def test_a_full_queue_is_reported(
    slow: tuple[Served, threading.Event, list[int]],
) -> None:
    served, go, _ = slow
    paths = [f"/api/photos/{served.sent(photo())}/keypoints?preset=default" for _ in range(8)]
    with ThreadPoolExecutor(8) as visitors:
        answers = [visitors.submit(served.ask, path) for path in paths]
        refused = until(
            lambda: [a.result() for a in answers if a.done()], lambda done: len(done) == 1
        )
        assert refused[0].status == 503
        assert refused[0].headers["retry-after"] == "5"
        assert "waiting already" in refused[0].json["error"]
        go.set()
        assert sorted(a.result().status for a in answers) == [200] * 7 + [503]


def test_who_leaves_is_not_worked_for(slow: tuple[Served, threading.Event, list[int]]) -> None:
    served, go, begun = slow
    keys = [served.sent(photo()) for _ in range(3)]
    left = [http.client.HTTPConnection("127.0.0.1", served.port, timeout=20) for _ in keys]
    for connection, key in zip(left, keys, strict=True):
        connection.request("GET", f"/api/photos/{key}/keypoints?preset=default")
    until(lambda: len(begun), lambda number: number == 1)
    for connection in left:
        connection.close()
    time.sleep(0.6)  # longer than it takes to notice
    go.set()
    assert served.ask(f"/api/photos/{keys[0]}/keypoints?preset=default").status == 200
    assert len(begun) == 1  # it was finished and kept; the others were not begun


def test_matching_does_not_wait_for_an_extraction(
    slow: tuple[Served, threading.Event, list[int]],
) -> None:
    served, go, _ = slow
    go.set()
    key = served.found(photo())
    go.clear()
    with ThreadPoolExecutor(1) as visitor:
        waiting = visitor.submit(served.found, photo(100))
        match = f"/api/match?first={key}&second={key}&preset=default&number=50"
        assert served.ask(match).json["inliers"] > 20
        assert not waiting.done()
        go.set()


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:1", 200),
        ("127.0.0.1", 200),
        ("[::1]:8000", 200),
        ("192.168.1.7:8000", 200),
        ("rebound.example", 403),
        ("127.0.0.1.example:80", 403),
        ("", 403),
    ],
)
def test_other_names_are_refused(served: Served, host: str, status: int) -> None:
    assert served.ask("/api/about", Host=host).status == status


def test_other_sites_cannot_send_and_may_not_read(served: Served) -> None:
    own = {"Origin": served.address}
    assert served.ask("/api/photos", "POST", photo(), **own).status == 201
    for origin in ("http://other.example", "null", f"http://127.0.0.1:{served.port + 1}"):
        answer = served.ask("/api/photos", "POST", photo(), Origin=origin)
        assert answer.status == 403
        assert "access-control-allow-origin" not in answer.headers
    for path in ("/", "/api/about", "/static/main.js", "/nothing"):
        headers = served.ask(path, **own).headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == "no-store"
        assert "access-control-allow-origin" not in headers


def until(ask: Callable[[], Any], good: Callable[[Any], bool]) -> Any:
    """What is asked for, as soon as it is good."""
    end = time.monotonic() + 20
    while not good(answer := ask()):
        assert time.monotonic() < end, answer
        time.sleep(0.02)
    return answer


def test_a_learned_matcher_leaves_the_model_that_it_matches() -> None:
    assert [*app._Site(D2Net.from_pretrained(), None, "learned")._models] == ["default"]
    assert len(app._Site(D2Net.from_pretrained(), None, "nearest")._models) > 1
