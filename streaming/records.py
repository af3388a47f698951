"""Records of Kafka, in and out, and how large they may be.

Whatever arrives fits into a topic, but what is written about it might not: a dead letter adds
headers, and a state change may have many compensations. Both are limited to half of what a topic
takes, so that no record stops the ones behind it.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeVar

from afterclick.errors import BadEvent
from afterclick.events import (
    MAX_LEAD_MS,
    ImpressionEvent,
    InteractionEvent,
    decode_impression,
    decode_interaction,
)
from afterclick.topics import MAX_RECORD_BYTES, dlq

MAX_OUTPUT_BYTES = MAX_RECORD_BYTES // 2
"""Key and value of a dead letter; a larger record is replaced by a stub."""
MAX_CHANGE_BYTES = 65_536
"""A larger state change is sent without its compensations, as `resync`."""
_Timed = TypeVar("_Timed", InteractionEvent, ImpressionEvent)
_STUB_BYTES = 1024
_ERROR_BYTES = 1024


@dataclass(frozen=True, slots=True)
class Record:
    """A Kafka record. `log_ms` is its timestamp, milliseconds since the epoch."""

    offset: int
    key: bytes | None
    value: bytes | None
    log_ms: float


@dataclass(frozen=True, slots=True)
class Output:
    """A record for the Kafka sink."""

    topic: str
    key: bytes | None
    value: bytes | None
    partition: int | None = None
    headers: tuple[tuple[str, bytes], ...] = ()


def decode_record(record: Record, max_ahead_ms: float = math.inf) -> InteractionEvent:
    """The event of a record, for state and archive alike.

    An event dated more than `MAX_LEAD_MS` after it reached the log gets that latest time. With its
    own, the trend of its item would not decay until then, and what the item had before would
    lose its weight at once. Raises BadEvent, also if it is dated more than `max_ahead_ms` after it
    reached the log.
    """
    return _in_time(decode_interaction(record.value), record, max_ahead_ms)


def decode_shown(record: Record, max_ahead_ms: float = math.inf) -> ImpressionEvent:
    """The impression of a record, under the same rules."""
    return _in_time(decode_impression(record.value), record, max_ahead_ms)


def _in_time(event: _Timed, record: Record, max_ahead_ms: float) -> _Timed:
    ahead_ms = event.time_ms - record.log_ms
    if ahead_ms > max_ahead_ms:
        raise BadEvent("time: the event is dated too far after it reached the log")
    if ahead_ms <= MAX_LEAD_MS:
        return event
    latest = datetime.fromtimestamp((round(record.log_ms) + MAX_LEAD_MS) / 1000, UTC)
    return event.model_copy(update={"time": latest})


def dead_letter(topic: str, partition: int, record: Record, error: str) -> Output:
    """The dead-letter record: raw bytes, same key, headers with position and reason.

    The stub of a record over MAX_OUTPUT_BYTES has the first KB of key and value, and headers with
    the size in bytes and the SHA-256 of the whole value. The reason is cut to 1 KB.
    """
    key, value = record.key, record.value
    headers = {
        "topic": topic.encode(),
        "partition": b"%d" % partition,
        "offset": b"%d" % record.offset,
        "stage": b"decode",
        "error": _cut(error),
    }
    if len(key or b"") + len(value or b"") > MAX_OUTPUT_BYTES:
        headers["bytes"] = b"%d" % len(value or b"")
        headers["sha256"] = hashlib.sha256(value or b"").hexdigest().encode()
        key, value = key and key[:_STUB_BYTES], value and value[:_STUB_BYTES]
    return Output(dlq(topic), key, value, headers=tuple(headers.items()))


def _cut(error: str) -> bytes:
    """At most 1 KB of UTF-8, without half a character at the end."""
    raw = error.encode(errors="replace")[:_ERROR_BYTES]
    return raw.decode(errors="ignore").encode()
