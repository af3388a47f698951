"""What the API answers, as far as the pages show it. Unknown fields are ignored: the API may grow."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict


class _Answer(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class ShopItem(_Answer):
    """An item of the catalogue."""

    item_id: str
    title: str | None = None
    categories: tuple[str, ...] = ()
    brand: str | None = None
    price: float | None = None


class ItemDetails(ShopItem):
    """An item with its live counts."""

    interactions: int = 0
    trends: dict[str, float] = {}
    in_model: bool = False
    badges: tuple[str, ...] = ()


class Moved(_Answer):
    """An event of the user that moved an item: the item's score, less its score without that event."""

    item_id: str
    action: str
    effect: float
    title: str | None = None


class RankedItem(ShopItem):
    """An item in a list: why it is there and how its score came about. `parts` add up to `score`."""

    score: float = 0.0
    source: str = ""
    reason: str = ""
    parts: dict[str, float] = {}
    badges: tuple[str, ...] = ()
    because: tuple[Moved, ...] | None = None


class Cause(_Answer):
    """The event that changed a list."""

    event_id: str
    item_id: str | None = None
    title: str | None = None
    action: str | None = None
    stamps_ms: dict[str, float] = {}
    """Milliseconds since the epoch at which the event was in the log, in the state, and its list pushed."""


class Recommendations(_Answer):
    """A user's list."""

    user_id: str
    items: tuple[RankedItem, ...]
    source: str = ""
    degraded: bool = False
    model_version: str | None = None
    impression_id: str | None = None
    as_of: dict[str, int] = {}


class PushedList(Recommendations):
    """A list as it comes on the WebSocket; `cause` is absent on the first one."""

    cause: Cause | None = None


class HistoryItem(_Answer):
    """One interaction in a user's history."""

    event_id: str
    item_id: str
    action: str
    title: str | None = None
    time: datetime | None = None


class Accepted(_Answer):
    """Feedback that Kafka has: where it lies in the log."""

    event_id: str
    position: str


JsonObject = dict[str, Any]
