"""Routes without FastAPI's routing and dependency solving, a large part of a small request's time.

`DirectRoutes` calls them before FastAPI's router, which still reads their signatures for the
OpenAPI document. An endpoint may have these parameters:

service   the Service
admin     whether the caller's key has the scope `admin`
query     a model of the query string, annotated `Query()`
body      a model of the JSON body, annotated `Body()`

Every other route uses plain FastAPI with `ServiceDep`. A user token is checked in both: here the
user ids of query and body, elsewhere those of the path.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine, Iterable
from typing import Annotated, Any, get_args, get_origin, get_type_hints
from urllib.parse import parse_qsl

import orjson
from fastapi import Depends, Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, TypeAdapter, ValidationError
from starlette.responses import Response
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from afterclick.arrays import Json
from serving.problems import ApiError, documented, is_json, response_of
from serving.routes.queries import BODY_TAGS
from serving.service import Service

Handler = Callable[[Scope, Receive, Send], Coroutine[Any, Any, Response]]


SUPPLIED = {"service", "admin", "query", "body"}


class DirectRoute(APIRoute):
    """An APIRoute that validates query and body itself. Only `DirectRoutes` calls it."""

    def handler(self) -> Handler:
        """What answers a request. Raises ApiError, AfterclickError, RequestValidationError."""
        endpoint: Callable[..., Coroutine[Any, Any, Response]] = self.endpoint
        hints = get_type_hints(endpoint, include_extras=True)
        unknown = inspect.signature(endpoint).parameters.keys() - SUPPLIED
        if unknown:
            raise TypeError(f"{endpoint.__name__}: DirectRoute does not supply {unknown}")
        query = QueryReader(_bare(hints["query"])) if "query" in hints else None
        body = TypeAdapter(hints["body"]) if "body" in hints else None

        async def handle(scope: Scope, receive: Receive, send: Send) -> Response:
            values: Json = {"service": scope["app"].state.service}
            if "admin" in hints:
                values["admin"] = bool(scope.get("admin"))
            if query is not None:
                values["query"] = await _admitted(scope, query.read(scope["query_string"]))
            if body is not None:
                raw = await _json(Request(scope, receive, send))
                validated = _validated("body", body.validate_json, raw)
                values["body"] = await _admitted(scope, validated)
            return await endpoint(**values)

        return handle


class DirectRoutes:
    """ASGI middleware: answers requests to the direct routes; passes on all others."""

    def __init__(self, app: ASGIApp, routes: Iterable[BaseRoute]) -> None:
        self.app = app
        self._routes = {
            (method, route.path): (route, route.handler())
            for route in routes
            if isinstance(route, DirectRoute)
            for method in route.methods or ()
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        found = self._routes.get((scope.get("method", ""), scope.get("path", "")))
        if found is None:
            await self.app(scope, receive, send)
            return
        scope["route"], handle = found
        try:
            response = await handle(scope, receive, send)
        except Exception as error:
            expected = response_of(error)
            if expected is None:
                raise
            response = expected
        await response(scope, receive, send)


class QueryReader:
    """Reads a query string into its model. Raises RequestValidationError."""

    def __init__(self, model: type[BaseModel]) -> None:
        self._model = model
        fields = model.model_fields.items()
        self._lists = frozenset(
            name for name, field in fields if get_origin(_bare(field.annotation)) is list
        )

    def read(self, raw: bytes) -> Any:
        values: dict[str, Any] = {}
        for name, value in parse_qsl(raw.decode("latin-1"), keep_blank_values=True):
            if name in self._lists:
                values.setdefault(name, []).append(value)
            else:
                values[name] = value
        return _validated("query", self._model.model_validate, values)


def check_subject(scope: Scope, *user_ids: str | None) -> None:
    """Raises ApiError (403) for another user than that of the request's token."""
    subject = scope.get("subject")
    if subject is not None and any(user_id not in (None, subject) for user_id in user_ids):
        raise ApiError(403, "this token is for another user")


async def _admitted(scope: Scope, value: Any) -> Any:
    """A query or body whose users the caller may name and whose cost is within the rate limit.

    Raises ApiError: 403 or 429.
    """
    check_subject(scope, *_users_of(value))
    cost = getattr(value, "cost", 1)
    if cost > 1 and (charge := scope.get("charge")):
        rejection = await charge(cost - 1)
        if rejection is not None:
            raise ApiError(rejection.status, rejection.detail, rejection.headers)
    return value


async def own_path(request: Request) -> None:
    """Dependency: check the user id of the path."""
    check_subject(request.scope, request.path_params.get("user_id"))


async def key_only(request: Request) -> None:
    """Dependency: reject tokens, which are valid for one user, where two are concerned."""
    if "subject" in request.scope:
        raise ApiError(403, "a token is valid for one user or session: use an API key")


async def service_of(request: Request) -> Service:
    """Dependency: the Service. A coroutine like `own_path`: functions would run in threads."""
    service: Service = request.app.state.service
    return service


async def is_admin(request: Request) -> bool:
    """Dependency: whether the caller's key has the scope `admin`."""
    return bool(request.scope.get("admin"))


ServiceDep = Annotated[Service, Depends(service_of)]
AdminDep = Annotated[bool, Depends(is_admin)]


def json_response(body: Json, status: int = 200) -> Response:
    """A JSON response, written by orjson."""
    return Response(orjson.dumps(body), status, media_type="application/json")


def responses(model: Any, *problems: int, status: int = 200) -> Json:
    """Decorator arguments that document a route which returns a Response."""
    documentation = {status: {"model": model}, **documented(*problems, 422, 503)}
    return {"response_model": None, "responses": documentation, "status_code": status}


def _users_of(value: Any) -> tuple[str | None, ...]:
    """The user ids that a query or body names."""
    user_id = getattr(value, "effective_user_id", getattr(value, "user_id", None))
    return (user_id, *getattr(value, "user_ids", ()))


async def _json(request: Request) -> bytes:
    if not is_json(request.headers.get("content-type", "")):
        message = "the body must be application/json"
        error = {"type": "content_type", "loc": ("body",), "msg": message}
        raise RequestValidationError([error])
    return await request.body()


def _validated(where: str, validate: Callable[[Any], Any], value: Any) -> Any:
    try:
        return validate(value)
    except ValidationError as error:
        errors = error.errors(include_url=False, include_context=False, include_input=False)
        places = [tuple(part for part in e["loc"] if part not in BODY_TAGS) for e in errors]
        raise RequestValidationError(
            [{**e, "loc": (where, *place)} for e, place in zip(errors, places, strict=True)]
        ) from None


def _bare(hint: Any) -> Any:
    """The type inside Annotated[…]."""
    return get_args(hint)[0] if hasattr(hint, "__metadata__") else hint
