"""The application: its endpoints, its errors, its beginning and end; and `serve`, which runs it."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

import uvicorn
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, PlainTextResponse, Response

from roclab import __version__
from roclab.core.exceptions import RocLabError
from roclab.lm.settings import LoadOptions
from roclab.server import chat, completions, embeddings, messages, responses, tokens
from roclab.server.errors import ApiError, error_body, first_error
from roclab.server.models import Models
from roclab.server.replies import ErrorReply, Health, ModelList, ModelReply, described
from roclab.server.security import Guard
from roclab.server.settings import ServerSettings

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)


def create_app(names: Sequence[str], options: LoadOptions, settings: ServerSettings) -> FastAPI:
    """The server for the models called `names`: the first is loaded as it starts, others when they are asked for."""
    models = Models(names, options, settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        first = asyncio.create_task(_load_first(models, app.state.stop))
        yield
        first.cancel()
        models.close()

    wrong = {"model": ErrorReply, "description": "What is wrong, in the shape of the API that was asked."}
    app = FastAPI(
        title="RocLab", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None,
        responses={"4XX": wrong, 503: wrong},
    )  # fmt: skip
    app.state.models, app.state.responses, app.state.stop = models, responses.Store(), lambda: None
    for part in (chat, completions, embeddings, messages, responses, tokens):
        app.include_router(part.router)
    _add_state(app, models)
    _add_errors(app)
    app.openapi_schema = _described(app)
    app.add_middleware(Guard, settings=settings)
    return app


def _described(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document, without the 422 that FastAPI adds: what cannot be read is answered 400 here."""
    found = app.openapi()
    for operations in found["paths"].values():
        for operation in operations.values():
            operation["responses"].pop("422", None)
    return found


async def _load_first(models: Models, stop: Callable[[], None]) -> None:
    try:
        await models.get(models.names[0])
    except ApiError as error:
        models.failed = error.message
        stop()


def listed(name: str, created: int) -> dict[str, Any]:
    """A model as `/v1/models` shows it."""
    return {"id": name, "object": "model", "created": created, "owned_by": "roclab"}


def _add_state(app: FastAPI, models: Models) -> None:
    """What tells of the server itself."""

    @app.head("/health", include_in_schema=False)
    @app.get("/health", responses=described(Health))
    async def health() -> JSONResponse:
        status = {"status": "ok" if models.ready else models.failed or "loading"}
        return JSONResponse(status, 200 if models.ready else 503)

    @app.get("/v1/models", responses=described(ModelList))
    async def list_models() -> dict[str, Any]:
        return {"object": "list", "data": [listed(name, models.created) for name in models.names]}

    @app.get("/v1/models/{name:path}", responses=described(ModelReply))
    async def one_model(name: str) -> dict[str, Any]:
        if name not in models.names:
            raise ApiError(404, f"model {name!r} is not served here; these are: {', '.join(models.names)}", "model")
        return listed(name, models.created)

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        return PlainTextResponse(models.metrics.text(), media_type="text/plain; version=0.0.4")


def _add_errors(app: FastAPI) -> None:
    """Every error in the shape of the API that was asked."""

    def answer(http: HttpRequest, status: int, message: str, param: str | None = None, headers: Any = None) -> Response:
        return JSONResponse(error_body(http.url.path, status, message, param), status, headers)

    @app.exception_handler(ApiError)
    async def api_error(http: HttpRequest, error: ApiError) -> Response:
        return answer(http, error.status, error.message, error.param, error.headers)

    @app.exception_handler(RocLabError)
    async def user_error(http: HttpRequest, error: RocLabError) -> Response:
        return answer(http, 400, str(error))

    @app.exception_handler(RequestValidationError)
    async def invalid(http: HttpRequest, error: RequestValidationError) -> Response:
        return answer(http, 400, *first_error(error.errors()))

    @app.exception_handler(HTTPException)
    async def http_error(http: HttpRequest, error: HTTPException) -> Response:
        return answer(http, error.status_code, str(error.detail), None, error.headers)

    @app.exception_handler(Exception)
    async def unexpected(http: HttpRequest, error: Exception) -> Response:
        return answer(http, 500, f"the server failed: {type(error).__name__}")


def serve(names: Sequence[str], options: LoadOptions, settings: ServerSettings) -> None:
    """Runs the server until it is told to end (SIGINT, SIGTERM): streams that run are finished first, for a while.
    Raises RocLabError if the address is taken, or the first model cannot be loaded."""
    app = create_app(names, options, settings)
    if resource:  # a connection is an open file, and many systems begin with 1,024
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
        listener.listen(4096)  # who connects from here on waits until the application takes them
    except OSError as error:
        raise RocLabError(f"--host {settings.host} --port {settings.port}: {error.strerror}") from None
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    logger.info("http://%s:%d/v1 (the base_url of OpenAI clients)", shown, port)
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, timeout_graceful_shutdown=30, timeout_keep_alive=75,
        server_header=False, backlog=4096, ws="none",
    )  # fmt: skip
    server = uvicorn.Server(config)
    app.state.stop = partial(setattr, server, "should_exit", True)
    server.run(sockets=[listener])
    if app.state.models.failed:
        raise RocLabError(app.state.models.failed)
