"""What OpenAPI says of the answers of the API. `queries` says what is accepted.

Responses are built as plain dicts and written by orjson; a test holds them against the models here.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from pydantic import AwareDatetime, BaseModel, Field

from afterclick.events import Action


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


class Kinship(StrEnum):
    """What makes two items alike."""

    ALL = "all"
    BOUGHT = "bought"
    CONTENT = "content"


class Badge(StrEnum):
    """What is true of an item for everybody just now."""

    TRENDING = "trending"
    """Among the most reached for of this hour, at several times its rate of the month."""
    NEW = "new"
    """First seen in the last month, or since the model was trained."""


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
    badges: list[Badge] = Field(description="What is true of the item for everybody just now.")
    parts: dict[str, float] = Field(
        description="What the score is made of; adds up to it to 1e-6.",
        examples=[{"model": 1.2, "history": 0.7, "trend": 0.3, "content": 0.0, "rules": 0.5}],
    )
    because: list[Cause] | None = Field(None, description="Where `explain` was asked for.")
    propensity: float | None = Field(
        None, description="Where chance had a say: the probability that this place shows this item."
    )


class AssignedArm(BaseModel):
    """The experiment that made a list."""

    name: str
    arm: str
    fallback: str | None = Field(None, description="Why the arm's model did not make the list.")


class Recommendations(BaseModel):
    """A list for one user."""

    user_id: str | None
    source: Source
    degraded: bool = Field(
        description="Something was away; the list is the best that could be had."
    )
    brief: bool = Field(
        False, description="The server was busy, so that fewer candidates were ranked."
    )
    fresh: bool | None = Field(description="Whether the event asked for with `after` is in it.")
    model_version: str | None
    impression_id: str | None = Field(description="Null where the list was only a preview.")
    as_of: dict[str, int] = Field(
        description="The newest event of each partition in it.", examples=[{"feedback/0": 17}]
    )
    items: list[RecommendedItem]
    experiment: AssignedArm | None = Field(None, description="Where the user is in an experiment.")
    next: str | None = Field(
        None, description="The cursor of the next page, where one was asked for."
    )


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


class LatestItems(BaseModel):
    """What came last."""

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
    badges: list[Badge]


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


class Named(BaseModel):
    """A user's interests are kept."""

    user_id: str
    interests: list[str]


class User(Named):
    """What is known of a user."""

    first_seen: AwareDatetime
    last_seen: AwareDatetime
    experiment: AssignedArm | None


class ExposureRow(BaseModel):
    """Of one source and model."""

    source: Source
    model_version: str | None
    lists: int
    reacted: int = Field(
        description="Lists with a click, like, basket or purchase that names them."
    )
    items: int
    clicks: int


class PlaceRow(BaseModel):
    """Of one place in lists."""

    place: int = Field(description="From 1.")
    shown: int
    clicks: int


class ExposureTable(BaseModel):
    """What was shown and what came of it."""

    rows: list[ExposureRow]
    places: list[PlaceRow]


class RecentRequest(BaseModel):
    """One request that was answered."""

    time: float = Field(description="Seconds since the epoch.")
    method: str
    target: str = Field(description="Path and query, the first 200 characters.")
    status: int
    ms: float


class RecentRequests(BaseModel):
    """The newest first."""

    requests: list[RecentRequest]


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
