"""What can be asked over HTTP?"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from importlib import resources
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect

from topwork.serve.batching import LANES, MOST
from topwork.serve.desk import Desk, Sent, Served, Wanted, about
from topwork.serve.guard import GONE, Guard, Limits, Refused, problem
from topwork.serve.metrics import Counted
from topwork.serve.schema import (
    ANSWERED,
    BODY,
    PROBLEMS,
    About,
    Answers,
    FalseAlarm,
    HeatMap,
    Limit,
    Models,
    Nearest,
    Sets,
    Top,
)

INTERFACE = "1"
"""Version of what can be asked; raised when something that could be asked no longer can."""

PAGE = {"page.html": "text/html", "page.css": "text/css", "page.js": "text/javascript"}


def create(
    served: Mapping[str, Served], *, limits: Limits | None = None, key: str | None = None,
    hosts: frozenset[str] = frozenset(), batch: int = MOST, lanes: int = LANES,
) -> Guard:  # fmt: skip
    """The ASGI application over models that are loaded. The first one answers where none is named.

    `key`: what must be sent with every request but the page's own; None: nothing. `hosts`: names that it answers to;
    none: all. `batch`: images computed together at most; `lanes`: batches of one model at once.
    """
    limits, counted = limits or Limits(), Counted()
    desk = Desk(served, limits, counted, batch=batch, lanes=lanes)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await desk.open()
        yield
        await desk.close()

    app = FastAPI(
        title="topwork", version=INTERFACE, lifespan=lifespan, docs_url=None, redoc_url=None,
        description="Classes and calibrated probabilities of images. Nothing is read from a path or an address.",
    )  # fmt: skip
    guard = Guard(app, limits, counted, key=key, hosts=hosts)
    _problems(app)
    _questions(app, desk, limits)
    _state(app, desk, guard, counted)
    for file, kind in PAGE.items():
        text = resources.files("topwork.serve").joinpath(file).read_text(encoding="utf-8")
        path = "/" if file == "page.html" else f"/{file}"
        app.add_api_route(
            path, partial(_text, text, kind), methods=["GET", "HEAD"], include_in_schema=False, response_class=Response
        )
    return guard


def openapi(guard: Guard) -> dict[str, Any]:
    """The OpenAPI document of an application."""
    app = guard.app
    assert isinstance(app, FastAPI)
    return app.openapi()


def _wanted(
    top: Top = None, sets: Sets = None, false_alarm: FalseAlarm = None, heat_map: HeatMap = False, nearest: Nearest = 0
) -> Wanted:
    return Wanted(top, sets, false_alarm, heat_map, nearest)


def _questions(app: FastAPI, desk: Desk, limits: Limits) -> None:
    """What is asked of models."""
    extra = {"requestBody": BODY}

    @app.post("/predict", responses=ANSWERED, openapi_extra=extra, summary="Ask the first model")
    async def predict(request: Request, wanted: Annotated[Wanted, Depends(_wanted)]) -> Answers:
        """Classes of one image (sent as it is) or of several (sent as a form's files)."""
        return await desk.answer(None, await _images(request, limits), wanted)

    @app.post("/models/{name}/predict", responses=ANSWERED, openapi_extra=extra, summary="Ask one of the models")
    async def predict_with(request: Request, name: str, wanted: Annotated[Wanted, Depends(_wanted)]) -> Answers:
        """As /predict, by the model of this name."""
        desk.chosen(name)  # before the body is read
        return await desk.answer(name, await _images(request, limits), wanted)

    @app.get("/models", summary="Which models there are")
    async def models() -> Models:
        return Models(models=[about(s) for s in desk.served.values()])

    @app.get("/models/{name}", responses={404: PROBLEMS[404]}, summary="What one model is")
    async def model(name: str) -> About:
        return about(desk.chosen(name))

    @app.get("/limits", summary="What one request may take")
    async def limited() -> Limit:
        return Limit(**{n: getattr(limits, n) for n in Limit.model_fields})


def _state(app: FastAPI, desk: Desk, guard: Guard, counted: Counted) -> None:
    """What is asked of the server itself."""

    @app.get("/health", summary="Whether the server lives", response_class=PlainTextResponse)
    async def health() -> str:
        return "ok\n"

    @app.get(
        "/ready", responses={503: PROBLEMS[503]}, summary="Whether it takes images now",
        response_class=PlainTextResponse,
    )  # fmt: skip
    async def ready() -> str:
        full = desk.full()
        if full or not desk.batchers:
            raise Refused(503, f"no room for images of {', '.join(full) or 'any model'}", **{"retry-after": "1"})
        return "ok\n"

    @app.get("/metrics", summary="Counts and times, for Prometheus", response_class=PlainTextResponse)
    async def metrics() -> Response:
        taken = {n: b.taken for n, b in desk.batchers.items()}
        return Response(counted.text(taken, guard.requests), media_type=Counted.MEDIA)


def _problems(app: FastAPI) -> None:
    """What is answered where there is no answer."""

    @app.exception_handler(Refused)
    async def refused(_: Request, error: Refused) -> JSONResponse:
        return _problem(error.status, error.detail, error.headers)

    @app.exception_handler(HTTPException)
    async def http(_: Request, error: HTTPException) -> JSONResponse:
        return _problem(error.status_code, str(error.detail), dict(error.headers or {}))

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        said = (f"{'.'.join(map(str, e['loc'][1:])) or e['loc'][0]}: {e['msg']}" for e in error.errors())
        return _problem(422, "; ".join(said))

    @app.exception_handler(ClientDisconnect)
    async def gone(_: Request, __: ClientDisconnect) -> Response:
        return Response(status_code=GONE)

    @app.exception_handler(Exception)
    async def failed(_: Request, __: Exception) -> JSONResponse:
        return _problem(500, "the model could not be computed; the server's log says why")


class _InMemory(MultiPartParser):
    """A form whose files stay in memory: their bytes are counted as they come, and no file is ever written."""

    spool_max_size = 2**62


async def _images(request: Request, limits: Limits) -> list[Sent]:
    """The images of a request. Raises Refused: 400, 413, 415."""
    kind = request.headers.get("content-type", "application/octet-stream").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        return await _form(request, limits)
    if kind != "application/octet-stream" and not kind.startswith("image/"):
        raise Refused(415, f"{kind}: send an image (image/jpeg, application/octet-stream ...) or multipart/form-data")
    data = await request.body()
    if not data:
        raise Refused(400, "the request has no body; send an image's bytes, or a form with files")
    return [Sent(None, data)]


async def _form(request: Request, limits: Limits) -> list[Sent]:
    data = await request.body()  # whole first: what fails on its way leaves no half-read form behind

    async def came() -> AsyncGenerator[bytes, None]:
        yield data

    try:
        parser = _InMemory(request.headers, came(), max_files=limits.images, max_fields=limits.images)
        form = await parser.parse()
    except MultiPartException as error:
        if error.message.startswith("Too many files"):
            raise Refused(413, f"a request may have {limits.images} images; send the others in another one") from error
        raise Refused(400, f"the form cannot be read: {error.message}") from error
    except KeyError as error:
        raise Refused(400, "the form cannot be read: its content type states no boundary") from error
    try:
        sent = [Sent(v.filename or None, await v.read()) for _, v in form.multi_items() if isinstance(v, UploadFile)]
    finally:
        await form.close()
    if not sent:
        raise Refused(400, "the form has no files; send images as files of a field such as `image`")
    return sent


async def _text(text: str, kind: str) -> Response:
    return Response(text, media_type=f"{kind}; charset=utf-8")


def _problem(status: int, detail: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    return JSONResponse(problem(status, detail), status, dict(headers or {}), media_type="application/problem+json")
