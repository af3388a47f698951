"""CSV records from blocks of lines, one at a time, such that no line can take others down with it.

A quote that is never closed would swallow the rest of a file. Here a record may span at most 200 lines; if
its quote is still open then, its first line alone is handed on as it is, and reading goes on with the second.
"""

from __future__ import annotations

import csv
from collections import deque
from collections.abc import Iterator

from ingest.lines import numbered

Record = tuple[int, bytes, list[str]]  # number of the first line, raw bytes, fields
MAX_SPAN = 200


def records(source: Iterator[tuple[int, bytes]], quoting: bool) -> Iterator[list[Record]]:
    """The records of each block. Without `quoting` a line is a record and a quote is a letter."""
    if not quoting:
        for block in source:
            yield [(n, line, _text(line).split(",")) for n, line in numbered(block)]
        return
    waiting: deque[tuple[int, bytes]] = deque()
    for block in source:
        ends = block[1].endswith(b"\n")
        found = block[1][: -1 if ends else None].split(b"\n")
        waiting.extend(enumerate((line.removesuffix(b"\r") for line in found), block[0]))
        yield _drain(waiting, last=False)
    yield _drain(waiting, last=True)


def _drain(waiting: deque[tuple[int, bytes]], last: bool) -> list[Record]:
    done: list[Record] = []
    while waiting:
        span = _span(waiting)
        if span is None and not last and len(waiting) <= MAX_SPAN:
            break  # its end may be in the next block
        number = waiting[0][0]
        raw = b"\n".join(waiting.popleft()[1] for _ in range(span or 1))
        if raw.strip():
            done.append((number, raw, _fields(raw)))
    return done


def _span(waiting: deque[tuple[int, bytes]]) -> int | None:
    """How many lines the first record takes, or None if its quote does not close in sight."""
    quotes = 0
    for count, (_, line) in enumerate(waiting, 1):
        quotes += line.count(b'"')
        if quotes % 2 == 0:
            return count
        if count > MAX_SPAN:
            return None
    return None


def _fields(raw: bytes) -> list[str]:
    try:
        return next(csv.reader([_text(raw)], strict=False), [])
    except csv.Error:
        return []


def _text(raw: bytes) -> str:
    # undecodable bytes become lone surrogates, which no id or text may hold
    return raw.decode("utf-8", "surrogateescape")
