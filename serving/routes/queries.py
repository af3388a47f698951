"""What the API accepts: query strings and bodies, as pydantic checks them."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Any, Self

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    model_validator,
)

from afterclick import events
from afterclick.api import HalfLife, Policy, SimilarityKind
from afterclick.events import SESSION, Action, Id, Rating, SessionId
from afterclick.state import LogPosition
from serving.request import MAX_CURSOR_LENGTH, decode_cursor
from serving.state.catalogue_query import Condition

MAX_ITEMS = 200
FUTURE = timedelta(minutes=5)


class Request(BaseModel):
    """Base of every request: unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class OfSomebody(Request):
    """A request that may name a user or, where there is none, a session: a user of its own kind."""

    user_id: Id | None = None
    session_id: SessionId | None = None

    @property
    def who(self) -> str | None:
        """Whose request it is; a session is known as `session:ID`."""
        if self.user_id is None and self.session_id is not None:
            return SESSION + self.session_id
        return self.user_id


def _position(text: str) -> str:
    LogPosition.parse(text)
    return text


def _cursor(text: str) -> str:
    decode_cursor(text)
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


Filters = Annotated[list[Condition], Field(max_length=50)]
Share = Annotated[float, BeforeValidator(_number), Field(ge=0, le=1, allow_inf_nan=False)]
Cursor = Annotated[
    str, StringConstraints(min_length=1, max_length=MAX_CURSOR_LENGTH), AfterValidator(_cursor)
]


class RecommendationQuery(OfSomebody):
    """GET /recommendations, and the body of POST /recommendations"""

    user_id: Id | None = Field(
        None,
        description="Any id; an unknown one gets what is trending. Leave it out for a visitor.",
        examples=["bob"],
    )
    session_id: SessionId | None = Field(
        None,
        description="A visitor's session: without a user, its feedback is the history. Beside a user_id it "
        "changes nothing.",
    )
    items: ItemIds = Field(
        [],
        description="What is looked at now, or lies in the basket, the newest first: the session.",
    )
    exclude: ItemIds = Field([], description="Items that must not be in the list.")
    category: Interest | None = Field(None, description="Only items of this category.")
    n: Count | None = Field(None, description="Items in the list.")
    interests: Interests = Field(
        [],
        description="Categories or item ids, for a user without history. Repeat, or separate by commas.",
    )
    filters: Filters = Field(
        [],
        description="Only items that meet these conditions FIELD:VALUE (item, category, brand, title, price "
        "as in 10..50). Those on one field are alternatives. Repeat.",
    )
    offset: Annotated[int, BeforeValidator(_number), Field(ge=0, le=1000)] = Field(
        0,
        description="Places to leave out. Items may move between two requests; cursors are safe.",
    )
    cursor: Cursor | None = Field(
        None,
        description="Pages without repeats: * begins, the answer's `next` goes on.",
        examples=["*"],
    )
    policy: Policy | None = Field(
        None,
        description="What orders the list: the blend (the default, unless the user's experiment says "
        "otherwise), ALS or the two towers alone, what trends, what is popular. A model that is not there "
        "or knows nothing of the history, leaves the list to interests, then trends: `source` says so.",
        examples=["als"],
    )
    diversity: Share | None = Field(
        None, description="0 to 1: what an item loses for being like one above it."
    )
    explore: Share | None = Field(
        None,
        description="0 to 1: how likely each place shows something from further down; off by default.",
    )
    explain: bool = Field(
        False,
        description="Also name the events of the user that moved each item most, and by how much.",
    )
    preview: bool = Field(
        False,
        description="Only to look, not to show to the user: the list is no impression (its id is null), and "
        "neither exposure nor an experiment counts it.",
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
    by: SimilarityKind = Field(
        SimilarityKind.ALL,
        description="`bought`: chosen by the same users; `content`: described alike; or both.",
    )
    category: Interest | None = Field(None, description="Only items of this category.")
    filters: Filters = Field([], description="Only items that meet these conditions FIELD:VALUE.")


class LatestQuery(Request):
    """GET /latest"""

    n: Count | None = None
    category: Interest | None = Field(None, description="Only items of this category.")
    filters: Filters = Field([], description="Only items that meet these conditions FIELD:VALUE.")


class PopularQuery(Request):
    """GET /popular"""

    n: Count | None = None
    window: HalfLife | None = Field(
        None, description="Trending over this half-life; without it, all-time popularity."
    )
    category: Interest | None = Field(None, description="Only items of this category.")
    filters: Filters = Field([], description="Only items that meet these conditions FIELD:VALUE.")


class SearchQuery(Request):
    """GET /search"""

    q: Annotated[str, StringConstraints(max_length=200)] = Field(
        description="Beginnings of words of a title, category or id.", examples=["sand 32"]
    )
    n: Count | None = None


class InterestsNamed(Request):
    """PUT /users/{user_id}/interests"""

    interests: Interests = Field(
        description="Categories or item ids; none forgets them.",
        examples=[["Cameras", "B0019EHU8G"]],
    )


class HistoryQuery(Request):
    """GET /users/{user_id}/history"""

    n: Count = 50


def _not_future(value: AwareDatetime) -> AwareDatetime:
    if value > events.now() + FUTURE:
        raise ValueError("lies in the future")
    if value.year < 1970:
        raise ValueError("lies before 1970")
    return value


class Feedback(OfSomebody):
    """POST /feedback"""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        json_schema_extra={
            "examples": [{"user_id": "bob", "item_id": "B0019EHU8G", "action": "like"}],
            "anyOf": [
                {"required": ["user_id"], "properties": {"user_id": {"type": "string"}}},
                {"required": ["session_id"], "properties": {"session_id": {"type": "string"}}},
            ],
        },
    )

    user_id: Id | None = Field(
        None, description="Who did it; without it the session is a user of its own."
    )
    item_id: Id
    action: Action
    rating: Rating | None = Field(None, description="Stars, 0 to 5.")
    impression_id: Id | None = Field(None, description="The list it reacts to.")
    session_id: SessionId | None = None
    event_id: Id | None = Field(
        None, description="Send the same id again after a 503: the event takes effect once."
    )
    time: Annotated[AwareDatetime, AfterValidator(_not_future)] | None = Field(
        None, description="When it happened, with a time zone; now by default."
    )

    @model_validator(mode="after")
    def _of_somebody(self) -> Self:
        if self.who is None:
            raise ValueError("name a user_id or a session_id")
        return self
