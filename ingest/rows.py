"""Lines, CSV records and validated rows of dataset files.

reads   file  text files of `ingest.files`

The row rules are those of `afterclick.events.Interaction`: every accepted row is a valid event.
Texts longer than an event may carry are truncated.
"""

from __future__ import annotations

import csv
import math
import re
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from afterclick.events import Action
from ingest.files import BOM, open_bytes, read

BLOCK_BYTES = 8 << 20
MAX_LINE_BYTES = 32 << 20


def blocks(
    path: Path, size: int = BLOCK_BYTES, encoding: str | None = None
) -> Iterator[tuple[int, bytes]]:
    """Yield whole lines in blocks of about `size` bytes with the number of their first line.

    A byte order mark is dropped. Raises BadDataset for a damaged or truncated file.
    """
    number, rest = 1, b""
    with open_bytes(path, encoding) as file:
        while piece := read(file, size, path):
            rest = rest + piece if rest else piece.removeprefix(BOM) if number == 1 else piece
            whole, newline, tail = rest.rpartition(b"\n")
            if newline:
                yield number, whole + newline
                number += whole.count(b"\n") + 1
                rest = tail
            elif len(rest) > MAX_LINE_BYTES:  # not a valid line: yield it in pieces
                yield number, rest
                rest = b""
    if rest:
        yield number, rest


def numbered(block: tuple[int, bytes]) -> Iterator[tuple[int, bytes]]:
    """Yield the non-blank lines of a block with their numbers, without line ends."""
    first, raw = block
    for number, line in enumerate(raw.split(b"\n"), first):
        stripped = line.rstrip(b"\r")
        if stripped.strip():
            yield number, stripped


def lines(path: Path, encoding: str | None = None) -> Iterator[tuple[int, bytes]]:
    """Yield the non-blank lines of a file with their numbers."""
    for block in blocks(path, encoding=encoding):
        yield from numbered(block)


# An unclosed quote would swallow the rest of a file. A record may span at most MAX_SPAN lines;
# beyond that, its first line is returned as it is and parsing resumes at the second line.
Record = tuple[int, bytes, list[str]]  # number of the first line, raw bytes, fields
MAX_SPAN = 200


def records(
    source: Iterator[tuple[int, bytes]], quoting: bool, separator: str = ","
) -> Iterator[list[Record]]:
    """Yield the CSV records of each block. Without `quoting`, each line is one record."""
    if not quoting:
        for block in source:
            yield [(n, line, _decode(line).split(separator)) for n, line in numbered(block)]
        return
    waiting: deque[tuple[int, bytes]] = deque()
    for block in source:
        complete = block[1].endswith(b"\n")
        split = block[1][: -1 if complete else None].split(b"\n")
        waiting.extend(enumerate((line.removesuffix(b"\r") for line in split), block[0]))
        yield _drain(waiting, separator, last=False)
    yield _drain(waiting, separator, last=True)


def _drain(waiting: deque[tuple[int, bytes]], separator: str, last: bool) -> list[Record]:
    done: list[Record] = []
    while waiting:
        span = _span(waiting)
        if span is None and not last and len(waiting) <= MAX_SPAN:
            break  # the closing quote may be in the next block
        number = waiting[0][0]
        raw = b"\n".join(waiting.popleft()[1] for _ in range(span or 1))
        if raw.strip():
            done.append((number, raw, _fields(raw, separator)))
    return done


def _span(waiting: deque[tuple[int, bytes]]) -> int | None:
    """Number of lines of the first record; None if its quote does not close within MAX_SPAN."""
    quotes = 0
    for count, (_, line) in enumerate(waiting, 1):
        quotes += line.count(b'"')
        if quotes % 2 == 0:
            return count
        if count > MAX_SPAN:
            return None
    return None


def _fields(raw: bytes, separator: str) -> list[str]:
    try:
        return next(csv.reader([_decode(raw)], delimiter=separator, strict=False), [])
    except csv.Error:
        return []


def _decode(raw: bytes) -> str:
    # undecodable bytes become lone surrogates, which ids and texts reject
    return raw.decode("utf-8", "surrogateescape")


SCHEMA = pa.schema(
    [
        ("user_id", pa.string()),
        ("item_id", pa.string()),
        ("time_ms", pa.int64()),
        ("rating", pa.float64()),
        ("text", pa.string()),
        ("action", pa.string()),
    ]
)
MAX_TIME_MS = 4_102_444_800_000  # the year 2100
MAX_ID = 128
MAX_TEXT = 32_768
SAMPLES = 20
MAX_REASONS, LINES_PER_REASON, OTHER = 30, 5, "other reasons"
_COUNTED = re.compile(r"^\d+(?= fields)")
"""Numbers in reasons that differ from line to line."""
ACTIONS = frozenset(Action)
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")
_SURROGATE = re.compile("[\ud800-\udfff]")


class Row(NamedTuple):
    """A validated row, in the order of SCHEMA."""

    user_id: str
    item_id: str
    time_ms: int
    rating: float | None
    text: str | None
    action: str | None


@dataclass(frozen=True)
class BadLine:
    """A rejected line: its number, the reason, and its first characters."""

    line: int
    why: str
    excerpt: str


@dataclass
class ReadReport:
    """Counts of a read: `rows` = `good` + `bad`. Keeps the first SAMPLES bad lines."""

    good: int = 0
    bad: int = 0
    samples: list[BadLine] = field(default_factory=list)
    dropped: dict[str, list[int]] = field(default_factory=dict)
    """Reason → number of lines, then the first LINES_PER_REASON of them; lines or one of their
    fields. Reasons beyond MAX_REASONS are counted as `OTHER`."""

    @property
    def rows(self) -> int:
        return self.good + self.bad

    def refuse(self, line: int, why: str, raw: object) -> None:
        """Count a bad line and keep it as a sample while there is room."""
        self.bad += 1
        self.drop(line, why)
        if len(self.samples) < SAMPLES:
            text = raw.decode("utf-8", "replace") if isinstance(raw, bytes) else str(raw)
            shown = text[:80].encode("unicode_escape").decode()
            self.samples.append(BadLine(line, why, shown))

    def drop(self, line: int, why: str) -> None:
        """Count the reason why a line, or one of its fields, is not used."""
        reason = _COUNTED.sub("…", why)
        if reason not in self.dropped and len(self.dropped) >= MAX_REASONS:
            reason = OTHER
        found = self.dropped.setdefault(reason, [0])
        found[0] += 1
        if len(found) <= LINES_PER_REASON:
            found.append(line)


def check(
    user: Any, item: Any, time_ms: int, rating: Any, text: Any = None, action: Any = None
) -> Row:
    """Validate the fields of a row. Raises ValueError naming the invalid field."""
    if not 0 <= time_ms <= MAX_TIME_MS:
        raise ValueError("timestamp: outside 1970 to 2100")
    if action is not None and action not in ACTIONS:
        raise ValueError(f"action: not one of {', '.join(sorted(ACTIONS))}")
    return Row(
        _id(user, "user"), _id(item, "item"), time_ms, _rating(rating), _text(text), action or None
    )


def parse_time(value: Any) -> int:
    """Milliseconds from seconds, ms, µs or ns since 1970, by magnitude.

    Raises ValueError for anything but a finite number.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError("timestamp: missing or not a number")
    if isinstance(value, str) and "_" in value:  # Python would read 1_000 as a number
        raise ValueError("timestamp: not a number")
    try:
        number = int(value)
    except (ValueError, OverflowError):
        try:
            number = float(value)  # type: ignore[assignment]
        except ValueError:
            raise ValueError("timestamp: not a number") from None
    if not math.isfinite(number):
        raise ValueError("timestamp: not finite")
    size = abs(number)
    if size < 1e11:
        return int(number * 1000)
    if size < 1e14:
        return int(number)
    return int(number // 1000 if size < 1e17 else number // 1_000_000)


def time_unit(value: Any) -> str:
    """Unit of a time as `parse_time` reads it, or ISO 8601; empty for none of them."""
    if isinstance(value, datetime):
        return "timestamps"
    if isinstance(value, str) and "-" in value[1:]:
        return "ISO 8601"
    try:
        parse_time(value)
    except ValueError:
        return ""
    size = abs(float(value))
    return next(unit for limit, unit in _UNITS if size < limit)


_UNITS = (
    (1e11, "seconds"),
    (1e14, "milliseconds"),
    (1e17, "microseconds"),
    (math.inf, "nanoseconds"),
)


def all_valid(batch: pa.RecordBatch) -> bool:
    """True if every row obeys the rules; control characters in ids are not checked here."""
    ids = all(_ids_fit(batch.column(n)) for n in ("user_id", "item_id"))
    times, ratings, actions = (batch.column(n) for n in ("time_ms", "rating", "action"))
    if (
        not ids
        or times.null_count
        or not _within(times, 0, MAX_TIME_MS)
        or not _within(ratings, 0.0, 5.0)
    ):
        return False
    longest = pc.max(pc.utf8_length(batch.column("text"))).as_py()
    known = set(pc.unique(actions).to_pylist()) <= ACTIONS | {None}
    return known and (longest is None or longest <= MAX_TEXT)


def to_batch(rows: Iterable[Row]) -> pa.RecordBatch:
    """Validated rows as one record batch in SCHEMA."""
    columns: Any = list(zip(*rows, strict=True)) or [()] * len(SCHEMA)
    arrays = [pa.array(c, f.type) for c, f in zip(columns, SCHEMA, strict=True)]
    return pa.record_batch(arrays, schema=SCHEMA)


def _id(raw: Any, name: str) -> str:
    if isinstance(raw, bool) or not isinstance(raw, str | int):
        raise ValueError(f"{name}: missing or not a string")
    value = str(raw)
    if not 1 <= len(value) <= MAX_ID:
        raise ValueError(
            f"{name}: empty" if not value else f"{name}: longer than {MAX_ID} characters"
        )
    if _UNPRINTABLE.search(value):
        raise ValueError(f"{name}: contains a control character or a lone surrogate")
    return value


def _rating(value: Any) -> float | None:
    if value is None or value == "":
        return None
    if isinstance(value, bool):
        raise ValueError("rating: not a number")
    try:
        rating = float(value)
    except (TypeError, ValueError):
        raise ValueError("rating: not a number") from None
    if not 0 <= rating <= 5:
        raise ValueError("rating: outside 0 to 5")
    return rating


def _text(value: Any) -> str | None:
    if value is None or value == "":
        return None
    if not isinstance(value, str) or _SURROGATE.search(value):
        raise ValueError("text: not a string, or contains a lone surrogate")
    return value[:MAX_TEXT]


def _ids_fit(column: pa.Array) -> bool:
    if column.null_count:
        return False
    shortest, longest = pc.min_max(pc.utf8_length(column)).values()
    return not len(column) or (shortest.as_py() >= 1 and longest.as_py() <= MAX_ID)


def _within(column: pa.Array, low: float, high: float) -> bool:
    # NaN must fail the comparison
    inside = pc.and_(pc.greater_equal(column, low), pc.less_equal(column, high))
    return pc.all(inside).as_py() is not False
