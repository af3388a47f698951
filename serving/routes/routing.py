"""Routes that go straight from the request to pydantic to the function.

FastAPI reads the signatures for the OpenAPI document, as ever; at run time its general dependency solving
(a third of the time of a small request) is left out. A function may have these parameters:

service   the Service
query     a model of the query string, annotated `Query()`
body      a model of the JSON body, annotated `Body()`
anything else is a parameter of the path
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine
from typing import Any, get_args, get_origin, get_type_hints
from urllib.parse import parse_qsl

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, TypeAdapter, ValidationError
from starlette.responses import Response

from serving.problems import ApiError

Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class DirectRoute(APIRoute):
    """An APIRoute whose handler validates by hand."""

    def get_route_handler(self) -> Handler:
        endpoint: Callable[..., Coroutine[Any, Any, Response]] = self.endpoint
        hints = get_type_hints(endpoint, include_extras=True)
        names = list(inspect.signature(endpoint).parameters)
        query = _Query(hints["query"]) if "query" in names else None
        body = TypeAdapter(hints["body"]) if "body" in names else None
        paths = {n: TypeAdapter(hints[n]) for n in names if n not in ("service", "query", "body")}

        async def handle(request: Request) -> Response:
            values: dict[str, Any] = {}
            if "service" in hints:
                values["service"] = request.app.state.service
            for name, adapter in paths.items():
                values[name] = _checked(
                    ("path", name), adapter.validate_python, request.path_params[name]
                )
            if query is not None:
                values["query"] = query.read(request.scope["query_string"])
            if body is not None:
                values["body"] = _checked(("body",), body.validate_json, await _json(request))
            subject = request.scope.get("subject")
            if subject is not None:
                _check_subject(subject, values)
            return await endpoint(**values)

        return handle


def _check_subject(subject: str, values: dict[str, Any]) -> None:
    """A token speaks for its own user alone, wherever the request names one. Raises ApiError (403)."""
    named: list[str | None] = [values.get("user_id")]
    for value in values.values():
        named += [
            getattr(value, "who", None),
            getattr(value, "user_id", None),
            *getattr(value, "user_ids", ()),
        ]
    if any(user_id is not None and user_id != subject for user_id in named):
        raise ApiError(403, "this token is for another user")


class _Query:
    """Reads a query string into its model."""

    def __init__(self, hint: Any) -> None:
        self._model: type[BaseModel] = _bare(hint)
        fields = self._model.model_fields.items()
        self._lists = frozenset(
            name for name, field in fields if get_origin(_bare(field.annotation)) is list
        )

    def read(self, raw: bytes) -> BaseModel:
        model: BaseModel = _checked(
            ("query",), self._model.model_validate, query_values(raw, self._lists)
        )
        return model


def query_values(raw: bytes, lists: frozenset[str]) -> dict[str, Any]:
    """The values of a query string; those named in `lists` as lists, of any other the last."""
    values: dict[str, Any] = {}
    for name, value in parse_qsl(raw.decode("latin-1"), keep_blank_values=True):
        if name in lists:
            values.setdefault(name, []).append(value)
        else:
            values[name] = value
    return values


async def _json(request: Request) -> bytes:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json" and not (
        kind.startswith("application/") and kind.endswith("+json")
    ):
        problem = {
            "type": "content_type",
            "loc": ("body",),
            "msg": "the body has to be application/json",
        }
        raise RequestValidationError([problem])
    return await request.body()


def _checked(where: tuple[str, ...], validate: Callable[[Any], Any], value: Any) -> Any:
    try:
        return validate(value)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_context=False, include_input=False)
        raise RequestValidationError(
            [{**p, "loc": (*where, *p["loc"])} for p in problems]
        ) from None


def _bare(hint: Any) -> Any:
    """The type inside Annotated[…]."""
    return get_args(hint)[0] if hasattr(hint, "__metadata__") else hint
