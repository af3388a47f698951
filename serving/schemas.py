"""Requests and responses of the API: what is accepted, and what OpenAPI says of the answers.

Requests are validated by these models. Responses are built as plain dicts and written by orjson; a test
holds them against the models here.
"""

from __future__ import annotations

from datetime import timedelta
from enum import StrEnum
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
)

from afterclick import events
from afterclick.events import Action, Id, Rating
from serving.positions import Position

MAX_ITEMS = 200
FUTURE = timedelta(minutes=5)


class Source(StrEnum):
    """Why the list is as personal as it is, best first: the ladder of cold start."""

    PERSONALISED = "personalised"
    SESSION = "session"
    INTERESTS = "interests"
    TRENDING = "trending"
    POPULAR = "popular"


class Window(StrEnum):
    """How far back a trend looks: its half-life."""

    HOUR = "hour"
    DAY = "day"
    MONTH = "month"


class Request(BaseModel):
    """Base of every request: unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _position(text: str) -> str:
    Position.parse(text)
    return text


def _number(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("has to be a number")
    return value


Count = Annotated[int, BeforeValidator(_number), Field(ge=1, le=MAX_ITEMS)]
Interest = Annotated[str, StringConstraints(min_length=1, max_length=512)]
After = Annotated[str, StringConstraints(max_length=300), AfterValidator(_position)]
ItemIds = Annotated[list[Id], Field(max_length=500)]
Interests = Annotated[list[Interest], Field(max_length=50)]


class RecommendationQuery(Request):
    """GET /recommendations, and the body of POST /recommendations"""

    user_id: Id | None = Field(
        None,
        description="Any id; an unknown one gets what is trending. Leave it out for a visitor.",
        examples=["bob"],
    )
    items: ItemIds = Field(
        [], description="What is looked at now, or lies in the basket, the newest first: the session."
    )
    exclude: ItemIds = Field([], description="Items that must not be in the list.")
    category: Interest | None = Field(None, description="Only items of this category.")
    n: Count | None = Field(None, description="Items in the list.")
    interests: Interests = Field(
        [], description="Categories or item ids, for a user without history. Repeat, or separate by commas."
    )
    explain: bool = Field(
        False, description="Also name the events of the user that moved each item most, and by how much."
    )
    after: After | None = Field(
        None,
        description="The position that POST /feedback answered: wait until that event is in the state.",
        examples=["feedback/2/1041"],
    )


class BatchQuery(Request):
    """POST /recommendations/batch"""

    user_ids: Annotated[list[Id], Field(min_length=1, max_length=500)]
    n: Count | None = None


class SimilarQuery(Request):
    """GET /similar-items"""

    item_id: Id = Field(examples=["B0019EHU8G"])
    n: Count | None = None


class PopularQuery(Request):
    """GET /popular"""

    n: Count | None = None
    window: Window | None = Field(
        None, description="Trending over this half-life; without it, all-time popularity."
    )
    category: Interest | None = Field(None, description="Only items of this category.")


class SearchQuery(Request):
    """GET /search"""

    q: Annotated[str, StringConstraints(max_length=200)] = Field(
        description="Beginnings of words of a title, category or id.", examples=["sand 32"]
    )
    n: Count | None = None


class HistoryQuery(Request):
    """GET /users/{user_id}/history"""

    n: Count = 50


def _not_future(value: AwareDatetime) -> AwareDatetime:
    if value > events.now() + FUTURE:
        raise ValueError("lies in the future")
    if value.year < 1970:
        raise ValueError("lies before 1970")
    return value


class Feedback(Request):
    """POST /feedback"""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        json_schema_extra={
            "examples": [{"user_id": "bob", "item_id": "B0019EHU8G", "action": "like"}],
        },
    )

    user_id: Id
    item_id: Id
    action: Action
    rating: Rating | None = Field(None, description="Stars, 0 to 5.")
    impression_id: Id | None = Field(None, description="The list it reacts to.")
    session_id: Id | None = None
    event_id: Id | None = Field(
        None, description="Send the same id again after a 503: the event takes effect once."
    )
    time: Annotated[AwareDatetime, AfterValidator(_not_future)] | None = Field(
        None, description="When it happened, with a time zone; now by default."
    )


class Accepted(BaseModel):
    """The event is in Kafka."""

    event_id: str = Field(examples=["5f1c0a9be3b84a3f9f2a6c1f6f1f3f5e"])
    position: str = Field(description="topic/partition/offset", examples=["feedback/2/1041"])


class Cause(BaseModel):
    """An event of the user that moved an item."""

    event_id: str | None
    item_id: str
    title: str | None
    action: Action
    effect: float = Field(description="The score, less the score had this event not happened.")


class RecommendedItem(BaseModel):
    """One row of a list, with its receipt."""

    item_id: str
    title: str | None
    categories: list[str]
    score: float
    source: str = Field(description="The candidate source that brought it in.", examples=["als"])
    reason: str = Field(examples=["because you liked Sandisk 32 GB"])
    parts: dict[str, float] = Field(
        description="What the score is made of; adds up to it to 1e-6.",
        examples=[{"model": 1.2, "history": 0.7, "trend": 0.3, "content": 0.0}],
    )
    because: list[Cause] | None = Field(None, description="Where `explain` was asked for.")


class Recommendations(BaseModel):
    """A list for one user."""

    user_id: str | None
    source: Source
    degraded: bool = Field(description="Something was away; the list is the best that could be had.")
    fresh: bool | None = Field(description="Whether the event asked for with `after` is in it.")
    model_version: str | None
    impression_id: str
    as_of: dict[str, int] = Field(
        description="The newest event of each partition in it.", examples=[{"feedback/0": 17}]
    )
    items: list[RecommendedItem]


class Batch(BaseModel):
    """A list per user, in the order asked."""

    lists: list[Recommendations]


class ListedItem(BaseModel):
    """One row of a list that is for everybody."""

    item_id: str
    title: str | None
    categories: list[str]
    score: float
    reason: str


class SimilarItems(BaseModel):
    """Items near one item."""

    item_id: str
    model_version: str | None
    items: list[ListedItem]


class PopularItems(BaseModel):
    """What everybody reaches for."""

    window: str
    items: list[ListedItem]


class FoundItem(BaseModel):
    """One row of what a search found."""

    item_id: str
    title: str | None
    categories: list[str]


class FoundItems(BaseModel):
    """What a search found, the most chosen first."""

    items: list[FoundItem]


class ItemDetails(BaseModel):
    """One item as the catalogue and the live counts know it."""

    item_id: str
    title: str | None
    categories: list[str]
    brand: str | None
    price: float | None
    interactions: int
    trends: dict[str, float]
    in_model: bool


class CategoryRow(BaseModel):
    """One category."""

    category: str
    items: int


class Categories(BaseModel):
    """What the catalogue is sorted into."""

    categories: list[CategoryRow]


class HistoryRow(BaseModel):
    """One thing the user did."""

    event_id: str
    item_id: str
    title: str | None
    action: Action
    rating: float | None
    time: str


class History(BaseModel):
    """What a user did, newest first."""

    user_id: str
    degraded: bool
    events: list[HistoryRow]


class ExposureRow(BaseModel):
    """Of one source and model."""

    source: Source
    model_version: str | None
    lists: int
    reacted: int = Field(description="Lists with a click, like, basket or purchase that names them.")
    items: int
    clicks: int


class ExposureTable(BaseModel):
    """What was shown and what came of it."""

    rows: list[ExposureRow]


class PublishedModel(BaseModel):
    """One model that was published."""

    version: str
    uri: str
    metrics: dict[str, float]
    serving: bool
    refused: str | None = Field(description="Why it is not served, where it cannot be.")


class Models(BaseModel):
    """The models published lately, the newest first."""

    serving: str | None
    models: list[PublishedModel]


class DeadLetter(BaseModel):
    """An event that could not be read."""

    topic: str
    offset: int
    headers: dict[str, str]
    value: str = Field(description="The first 200 characters.")


class DeadLetters(BaseModel):
    """Events that could not be read."""

    counts: dict[str, int]
    newest: list[DeadLetter]


class Health(BaseModel):
    """Whether the process lives, and what it can do."""

    status: str = Field(examples=["ready"])
    parts: dict[str, Any] = {}
