"""Every error of the API as problem+json (RFC 9457): one shape, nothing of the input echoed back."""

from __future__ import annotations

import asyncio
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

MEDIA_TYPE = "application/problem+json"
MAX_PROBLEMS = 8
DISCARDED = 1_048_576
"""Bytes of a body that is too large which are read before the answer; a larger one is cut off."""
BODY_S = 10.0
"""How long a client may take to send a body."""
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
    """An answer other than success, raised anywhere below a route."""

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


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The OpenAPI entries of the problems a route can answer."""
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {s: {"description": HTTPStatus(s).phrase, "content": content} for s in statuses}


def install(app: FastAPI) -> None:
    """Make every error of `app` a problem."""

    async def api_error(_: Request, error: Exception) -> Response:
        assert isinstance(error, ApiError)
        return problem(error.status, error.detail, error.headers)

    async def http_error(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return problem(error.status_code, _clean(str(error.detail)), dict(error.headers or {}))

    async def invalid(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return validation_problem(list(error.errors()))

    async def unexpected(request: Request, error: Exception) -> Response:
        log.error("request failed", path=request.url.path, exc_info=error)
        return problem(500, "an error inside the service; it has been logged")

    app.add_exception_handler(ApiError, api_error)
    app.add_exception_handler(HTTPException, http_error)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(Exception, unexpected)


class BodyLimit:
    """ASGI middleware: 413 for a request body over `limit` bytes, announced or chunked; 408 for a slow one.

    The whole body is read before the application sees any of it, so nothing half-read is acted upon.
    """

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self.app, self.limit = app, limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD", "OPTIONS"):
            await self.app(scope, receive, send)
            return
        try:
            async with asyncio.timeout(BODY_S):
                body = await self._read(scope, receive)
        except TimeoutError:
            too_slow = problem(
                408, f"the body did not come in {BODY_S:g} s", {"connection": "close"}
            )
            await too_slow(scope, receive, send)
            return
        if body is None:
            too_large = problem(
                413, f"the body is over {self.limit} bytes", {"connection": "close"}
            )
            await too_large(scope, receive, send)
            return
        await self.app(scope, _replay(body, receive), send)

    async def _read(self, scope: Scope, receive: Receive) -> bytes | None:
        """The body, or None where it is over the limit."""
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
            # a client that is still sending would miss the answer: what is too much is read and dropped
            body = body + chunk if size <= self.limit else b""
            if size > DISCARDED:
                return None
            if not message.get("more_body", False):
                return body if size <= self.limit else None


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
    """Text that any JSON encoder takes: lone surrogates replaced, length bounded."""
    return text.encode("utf-8", "replace").decode()[:300]
