"""What the API answers. Unknown fields are ignored: the API may grow."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, RootModel

JsonObject = dict[str, Any]


class Answer(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class Json(RootModel[JsonObject]):
    """An answer as it comes."""


class ShopItem(Answer):
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


class FoundItems(Answer):
    """What a search found."""

    items: tuple[ShopItem, ...]


class CategoryRow(Answer):
    """A category, and how many items it has."""

    category: str
    items: int


class Categories(Answer):
    """What the catalogue is sorted into, the biggest first."""

    categories: tuple[CategoryRow, ...]


class Moved(Answer):
    """An event of the user that moved an item: the item's score, less its score without that event."""

    event_id: str | None = None
    item_id: str
    action: str
    effect: float
    title: str | None = None


class RankedItem(ShopItem):
    """An item in a list: why it is there and how its score came about.

    `parts` add up to `score`; lists for everybody have none. `because` is there where it was asked for.
    """

    score: float
    source: str = ""
    reason: str = ""
    parts: dict[str, float] = {}
    badges: tuple[str, ...] = ()
    because: tuple[Moved, ...] | None = None
    propensity: float | None = None
    """Where chance had a say: the probability that this place shows this item."""


class Arm(Answer):
    """The arm of an experiment that made a list."""

    name: str
    arm: str
    fallback: str | None = None
    """Why the arm's model did not make it."""


class Recommendations(Answer):
    """A list, and what it is worth: its source, its model, whether anything was away."""

    user_id: str | None
    source: str
    degraded: bool = False
    brief: bool = False
    """Whether the server was busy and ranked fewer candidates."""
    fresh: bool | None = None
    model_version: str | None = None
    impression_id: str | None = None
    """None where the list was only a preview."""
    as_of: dict[str, int] = {}
    items: tuple[RankedItem, ...]
    experiment: Arm | None = None
    next: str | None = None


class Cause(Answer):
    """The event that changed a list."""

    event_id: str
    item_id: str | None = None
    title: str | None = None
    action: str | None = None
    stamps_ms: dict[str, float] = {}
    """Milliseconds since the epoch at which the event was in the log, in the state, and its list pushed."""


class PushedList(Recommendations):
    """A list as it comes on the WebSocket; `cause` is absent on the first one."""

    cause: Cause | None = None


class Batch(Answer):
    """A list per user, in the order asked."""

    lists: tuple[Recommendations, ...]


class Items(Answer):
    """A list that is for everybody."""

    items: tuple[RankedItem, ...]


class HistoryRow(Answer):
    """One thing a user did."""

    event_id: str
    item_id: str
    action: str
    title: str | None = None
    rating: float | None = None
    time: datetime | None = None


class History(Answer):
    """What a user did, newest first."""

    user_id: str
    degraded: bool = False
    events: tuple[HistoryRow, ...]


class Accepted(Answer):
    """Kafka has the event. Give `position` as `after` to see it in the next list."""

    event_id: str
    position: str
