"""Cursors: the next page of a list that may change in between, without showing anything twice.

A cursor holds the ids of what was shown so far, compressed: any process can go on from it, after any restart,
whatever happened to the list meanwhile. A list that changes after the click is thus continued as it is now,
less what was shown. It is no secret and no credential: a forged one only leaves items out.
"""

from __future__ import annotations

import binascii
import zlib
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Sequence

import orjson
from pydantic import TypeAdapter, ValidationError

from afterclick.events import Id

BEGIN = "*"
"""The cursor of the first page."""
DEEPEST = 1000
"""Items that a cursor can remember; a list ends there."""
LONGEST = 32_768
"""Characters of a cursor."""
_MOST_BYTES = 200_000
_IDS = TypeAdapter(list[Id])


def encode_cursor(shown: Sequence[str]) -> str:
    """The cursor after these items."""
    return urlsafe_b64encode(zlib.compress(orjson.dumps(shown), 6)).rstrip(b"=").decode()


def decode_cursor(cursor: str) -> tuple[str, ...]:
    """The items shown so far. Raises ValueError for what is no cursor."""
    if cursor == BEGIN:
        return ()
    try:
        packed = urlsafe_b64decode(cursor.encode("ascii") + b"=" * (-len(cursor) % 4))
        stream = zlib.decompressobj()
        raw = stream.decompress(packed, _MOST_BYTES)
        if not stream.eof:
            raise ValueError
        shown = _IDS.validate_json(raw)
    except (ValueError, binascii.Error, zlib.error, ValidationError, UnicodeEncodeError):
        raise ValueError(
            f"is no cursor: begin with {BEGIN}, go on with `next` of the answer"
        ) from None
    if len(shown) > DEEPEST:
        raise ValueError("goes too deep")
    return tuple(shown)


def cursor_after(shown_before: Sequence[str], page: Sequence[str], n: int) -> str | None:
    """The cursor of the page after this one of n; None where the list has come to its end."""
    shown = (*shown_before, *page)
    if len(page) < n or len(shown) > DEEPEST:
        return None
    cursor = encode_cursor(shown)
    return cursor if len(cursor) <= LONGEST else None
