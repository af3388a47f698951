"""What every module of routes shares: how it gets the service, and how it answers."""

from __future__ import annotations

from typing import Annotated, Any

import orjson
from fastapi import Depends
from fastapi import Request as HttpRequest
from starlette.responses import Response

from afterclick.arrays import Json
from serving.problems import documented
from serving.service import Service


def service_of(request: HttpRequest) -> Service:
    service: Service = request.app.state.service
    return service


Parts = Annotated[Service, Depends(service_of)]


def reply(body: Json, status: int = 200) -> Response:
    """A JSON response, written by orjson."""
    return Response(orjson.dumps(body), status, media_type="application/json")


def answers(model: type[Any], *problems: int, status: int = 200) -> Json:
    """The OpenAPI of a route that writes its own JSON."""
    responses = {status: {"model": model}, **documented(*problems, 422, 503)}
    return {"response_model": None, "responses": responses, "status_code": status}
