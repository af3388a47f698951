"""Counts of the lists that users were shown and of the reactions to them, as Redis holds them.

A hash per partition and day of the list (`redis_keys.exposures`) has a field for the dimensions of
lists and a column:

lists           lists shown
reacted         lists with a positive reaction
shown:<place>   items shown at a place, from 0
<action>:<place>  reactions to the item at a place: each action counts once per list and item

The sum over the partitions is exact; the number of one partition alone may be negative after a
user was forgotten.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from datetime import UTC, date, datetime, timedelta
from typing import Final, NamedTuple, Self

import orjson

from afterclick.events import Impression
from afterclick.trends import DAY_MS

LISTS: Final = "lists"
REACTED: Final = "reacted"
SHOWN: Final = "shown"
MAX_PLACES: Final = 200
"""Items of a list that are counted, and that reactions join."""
MAX_FIELDS: Final = 10_000
"""Fields of a day in one partition; counts of further ones are added to `OTHER`."""
_MAX_NAME: Final = 128


class Dimensions(NamedTuple):
    """What lists are counted by."""

    source: str
    model_version: str | None = None
    policy: str | None = None
    experiment: str | None = None
    arm: str | None = None

    @classmethod
    def of(cls, shown: Impression) -> Self:
        names = (shown.model_version, shown.policy, shown.experiment, shown.arm)
        return cls(shown.source[:_MAX_NAME], *(name and name[:_MAX_NAME] for name in names))

    def encode(self) -> str:
        return orjson.dumps([*self]).decode()

    @classmethod
    def decode(cls, text: str | bytes) -> Self:
        return cls(*orjson.loads(text))


OTHER: Final = Dimensions("other")
"""Dimensions of counts beyond `MAX_FIELDS`."""


class Cell(NamedTuple):
    """One count."""

    day: str
    """yyyy-mm-dd, UTC: when the list reached the log."""
    dimensions: str
    """As `Dimensions.encode` writes them."""
    column: str

    @property
    def field(self) -> str:
        return f"{self.dimensions}\t{self.column}"

    @classmethod
    def parse(cls, day: str, field: bytes) -> Self:
        dimensions, _, column = field.decode().partition("\t")
        return cls(day, dimensions, column)


Counts = Counter[Cell]


def cells(day: str, dimensions: str, columns: Iterable[str]) -> Counts:
    """One count for each of these columns."""
    return Counter(Cell(day, dimensions, column) for column in columns)


def list_columns(n_items: int) -> list[str]:
    """The columns of a list that was shown with this many items."""
    return [LISTS, *(f"{SHOWN}:{place}" for place in range(min(n_items, MAX_PLACES)))]


def place_of(column: str) -> tuple[str, int]:
    """What a column counts, and at which place from 0; −1: of the whole list."""
    kind, _, place = column.partition(":")
    return kind, int(place) if place else -1


def day_of(log_ms: float) -> str:
    """The day (UTC) of a time in the log, milliseconds since the epoch."""
    return datetime.fromtimestamp(log_ms / 1000, UTC).date().isoformat()


def end_ms(day: str, days: int) -> int:
    """When a day has been over for `days` days, milliseconds since the epoch."""
    end = date.fromisoformat(day) + timedelta(days=days + 1)
    return (end - date(1970, 1, 1)).days * int(DAY_MS)
