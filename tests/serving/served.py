"""The page served for real, from a thread, and requests to it."""

from __future__ import annotations

import http.client
import io
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import uvicorn
from PIL import Image

from d2net import D2Net
from d2net.serving.app import listen, make_app
from d2net.serving.shown_map import ShownMap

from ..tiny import DATA

SIZE = (240, 180)


def photo(left: int = 200, top: int = 200, kind: str = "PNG") -> bytes:
    """The file of a part of a real photo."""
    buffer = io.BytesIO()
    with Image.open(DATA / "graf1.jpg") as whole:
        part = whole.convert("RGB").crop((left, top, left + SIZE[0], top + SIZE[1]))
        part.save(buffer, kind)
    return buffer.getvalue()


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    content: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.content)


@dataclass(frozen=True)
class Served:
    port: int

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ask(self, path: str, method: str = "GET", body: Any = None, **headers: str) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        try:
            connection.request(method, path, body, named)
            answer = connection.getresponse()
            return Answer(answer.status, dict(answer.getheaders()), answer.read())
        finally:
            connection.close()

    def send(self, content: bytes, name: str = "photo.png") -> Answer:
        return self.ask(f"/api/photos?name={quote(name)}", "POST", content)

    def sent(self, content: bytes) -> str:
        """The key of a photo that is sent."""
        return str(self.send(content).json["key"])

    def found(self, content: bytes, preset: str = "default") -> str:
        """The key of a photo that is sent and whose keypoints are found."""
        key = self.sent(content)
        assert self.ask(f"/api/photos/{key}/keypoints?preset={preset}").status == 200
        return key


@contextmanager
def serving(model: D2Net, shown: ShownMap | None = None) -> Iterator[Served]:
    listening = listen("127.0.0.1", 0)
    config = uvicorn.Config(make_app(model, shown), log_level="error", access_log=False)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    try:
        yield Served(listening.getsockname()[1])
    finally:
        server.should_exit = True
        thread.join()
        listening.close()
