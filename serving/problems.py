"""Every error of the API as problem+json (RFC 9457), without echoing the input."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import orjson
import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from afterclick.errors import (
    AfterclickError,
    AlreadyRunning,
    AlreadyThere,
    BadInput,
    NotFound,
    NotRunning,
    Unavailable,
)

MEDIA_TYPE = "application/problem+json"
MAX_PROBLEMS = 8
RETRY = {"retry-after": "1"}
STATUSES: dict[type[AfterclickError], int] = {
    NotFound: 404,
    AlreadyThere: 409,
    AlreadyRunning: 409,
    NotRunning: 409,
    Unavailable: 503,
    BadInput: 422,
}
"""Status of an error that reaches the API; the first entry that matches. Others: 500."""
DISCARDED = 1_048_576
"""Bytes of an oversized body that are read before the response; longer ones are cut off."""
NOT_HTTP = {
    status: {"description": text, "content": {"text/plain": {"schema": {"type": "string"}}}}
    for status, text in (("400", "Malformed HTTP."), ("431", "Target or headers too large."))
}
"""OpenAPI entries of what the HTTP server answers by itself."""
log = structlog.get_logger()


class FieldProblem(BaseModel):
    """One thing that is wrong with the request."""

    where: str = Field(examples=["body.rating"])
    problem: str = Field(examples=["Input should be less than or equal to 5"])


class Problem(BaseModel):
    """What went wrong, and what to do about it."""

    type: str = "about:blank"
    title: str = Field(examples=["Unprocessable Content"])
    status: int = Field(examples=[422])
    detail: str = Field(examples=["body.rating: Input should be less than or equal to 5"])
    errors: list[FieldProblem] = []


class ApiError(Exception):
    """An error response, raised in or below a route."""

    def __init__(self, status: int, detail: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status, self.detail, self.headers = status, detail, headers


def problem(
    status: int,
    detail: str,
    headers: dict[str, str] | None = None,
    errors: list[dict[str, str]] | None = None,
) -> Response:
    """The response for one problem."""
    body = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "errors": errors or [],
    }
    return Response(orjson.dumps(body), status, headers, MEDIA_TYPE)


def validation_problem(errors: list[Any]) -> Response:
    """422 for pydantic's errors. Values are left out: they may be NaN, surrogates or secrets."""
    fields = [
        {"where": _clean(".".join(str(p) for p in e["loc"])), "problem": _clean(str(e["msg"]))}
        for e in errors
    ][:MAX_PROBLEMS]
    first = (
        f"{fields[0]['where']}: {fields[0]['problem']}" if fields else "the request is not valid"
    )
    return problem(422, first, errors=fields)


def is_json(content_type: str) -> bool:
    """Whether a Content-Type is JSON: application/json or application/…+json."""
    kind = content_type.partition(";")[0].strip().lower()
    return kind == "application/json" or (
        kind.startswith("application/") and kind.endswith("+json")
    )


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """OpenAPI entries of the problems that a route can return."""
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {s: {"description": HTTPStatus(s).phrase, "content": content} for s in statuses}


def schemas() -> dict[str, Any]:
    """OpenAPI schemas of a problem."""
    problem = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
    return {**problem.pop("$defs", {}), "Problem": problem}


def unavailable(detail: str) -> ApiError:
    """503 with `retry-after`."""
    return ApiError(503, detail, RETRY)


def response_of(error: Exception) -> Response | None:
    """The problem that an error of a route is answered with; None for an unexpected error."""
    match error:
        case ApiError():
            return problem(error.status, error.detail, error.headers)
        case AfterclickError():
            status = next((code for kind, code in STATUSES.items() if isinstance(error, kind)), 500)
            return problem(status, _clean(str(error)), RETRY if status == 503 else None)
        case HTTPException():
            status = 422 if error.status_code == 400 else error.status_code  # body is not UTF-8
            return problem(status, _clean(str(error.detail)), dict(error.headers or {}))
        case RequestValidationError():
            return validation_problem(list(error.errors()))
    return None


def install(app: FastAPI) -> None:
    """Make every error of `app` a problem."""

    async def expected(_: Request, error: Exception) -> Response:
        response = response_of(error)
        assert response is not None
        return response

    async def unexpected(request: Request, error: Exception) -> Response:
        log.error("request failed", path=request.url.path, exc_info=error)
        return problem(500, "internal error; see the log of the service")

    for kind in (ApiError, AfterclickError, HTTPException, RequestValidationError):
        app.add_exception_handler(kind, expected)
    app.add_exception_handler(Exception, unexpected)


class BodyLimit:
    """ASGI middleware: 413 for a body over `limit` bytes, 408 for one slower than `timeout_s`.

    `limits` are those of single paths. The application receives the body only after all of it has
    arrived.
    """

    def __init__(
        self, app: ASGIApp, limit: int, timeout_s: float, limits: Mapping[str, int] | None = None
    ) -> None:
        self.app, self.limit, self.timeout_s, self.limits = app, limit, timeout_s, limits or {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD", "OPTIONS"):
            await self.app(scope, receive, send)
            return
        close = {"connection": "close"}
        limit = self.limits.get(scope["path"], self.limit)
        try:
            async with asyncio.timeout(self.timeout_s):
                body = await self._read(scope, receive, limit)
        except TimeoutError:
            detail = f"the body was not received within {self.timeout_s:g} s"
            await problem(408, detail, close)(scope, receive, send)
            return
        if body is None:
            detail = f"the body is larger than {limit} bytes"
            await problem(413, detail, close)(scope, receive, send)
            return
        await self.app(scope, _replay(body, receive), send)

    async def _read(self, scope: Scope, receive: Receive, limit: int) -> bytes | None:
        """The body, or None if it is over the limit."""
        announced = next((v for k, v in scope["headers"] if k == b"content-length"), b"")
        if announced.isdigit() and int(announced) > DISCARDED:
            return None
        body, size = b"", 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return body
            chunk = bytes(message.get("body", b""))
            size += len(chunk)
            # a client that is still sending would miss the response: read and drop the excess
            body = body + chunk if size <= limit else b""
            if size > DISCARDED:
                return None
            if not message.get("more_body", False):
                return body if size <= limit else None


def _replay(body: bytes, receive: Receive) -> Receive:
    first = True

    async def replayed() -> Message:
        nonlocal first
        if first:
            first = False
            return {"type": "http.request", "body": body, "more_body": False}
        return await receive()

    return replayed


def _clean(text: str) -> str:
    """Replace lone surrogates and bound the length."""
    return text.encode("utf-8", "replace").decode()[:300]
