"""The page's requests and their answers."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from functools import partial
from importlib.resources import files

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
from d2net.serving.pairs import MAX_KEYPOINTS, PRESETS, extract, match_best, pack_keypoints
from d2net.serving.photos import MAX_FILE, MAX_PIXELS, Photos, SentPhoto
from d2net.serving.shown_map import ShownMap
from d2net.serving.worker import BusyError, GoneError, Worker

MAX_EXTRACTIONS, MAX_QUICK = 6, 12
"""Waiting extractions and localizations, and other waiting work (less than a second each)."""

MAX_UPLOADS = 4
"""Photos that are received at a time."""

_UPLOAD_SECONDS = 120.0
_TIDY_SECONDS = 60.0


def make_app(model: D2Net, shown: ShownMap | None = None, names: Iterable[str] = ()) -> Starlette:
    """The page as an ASGI application.

    Args:
        model: extracts features, with the preset that the page's visitor chooses.
        shown: a map to localize photos in.
        names: of this machine, besides `localhost`.
    """
    site = _Site(model, shown)
    packages: list[str | tuple[str, str]] = [
        ("d2net.serving", "page"),
        ("d2net.mapping.picture", "templates"),
    ]
    return Starlette(
        routes=[
            Route("/", site.page),
            Route("/map", site.map_page),
            Route("/api/about", site.about),
            Route("/api/photos", site.send_photo, methods=["POST"]),
            Route("/api/photos/{key}", site.forget_photo, methods=["DELETE"]),
            Route("/api/photos/{key}/picture", site.picture),
            Route("/api/photos/{key}/keypoints", site.keypoints),
            Route("/api/photos/{key}/localize", site.localize),
            Route("/api/match", site.match),
            Route("/api/map/picture", site.map_picture),
            Mount("/static", StaticFiles(packages=packages)),
        ],
        middleware=[Middleware(Guard, names=names)],
        exception_handlers={
            HTTPException: _http_error,
            D2NetError: _input_error,
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
        self._extraction.stop()
        self._quick.stop()

    # --- The page ----------------------------------------------------------------------------

    async def page(self, _: Request) -> Response:
        return HTMLResponse((files("d2net.serving") / "page" / "index.html").read_text("utf-8"))

    async def map_page(self, request: Request) -> Response:
        shown = self._map()
        data = await self._quick.run(lambda: shown.page_data, request.is_disconnected)
        pages = Environment(loader=PackageLoader("d2net.serving", "page"), autoescape=True)
        return HTMLResponse(pages.get_template("map_frame.html.j2").render(data=data))

    async def about(self, _: Request) -> Response:
        return JSONResponse(
            {
                "presets": list(PRESETS),
                "max_bytes": MAX_FILE,
                "max_megapixels": MAX_PIXELS // 1_000_000,
                "weights": self._model.weights["name"],
                "map": None if self._shown is None else self._shown.about(),
            }
        )

    # --- Photos ------------------------------------------------------------------------------

    async def send_photo(self, request: Request) -> Response:
        name = request.query_params.get("name", "photo")[:200]
        if int(request.headers.get("content-length", 0)) > MAX_FILE:
            raise _too_large()
        if self._uploads == MAX_UPLOADS:
            raise BusyError
        self._uploads += 1
        try:
            content = await asyncio.wait_for(_received(request), _UPLOAD_SECONDS)
        except asyncio.TimeoutError:
            raise HTTPException(408, "the photo took too long to arrive; send it again") from None
        finally:
            self._uploads -= 1
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
        photo, preset = self._photo(request.path_params["key"]), _preset(request)
        job = partial(extract, self._model, photo, preset)
        features = await self._extraction.run(job, request.is_disconnected)
        self._photos.tidy()
        return Response(pack_keypoints(features), media_type="application/octet-stream")

    async def match(self, request: Request) -> Response:
        a, b = (self._photo(request.query_params.get(which, "")) for which in ("first", "second"))
        preset = _preset(request)
        if preset not in a.features or preset not in b.features:
            raise HTTPException(409, f"ask for the {preset} keypoints of both photos first")
        number = _number(request, "number", 1, MAX_KEYPOINTS)
        threshold = None
        if "threshold" in request.query_params:
            threshold = _number(request, "threshold", 0.01, 1000)
        job = partial(match_best, a, b, preset, int(number), threshold)
        return JSONResponse(await self._quick.run(job, request.is_disconnected))

    def _photo(self, key: str) -> SentPhoto:
        photo = self._photos.get(key)
        if photo is None:
            raise HTTPException(410, "this photo has been forgotten; choose it again")
        return photo

    # --- The map -----------------------------------------------------------------------------

    async def localize(self, request: Request) -> Response:
        job = partial(self._map().localize, self._photo(request.path_params["key"]))
        answer = await self._extraction.run(job, request.is_disconnected)
        self._photos.tidy()
        return JSONResponse(answer)

    async def map_picture(self, request: Request) -> Response:
        shown, name = self._map(), request.query_params.get("name", "")
        if name not in shown.map.names:
            raise HTTPException(404, f"the map has no photo {name!r}")
        picture = await self._quick.run(partial(shown.picture, name), request.is_disconnected)
        return Response(picture, media_type="image/jpeg")

    def _map(self) -> ShownMap:
        if self._shown is None:
            raise HTTPException(404, "there is no map: start d2net serve --map MAP")
        return self._shown


# --- Requests --------------------------------------------------------------------------------


async def _received(request: Request) -> bytes:
    content = bytearray()
    async for part in request.stream():
        content += part
        if len(content) > MAX_FILE:
            raise _too_large()
    return bytes(content)


def _preset(request: Request) -> str:
    preset = request.query_params.get("preset", "")
    if preset not in PRESETS:
        raise HTTPException(400, f"preset must be {', '.join(PRESETS)}, not {preset!r}")
    return preset


def _number(request: Request, name: str, low: float, high: float) -> float:
    text = request.query_params.get(name, "")
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not low <= number <= high:
        raise HTTPException(400, f"{name} must be from {low:g} to {high:g}, not {text!r}")
    return number


# --- Errors ----------------------------------------------------------------------------------


def _too_large() -> HTTPException:
    return HTTPException(413, f"photos may have up to {MAX_FILE // 2**20} MB; reduce it first")


async def _http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101
    return JSONResponse({"error": error.detail}, error.status_code)


async def _input_error(_: Request, error: Exception) -> Response:
    return JSONResponse({"error": str(error)}, 422)


async def _busy(_: Request, __: Exception) -> Response:
    message = "too many photos are waiting already; try again in a moment"
    return JSONResponse({"error": message}, 503, {"retry-after": "5"})


async def _gone(_: Request, __: Exception) -> Response:
    return Response(status_code=499)  # the client has disconnected
