"""Routes without FastAPI's dependency solving, which takes a third of the time of a small request.

FastAPI still reads the signatures for the OpenAPI document. An endpoint may have these parameters:

service   the Service
admin     whether the caller's key has the scope `admin`
query     a model of the query string, annotated `Query()`
body      a model of the JSON body, annotated `Body()`

Every other route uses plain FastAPI with `ServiceDep`. A user token is checked in both: here the
user ids of query and body, elsewhere those of the path.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine
from typing import Annotated, Any, get_args, get_origin, get_type_hints
from urllib.parse import parse_qsl

import orjson
from fastapi import Depends, Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, TypeAdapter, ValidationError
from starlette.responses import Response

from afterclick.arrays import Json
from serving.problems import ApiError, documented, is_json
from serving.service import Service

Handler = Callable[[Request], Coroutine[Any, Any, Response]]


SUPPLIED = {"service", "admin", "query", "body"}


class DirectRoute(APIRoute):
    """An APIRoute that validates query and body itself."""

    def get_route_handler(self) -> Handler:
        endpoint: Callable[..., Coroutine[Any, Any, Response]] = self.endpoint
        hints = get_type_hints(endpoint, include_extras=True)
        unknown = inspect.signature(endpoint).parameters.keys() - SUPPLIED
        if unknown:
            raise TypeError(f"{endpoint.__name__}: DirectRoute does not supply {unknown}")
        query = QueryReader(_bare(hints["query"])) if "query" in hints else None
        body = TypeAdapter(hints["body"]) if "body" in hints else None

        async def handle(request: Request) -> Response:
            values: Json = {"service": request.app.state.service}
            if "admin" in hints:
                values["admin"] = await is_admin(request)
            if query is not None:
                values["query"] = query.read(request.scope["query_string"])
            if body is not None:
                values["body"] = _validated("body", body.validate_json, await _json(request))
            for value in values.values():
                check_subject(request, *_users_of(value))
                await _charge(request, getattr(value, "cost", 1))
            return await endpoint(**values)

        return handle


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


def check_subject(request: Request, *user_ids: str | None) -> None:
    """Raises ApiError (403) for another user than that of the request's token."""
    subject = request.scope.get("subject")
    if subject is not None and any(user_id not in (None, subject) for user_id in user_ids):
        raise ApiError(403, "this token is for another user")


async def _charge(request: Request, cost: int) -> None:
    """Count a request as `cost` requests. Raises ApiError (429) over the caller's rate limit."""
    if cost > 1 and (charge := request.scope.get("charge")):
        rejection = await charge(cost - 1)
        if rejection is not None:
            raise ApiError(rejection.status, rejection.detail, rejection.headers)


async def own_path(request: Request) -> None:
    """Dependency: check the user id of the path."""
    check_subject(request, request.path_params.get("user_id"))


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


def responses(model: type[Any], *problems: int, status: int = 200) -> Json:
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
        raise RequestValidationError([{**e, "loc": (where, *e["loc"])} for e in errors]) from None


def _bare(hint: Any) -> Any:
    """The type inside Annotated[…]."""
    return get_args(hint)[0] if hasattr(hint, "__metadata__") else hint
