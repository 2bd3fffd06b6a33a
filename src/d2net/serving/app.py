"""The page's requests and their answers, and the server."""

from __future__ import annotations

import asyncio
import math
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import TypeVar

import uvicorn
from jinja2 import Environment, PackageLoader
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from d2net.errors import D2NetError, InputError
from d2net.extraction.d2net import D2Net
from d2net.mapping.localize import Map
from d2net.mapping.map_folder import MapFolder
from d2net.matching import check_matcher
from d2net.serving.guard import Guard
from d2net.serving.photos import (
    MAX_FILE,
    MAX_KEYPOINTS,
    MAX_PIXELS,
    Photos,
    SentPhoto,
    match_best,
    presets,
)
from d2net.serving.shown_map import ShownMap

MAX_EXTRACTIONS, MAX_QUICK = 6, 12
"""Waiting extractions and localizations, and other waiting work (less than a second each)."""

_MAX_CONNECTIONS = 64
_POLL_SECONDS = 0.2  # between checks whether a client is still connected

Result = TypeVar("Result")


def serve(
    model: D2Net,
    weights: str,
    *,
    map_folder: Path | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    matcher: str = "nearest",
    ready: Callable[[str], None],
) -> None:
    """Serve the page until Ctrl-C.

    Photos are localized in `map_folder`, if it is given. Only this machine reaches 127.0.0.1, and
    port 0 is any free port. `ready` gets the page's URL before the first request is answered;
    see `d2net.match` for `matcher`. `weights` are those of `model`, as they were given.
    """
    with listen(host, port) as listening:
        check_matcher(matcher, model.descriptor_id())
        shown = None
        if map_folder is not None:
            made_with = MapFolder(map_folder).made_by()["weights"]
            own = weights if made_with["sha256"] == model.weights["sha256"] else None
            opened = Map.open(map_folder, weights=own, device=str(model.device), matcher=matcher)
            shown = ShownMap(opened)
        config = uvicorn.Config(
            make_app(model, shown, [host], matcher),
            log_level="error",
            access_log=False,  # would reveal names of photos
            server_header=False,
            limit_concurrency=_MAX_CONNECTIONS,
            timeout_graceful_shutdown=1,
        )
        name = f"[{host}]" if ":" in host else host
        if host in ("0.0.0.0", "::"):  # noqa: S104 (all addresses of this machine)
            name = socket.gethostname()
        ready(f"http://{name}:{listening.getsockname()[1]}/")
        uvicorn.Server(config).run(sockets=[listening])


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; InputError if the address cannot be used."""
    if not host:  # the socket would listen on all addresses
        raise InputError("--host needs an address, such as 127.0.0.1")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        reason = str(getattr(error, "strerror", None) or error).partition(" (while")[0].rstrip(".")
        raise InputError(
            f"cannot listen on port {port} of {host}: {reason}; change --port or --host"
        ) from error


def make_app(
    model: D2Net, shown: ShownMap | None = None, names: Iterable[str] = (), matcher: str = "nearest"
) -> Starlette:
    """The page as an ASGI application; `names` are those of this machine, besides `localhost`."""
    site = _Site(model, shown, matcher)
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
            HTTPException: _error,
            D2NetError: _error,
            ClientDisconnect: lambda *_: Response(status_code=499),
        },
        lifespan=site.lifespan,
    )


class Worker:
    """Does one job after the other in its own thread; `max_waiting` more may wait."""

    def __init__(self, name: str, max_waiting: int) -> None:
        self._executor = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._free = max_waiting + 1

    async def run(
        self, job: Callable[[], Result], is_gone: Callable[[], Awaitable[bool]]
    ) -> Result:
        """Do the job in the thread as soon as it is free, and return its result.

        A waiting job is dropped when its client `is_gone` (HTTPException 499). A running job is
        finished, because nothing can interrupt the network. A full queue is an HTTPException 503.
        """
        if self._free == 0:
            message = "too many photos are waiting already; try again in a moment"
            raise HTTPException(503, message, {"retry-after": "5"})
        self._free -= 1
        future = self._executor.submit(job)
        try:
            waiting = asyncio.wrap_future(future)
            while not (await asyncio.wait([waiting], timeout=_POLL_SECONDS))[0]:
                if await is_gone():
                    future.cancel()
                    raise HTTPException(499)
            return waiting.result()
        finally:
            self._free += 1

    def stop(self) -> None:
        """Drop the jobs that wait."""
        self._executor.shutdown(wait=False, cancel_futures=True)


class _Site:
    def __init__(self, model: D2Net, shown: ShownMap | None, matcher: str) -> None:
        # A learned matcher knows the descriptors of the given model only.
        self._models = presets(model) if matcher == "nearest" else {"default": model}
        self._shown = shown
        self._matcher = matcher
        self._photos = Photos()
        self._extraction = Worker("extraction", MAX_EXTRACTIONS)
        self._quick = Worker("quick", MAX_QUICK)

    @asynccontextmanager
    async def lifespan(self, _: Starlette) -> AsyncIterator[None]:
        yield
        self._extraction.stop()
        self._quick.stop()

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
                "presets": list(self._models),
                "max_bytes": MAX_FILE,
                "max_megapixels": MAX_PIXELS // 1_000_000,
                "weights": self._models["default"].weights["name"],
                "map": None if self._shown is None else self._shown.about(),
            }
        )

    async def send_photo(self, request: Request) -> Response:
        name = request.query_params.get("name", "photo")[:200]
        content = bytearray()
        async for part in request.stream():
            content += part
            if len(content) > MAX_FILE:
                most = MAX_FILE // 2**20
                raise HTTPException(413, f"photos may have up to {most} MB; reduce it first")
        upright = self._shown is None or self._shown.upright
        read = partial(SentPhoto.read, bytes(content), upright=upright)
        photo = await self._quick.run(read, request.is_disconnected)
        self._photos.add(photo)
        return JSONResponse({"key": photo.key, "name": name, "size": photo.size}, 201)

    async def forget_photo(self, request: Request) -> Response:
        self._photos.forget(request.path_params["key"])
        return Response(status_code=204)

    async def picture(self, request: Request) -> Response:
        return Response(self._photo(request.path_params["key"]).picture, media_type="image/jpeg")

    async def keypoints(self, request: Request) -> Response:
        photo, preset = self._photo(request.path_params["key"]), self._preset(request)
        job = partial(photo.extract, self._models[preset], preset)
        features = await self._extraction.run(job, request.is_disconnected)
        self._photos.tidy()
        packed = features.keypoints.cpu().numpy().astype("<f4").tobytes()  # N x 2, (x, y)
        return Response(packed, media_type="application/octet-stream")

    async def match(self, request: Request) -> Response:
        a, b = (self._photo(request.query_params.get(which, "")) for which in ("first", "second"))
        preset = self._preset(request)
        if preset not in a.features or preset not in b.features:
            raise HTTPException(409, f"ask for the {preset} keypoints of both photos first")
        number = _number(request, "number", 1, MAX_KEYPOINTS)
        threshold = None
        if "threshold" in request.query_params:
            threshold = _number(request, "threshold", 0.01, 1000)
        job = partial(match_best, a, b, preset, int(number), threshold, self._matcher)
        return JSONResponse(await self._quick.run(job, request.is_disconnected))

    def _preset(self, request: Request) -> str:
        preset = request.query_params.get("preset", "")
        if preset not in self._models:
            raise HTTPException(400, f"preset must be {', '.join(self._models)}, not {preset!r}")
        return preset

    def _photo(self, key: str) -> SentPhoto:
        photo = self._photos.get(key)
        if photo is None:
            raise HTTPException(410, "the server no longer has this photo; choose it again")
        return photo

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


def _number(request: Request, name: str, low: float, high: float) -> float:
    text = request.query_params.get(name, "")
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not low <= number <= high:
        raise HTTPException(400, f"{name} must be from {low:g} to {high:g}, not {text!r}")
    return number


async def _error(_: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException):
        return JSONResponse({"error": error.detail}, error.status_code, error.headers)
    return JSONResponse({"error": str(error)}, 422)
