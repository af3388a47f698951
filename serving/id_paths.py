"""Ids in paths: whatever feedback accepts, also with slashes and percent signs.

A server decodes a path before it matches routes, so that an encoded slash in an id would separate
two segments. `EncodedPaths` keeps `/` and `%` of a segment encoded in scope["path"]; the routes'
convertor `id` (`/items/{item_id:id}`) decodes them.
"""

from __future__ import annotations

from typing import Final
from urllib.parse import unquote

from starlette.convertors import Convertor, register_url_convertor
from starlette.types import ASGIApp, Receive, Scope, Send


def segment(value: str) -> str:
    """A segment of scope["path"] with its `/` and `%` encoded."""
    return value.replace("%", "%25").replace("/", "%2F")


def value_of(encoded: str) -> str:
    """The value of a segment of scope["path"]."""
    if "%" not in encoded:
        return encoded
    return encoded.replace("%2F", "/").replace("%25", "%")


class IdConvertor(Convertor[str]):
    """A segment of a path that is an id."""

    regex: Final = "[^/]+"  # type: ignore[misc]

    def convert(self, value: str) -> str:
        return value_of(value)

    def to_string(self, value: str) -> str:
        return segment(value)


class EncodedPaths:
    """ASGI middleware: decodes the segments of a path apart, all but `/` and `%`."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        raw: bytes = scope.get("raw_path") or b""
        if b"%" in raw:
            path = raw.partition(b"?")[0].decode("latin-1")
            scope["path"] = "/".join(segment(unquote(part)) for part in path.split("/"))
        await self.app(scope, receive, send)


register_url_convertor("id", IdConvertor())
