"""The application: routes, errors and limits around one Service."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from afterclick.settings import Settings
from serving.control.auth import OPEN_PATHS, Guard
from serving.control.call_limit import CallLimit
from serving.control.request_log import LoggedRequest, RequestLog
from serving.monitoring import Metrics
from serving.recent_requests import RecentRequests
from serving.routes import admin, control, insight, problems, shop, sockets
from serving.service import Service

DESCRIPTION = """The list changes after the click.

RecommendationRequest for a list, tell what the user did, and watch the next list change: every item says why it is there, and
what its score is made of."""

UNLOGGED = ("/health/live", "/health/ready", "/metrics")
"""Routes that machines ask all day long: not in the request log."""

SECURITY = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "An API key, or a user's token."},
    "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}
"""How a request shows who asks; without keys nobody needs to."""

NOT_HTTP = {
    "description": "Not valid HTTP, such as a target over 64 KiB: answered before any route.",
    "content": {"text/plain": {"schema": {"type": "string"}}},
}


def create_app(settings: Settings) -> FastAPI:
    """The application of one process. Its parts start and stop with the ASGI lifespan."""
    service = Service.of(settings)

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
        summary="Recommendations that react at once.",
        description=DESCRIPTION,
        lifespan=lifespan,
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    app.state.service = service
    app.include_router(shop.router)
    app.include_router(insight.router)
    app.include_router(control.router)
    app.include_router(admin.router)
    app.include_router(sockets.router)
    problems.install(app)
    app.add_middleware(problems.BodyLimit, limit=settings.serving.max_body_bytes)
    serving = settings.serving
    shared = settings.redis if serving.limit_shared else None
    limit = CallLimit(serving.limit, shared) if serving.limit else None
    app.add_middleware(Guard, settings=serving, keys=service.plane.keys, limit=limit)
    if serving.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=serving.origins,
            allow_methods=["GET", "POST"],
            allow_headers=["authorization", "content-type"],
            expose_headers=["retry-after"],
        )
    app.add_middleware(
        Measured, metrics=service.metrics, requests=service.requests, recent=service.recent
    )
    _document_problems(app)
    return app


class Measured:
    """ASGI middleware: count, time and log each request under its route's path, and remember the newest."""

    def __init__(
        self, app: ASGIApp, metrics: Metrics, requests: RequestLog, recent: RecentRequests
    ) -> None:
        self.app, self.metrics, self.requests, self.recent = app, metrics, requests, recent

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status = time.perf_counter(), 500

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, watched)
        finally:
            route = getattr(scope.get("route"), "path", "unknown")
            seconds = time.perf_counter() - began
            self.metrics.answered_in(route, status, seconds)
            self.recent.add(
                scope["method"], route, (scope["path"], scope["query_string"]), status, seconds
            )
            if route not in UNLOGGED:
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
                    )
                )


def _document_guard(operation: dict[str, Any]) -> None:
    """What the guard may answer before a route is asked, and what it wants to see."""
    for status, entry in problems.documented(401, 403, 429).items():
        operation["responses"].setdefault(str(status), entry)
    operation["security"] = [{name: []} for name in SECURITY]


def _document_problems(app: FastAPI) -> None:
    """Put the shape of a problem into the OpenAPI document, and out its default validation error."""
    schema = app.openapi()
    components = schema["components"]["schemas"]
    problem = problems.Problem.model_json_schema(ref_template="#/components/schemas/{model}")
    components.update(problem.pop("$defs", {}))
    components["Problem"] = problem
    schema["components"]["securitySchemes"] = SECURITY
    for unused in ("HTTPValidationError", "ValidationError"):
        components.pop(unused, None)
    for path in schema["paths"].values():
        for operation in path.values():
            operation["responses"].setdefault("400", NOT_HTTP)
            if "413" in operation["responses"]:
                operation["responses"] |= {"408": problems.documented(408)[408]}
    for route, path in schema["paths"].items():
        if route not in OPEN_PATHS:
            for operation in path.values():
                _document_guard(operation)
