"""The codec of the `forgotten` topic: key user_id, value up to which event time the user is forgotten."""

from __future__ import annotations

import orjson

from afterclick.errors import BadEvent


def encode(until_ms: int) -> bytes:
    """The value of a record: the user's events up to and at `until_ms` (event time) never happened."""
    return orjson.dumps({"until_ms": until_ms})


def decode(key: bytes | None, value: bytes | None) -> tuple[str, int]:
    """User and moment of a record. Raises BadEvent."""
    try:
        return (key or b"").decode(), int(orjson.loads(value or b"")["until_ms"])
    except (ValueError, KeyError, TypeError) as error:
        raise BadEvent(f"not a record of `forgotten`: {error}") from None
