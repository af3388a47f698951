"""The API application: routes, middleware and OpenAPI around one Service, run by uvicorn."""

from __future__ import annotations

import gc
import resource
import socket
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from random import getrandbits
from typing import Any

import structlog
import uvicorn
from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from structlog.contextvars import bind_contextvars, clear_contextvars

from afterclick.errors import Unavailable
from afterclick.io.files import private_folder
from afterclick.io.libc import keep_heap_small
from afterclick.io.logging import configure_logging
from afterclick.settings import Settings
from serving import problems
from serving.control.api_keys import read_keys
from serving.control.auth import OPEN_PATHS, AuthMiddleware, check_address
from serving.control.rate_limit import RateLimit
from serving.control.request_log import LoggedRequest, RequestLog
from serving.control.store import Database
from serving.id_paths import EncodedPaths
from serving.monitoring import Metrics
from serving.peers import Peers
from serving.routes import browsing, control_api, health, recommendations, sockets
from serving.routes.api_docs import install_docs
from serving.routes.fast_route import DirectRoutes
from serving.service import Service, ServingTimings
from serving.workers import WorkerPool

log = structlog.get_logger()
DESCRIPTION = """The list changes after the click.

Request a list, send what the user did, and watch the next list change: every item carries the
reason why it is there and the contributions to its score."""
SECURITY = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "An API key or a user token."},
    "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}
DRAIN_S = 3
"""How long open requests and WebSockets may take to end; feedback is flushed after that."""
OTHER_FILES = 512
"""Files, sockets and pipes that a process opens besides the connections of its clients."""
HEADERS = [("x-content-type-options", "nosniff")]
"""Of every response, also uvicorn's own. The pages of the documentation have a policy as well."""
MAX_MESSAGE = 65_536
SEND_BUFFER = 131_072
"""Bytes the kernel buffers for a client that does not read: some lists, not megabytes of them."""


def create_app(
    settings: Settings, timings: ServingTimings | None = None, peers: Peers | None = None
) -> FastAPI:
    """The application of one process. Its Service starts and stops with the ASGI lifespan."""
    service, serving = Service(settings, timings, peers), settings.serving

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await service.start()
        try:
            yield
        finally:
            await service.stop()

    app = FastAPI(
        title="Afterclick",
        version="1",
        summary="Recommendations that react to every event.",
        description=DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    app.state.service = service
    for routes in (recommendations, browsing, control_api, health, sockets):
        app.include_router(routes.router)
    install_docs(app)
    problems.install(app)
    app.add_middleware(DirectRoutes, routes=recommendations.router.routes)
    app.add_middleware(
        problems.BodyLimit,
        limit=serving.max_body_bytes,
        limits={"/feedback": max(serving.max_body_bytes, serving.max_feedback_bytes)},
        timeout_s=serving.body_s,
    )
    shared = settings.redis if serving.limit_shared or serving.workers > 1 else None
    limit = RateLimit(serving.limit, shared) if serving.limit else None
    control = service.control
    app.add_middleware(
        AuthMiddleware, settings=serving, keys=control.keys, tokens=control.tokens, limit=limit
    )
    if serving.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=serving.origins,
            allow_methods=_methods(app),
            allow_headers=["authorization", "content-type"],
            expose_headers=["retry-after"],
        )
    app.add_middleware(RequestMetricsMiddleware, metrics=service.metrics, requests=service.requests)
    app.add_middleware(EncodedPaths)
    _document(app)
    return app


class RequestMetricsMiddleware:
    """ASGI middleware: count, time and log each request under the path of its route.

    Binds a request id to the log lines of the request and returns it as `x-request-id`.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, requests: RequestLog) -> None:
        self.app, self.metrics, self.requests = app, metrics, requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        request_id = f"{getrandbits(128):032x}"  # uuid4 would release the interpreter lock
        clear_contextvars()
        bind_contextvars(request_id=request_id)
        if scope["type"] == "http":
            await self._measured(scope, receive, send, request_id)
        else:
            await self.app(scope, receive, send)

    async def _measured(self, scope: Scope, receive: Receive, send: Send, request_id: str) -> None:
        began, status = time.perf_counter(), 500
        id_header = (b"x-request-id", request_id.encode())

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), id_header]
            await send(message)

        try:
            await self.app(scope, receive, send_with_id)
        finally:
            seconds = time.perf_counter() - began
            route = getattr(scope.get("route"), "path_format", "unknown")
            self.metrics.on_request(route, status, seconds)
            self.requests.append(
                LoggedRequest(
                    time.time(),
                    scope["method"],
                    route,
                    scope["path"],
                    scope["query_string"],
                    status,
                    seconds,
                    scope.get("caller"),
                    scope.get("authenticated", False),
                )
            )


def run(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises Unavailable if the address is in use or, for an address beyond loopback, if the API keys
    cannot be read from SQL; BadInput for such an address without keys.
    """
    configure_logging()
    private_folder(settings.home)
    check_address(settings.serving, lambda: _has_keys(settings))
    listener = bind(settings.serving.host, settings.serving.port)
    prefer_requests()
    keep_heap_small()
    allow_files(settings.serving.max_connections)
    if settings.serving.workers == 1:
        uvicorn.Server(config_of(settings)).run(sockets=[listener])
        return
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)  # not before: the port was free
    _migrate(settings)
    WorkerPool(settings.serving.workers, listener, partial(_serve_one, settings)).run()


def _serve_one(settings: Settings, peers: Peers, listener: socket.socket) -> None:
    """One worker of several, with its own queue of connections on the port of the parent."""
    uvicorn.Server(config_of(settings, peers=peers)).run(sockets=[_same_port(listener)])


def _same_port(listener: socket.socket) -> socket.socket:
    """A further socket on a port. The kernel spreads connections evenly over those that listen.

    From a queue that all share, the worker that happens to be awake takes every connection.
    """
    own = _server_socket(listener.family)
    own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    own.bind(listener.getsockname())
    return own


def _migrate(settings: Settings) -> None:
    """Create the tables before several workers do; an outage leaves it to them."""
    database = Database(settings.database)
    try:
        database.upgrade()
    except Unavailable as error:
        log.warning("tables not created yet", error=str(error))
    finally:
        database.close()


def config_of(
    settings: Settings, timings: ServingTimings | None = None, peers: Peers | None = None
) -> uvicorn.Config:
    """The configuration of uvicorn for one process: uvloop, httptools."""
    proxies = [str(network) for network in settings.serving.proxies]
    app = create_app(settings, timings, peers)
    return uvicorn.Config(
        app,
        loop="uvloop",
        **app.state.service.connections.protocols(),
        ws_max_size=MAX_MESSAGE,
        ws_per_message_deflate=False,
        access_log=False,
        log_config=None,
        log_level="warning",
        server_header=False,
        proxy_headers=bool(proxies),  # by default uvicorn trusts every client on this machine
        forwarded_allow_ips=proxies,
        headers=HEADERS,
        timeout_graceful_shutdown=DRAIN_S,
        timeout_keep_alive=settings.serving.idle_s,
        backlog=1024,
    )


def bind(host: str, port: int) -> socket.socket:
    """A listening socket, opened before anything is built. Raises Unavailable."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = _server_socket(family)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise Unavailable(f"cannot listen on {host}:{port}: {error.strerror}; set --port") from None
    return listener


def _server_socket(family: socket.AddressFamily | int) -> socket.socket:
    """A socket to bind, with the options that every listening socket of the API has."""
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)  # connections inherit it
    return listener


def prefer_requests() -> None:
    """Keep background threads and the garbage collector from delaying requests.

    A thread that parses Kafka records yields the interpreter after 0.5 ms instead of 5 ms. The
    collector runs a fiftieth as often: requests create almost no cycles.
    """
    sys.setswitchinterval(0.0005)
    gc.set_threshold(35_000, 20, 50)


def allow_files(connections: int) -> None:
    """Raise this process's limit of open files for so many connections, as far as it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = connections + OTHER_FILES if connections else hard
    allowed = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    if soft != resource.RLIM_INFINITY and soft < allowed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    if allowed < needed:
        log.warning("too few open files for all connections: raise ulimit -n", needed=needed)


def _has_keys(settings: Settings) -> bool:
    """Whether SQL holds API keys. Raises Unavailable."""
    database = Database(settings.database)
    try:
        database.upgrade()
        with database.begin() as connection:
            return bool(read_keys(connection).rows)
    finally:
        database.close()


def _methods(app: FastAPI) -> list[str]:
    """The methods of the documented operations."""
    paths: dict[str, dict[str, Any]] = app.openapi()["paths"]
    return sorted({method.upper() for operations in paths.values() for method in operations})


def _document(app: FastAPI) -> None:
    """Describe errors and authentication in the OpenAPI document."""
    schema = app.openapi()
    components = schema["components"]["schemas"]
    components |= problems.schemas()
    for unused in ("HTTPValidationError", "ValidationError"):
        components.pop(unused, None)
    schema["components"]["securitySchemes"] = SECURITY
    for path, operations in schema["paths"].items():
        for operation in operations.values():
            _document_operation(operation, authenticated=path not in OPEN_PATHS)


def _document_operation(operation: dict[str, Any], authenticated: bool) -> None:
    responses = operation["responses"]
    for code, entry in problems.NOT_HTTP.items():
        responses.setdefault(code, entry)
    added: tuple[int, ...] = (408,) if "413" in responses else ()
    if authenticated:
        added += (401, 403, 429)
        operation["security"] = [{name: []} for name in SECURITY]
    for status, entry in problems.documented(*added).items():
        responses.setdefault(str(status), entry)
