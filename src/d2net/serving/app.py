"""What the page asks for, and the answers."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from functools import partial
from importlib.resources import files
from typing import TypeVar

from jinja2 import Environment, PackageLoader
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from d2net.errors import D2NetError
from d2net.extraction.d2net import D2Net
from d2net.serving.guard import Guard
from d2net.serving.pairs import KINDS, MAX_KEYPOINTS, find_keypoints, match_best, packed_keypoints
from d2net.serving.photos import MAX_FILE, MAX_PIXELS, Photos, SentPhoto
from d2net.serving.places import ShownMap
from d2net.serving.worker import BusyError, GoneError, Worker

Result = TypeVar("Result")

MAX_EXTRACTIONS, MAX_QUICK = 6, 12
"""How many extractions may wait, and how many of what takes less than a second."""

MAX_UPLOADS = 4
"""Photos that are received at a time."""

_UPLOAD_SECONDS = 120.0
_TIDY_SECONDS = 60.0


def make_app(model: D2Net, shown: ShownMap | None = None, names: Iterable[str] = ()) -> Starlette:
    """The page and what it asks for.

    Args:
        model: extracts; its kind of keypoints is chosen on the page.
        shown: a map to place photos in.
        names: of this machine, besides `localhost`.
    """
    site = _Site(model, shown)
    routes = [
        Route("/", site.page),
        Route("/map", site.map_page),
        Route("/api/about", site.about),
        Route("/api/photos", site.send_photo, methods=["POST"]),
        Route("/api/photos/{key}", site.forget_photo, methods=["DELETE"]),
        Route("/api/photos/{key}/picture", site.picture),
        Route("/api/photos/{key}/keypoints", site.keypoints),
        Route("/api/photos/{key}/place", site.place),
        Route("/api/match", site.match),
        Route("/api/map/picture", site.map_picture),
        Mount(
            "/static",
            StaticFiles(
                packages=[("d2net.serving", "page"), ("d2net.mapping.picture", "templates")]
            ),
        ),
    ]
    return Starlette(
        routes=routes,
        middleware=[Middleware(Guard, names=names)],
        exception_handlers={
            HTTPException: _told,
            D2NetError: _bad_input,
            BusyError: _busy,
            GoneError: _gone,
            ClientDisconnect: _gone,
        },
        lifespan=site.lifespan,
    )


class _Site:
    def __init__(self, model: D2Net, shown: ShownMap | None) -> None:
        self._model = model
        self._shown = shown
        self._photos = Photos()
        self._extraction = Worker("extraction", MAX_EXTRACTIONS)
        self._quick = Worker("quick", MAX_QUICK)
        self._uploads = 0

    @asynccontextmanager
    async def lifespan(self, _: Starlette) -> AsyncIterator[None]:
        async def tidy() -> None:
            while True:
                await asyncio.sleep(_TIDY_SECONDS)
                self._photos.tidy()

        tidying = asyncio.create_task(tidy())
        yield
        tidying.cancel()
        for worker in (self._extraction, self._quick):
            worker.stop()

    # --- The page ----------------------------------------------------------------------------

    async def page(self, _: Request) -> Response:
        return HTMLResponse((files("d2net.serving") / "page" / "index.html").read_text("utf-8"))

    async def map_page(self, request: Request) -> Response:
        shown = self._map()
        data = await self._quick.run(lambda: shown.drawn, request.is_disconnected)
        pages = Environment(loader=PackageLoader("d2net.serving", "page"), autoescape=True)
        return HTMLResponse(pages.get_template("map_frame.html.j2").render(data=data))

    async def about(self, _: Request) -> Response:
        return JSONResponse(
            {
                "kinds": list(KINDS),
                "max_bytes": MAX_FILE,
                "max_megapixels": MAX_PIXELS // 1_000_000,
                "weights": self._model.weights["name"],
                "map": None if self._shown is None else self._shown.about(),
            }
        )

    # --- Photos ------------------------------------------------------------------------------

    async def send_photo(self, request: Request) -> Response:
        name = request.query_params.get("name", "photo")[:200]
        content = await self._content(request)
        upright = self._shown is None or self._shown.upright
        read = partial(SentPhoto.read, name, content, upright=upright)
        photo = await self._quick.run(read, request.is_disconnected)
        self._photos.add(photo)
        return JSONResponse({"key": photo.key, "name": name, "size": photo.size}, 201)

    async def forget_photo(self, request: Request) -> Response:
        self._photos.forget(request.path_params["key"])
        return Response(status_code=204)

    async def picture(self, request: Request) -> Response:
        return Response(self._photo(request.path_params["key"]).picture, media_type="image/jpeg")

    async def keypoints(self, request: Request) -> Response:
        photo, kind = self._photo(request.path_params["key"]), _kind(request)
        work = partial(find_keypoints, self._model, photo, kind)
        found = await self._extraction.run(work, request.is_disconnected)
        self._photos.tidy()
        return Response(packed_keypoints(found), media_type="application/octet-stream")

    async def match(self, request: Request) -> Response:
        a, b = (self._photo(request.query_params.get(which, "")) for which in ("first", "second"))
        kind = _kind(request)
        if kind not in a.features or kind not in b.features:
            raise HTTPException(409, f"{kind} keypoints of both photos must be asked for first")
        number = _number(request, "number", 1, MAX_KEYPOINTS)
        threshold = None
        if "threshold" in request.query_params:
            threshold = _number(request, "threshold", 0.01, 1000)
        work = partial(match_best, a, b, kind, int(number), threshold)
        return JSONResponse(await self._quick.run(work, request.is_disconnected))

    # --- The map -----------------------------------------------------------------------------

    async def place(self, request: Request) -> Response:
        work = partial(self._map().place, self._photo(request.path_params["key"]))
        answer = await self._extraction.run(work, request.is_disconnected)
        self._photos.tidy()
        return JSONResponse(answer)

    async def map_picture(self, request: Request) -> Response:
        shown, name = self._map(), request.query_params.get("name", "")
        if name not in shown.map.names:
            raise HTTPException(404, f"the map has no photo {name!r}")
        work = partial(shown.picture, name)
        picture = await self._quick.run(work, request.is_disconnected)
        return Response(picture, media_type="image/jpeg")

    # --- Helpers -----------------------------------------------------------------------------

    async def _content(self, request: Request) -> bytes:
        """The bytes of a request, if they are not too many and do not take too long."""
        if int(request.headers.get("content-length", 0)) > MAX_FILE:
            raise _too_large()
        if self._uploads == MAX_UPLOADS:
            raise BusyError
        self._uploads += 1
        try:
            return await asyncio.wait_for(_received(request), _UPLOAD_SECONDS)
        except asyncio.TimeoutError:
            raise HTTPException(408, "the photo took too long to arrive; send it again") from None
        finally:
            self._uploads -= 1

    def _photo(self, key: str) -> SentPhoto:
        photo = self._photos.get(key)
        if photo is None:
            raise HTTPException(410, "this photo has been forgotten; choose it again")
        return photo

    def _map(self) -> ShownMap:
        if self._shown is None:
            raise HTTPException(404, "there is no map: start d2net serve --map MAP")
        return self._shown


async def _received(request: Request) -> bytes:
    content = bytearray()
    async for part in request.stream():
        content += part
        if len(content) > MAX_FILE:
            raise _too_large()
    return bytes(content)


def _kind(request: Request) -> str:
    kind = request.query_params.get("kind", "")
    if kind not in KINDS:
        raise HTTPException(400, f"kind must be {', '.join(KINDS)}, not {kind!r}")
    return kind


def _number(request: Request, name: str, least: float, most: float) -> float:
    text = request.query_params.get(name, "")
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not least <= number <= most:
        raise HTTPException(
            400, f"{name} must be a number from {least:g} to {most:g}, not {text!r}"
        )
    return number


# --- Errors ----------------------------------------------------------------------------------


def _too_large() -> HTTPException:
    return HTTPException(413, f"photos may have up to {MAX_FILE // 2**20} MB; reduce it first")


def _error(status: int, sentence: str) -> Response:
    return JSONResponse({"error": sentence}, status)


async def _told(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101
    return _error(error.status_code, error.detail)


async def _bad_input(_: Request, error: Exception) -> Response:
    return _error(422, str(error))


async def _busy(_: Request, __: Exception) -> Response:
    answer = _error(503, "too many photos are waiting already; try again in a moment")
    answer.headers["retry-after"] = "5"
    return answer


async def _gone(_: Request, __: Exception) -> Response:
    return Response(status_code=499)  # nobody reads it
