"""Requests of the API: query strings and bodies, as pydantic validates them."""

from __future__ import annotations

import math
from datetime import datetime, timedelta
from typing import Annotated, Any, Final, Self, cast

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    RootModel,
    StringConstraints,
    Tag,
    model_validator,
)

from afterclick import events
from afterclick.api import HalfLife, Policy, SimilarityKind
from afterclick.events import SESSION, Action, Id, Label, Rating, SessionId
from afterclick.state import LogPosition
from serving.request import MAX_CURSOR_LENGTH, decode_cursor
from serving.state.catalogue_query import Condition

MAX_ITEMS = 200
ITEMS_PER_REQUEST = 50
"""A longer list counts as several requests in the rate limit: one for every 50 items."""
MAX_EVENTS = 1000
EVENTS_PER_REQUEST = 20
"""Of a list of feedback: it counts as one request in the rate limit for every 20 events."""
MAX_INTERESTS = 100
"""Interests of a request, counted after they are split at their commas."""
CLOCK_SKEW = timedelta(milliseconds=events.MAX_LEAD_MS)


def _position(text: str) -> str:
    LogPosition.parse(text)
    return text


def _cursor(text: str) -> str:
    decode_cursor(text)
    return text


def _few_interests(named: list[str]) -> list[str]:
    if len(split(named)) > MAX_INTERESTS:
        raise ValueError(f"more than {MAX_INTERESTS} interests, counted after splitting at commas")
    return named


def _number(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("must be a number")
    return value


Count = Annotated[int, BeforeValidator(_number), Field(ge=1, le=MAX_ITEMS)]
Interest = Annotated[str, StringConstraints(min_length=1, max_length=512)]
After = Annotated[str, StringConstraints(max_length=300), AfterValidator(_position)]
ItemIds = Annotated[list[Id], Field(max_length=500)]
InterestList = Annotated[list[Interest], Field(max_length=50), AfterValidator(_few_interests)]
Category = Annotated[Interest | None, Field(description="Only items of this category.")]
Conditions = Annotated[
    list[Condition],
    Field(
        max_length=50,
        description="Only items that meet these conditions FIELD:VALUE (item, category, brand, "
        "title, price as in 10..50). Conditions on one field are alternatives. Repeat.",
    ),
]
Share = Annotated[float, BeforeValidator(_number), Field(ge=0, le=1, allow_inf_nan=False)]
Cursor = Annotated[
    str, StringConstraints(min_length=1, max_length=MAX_CURSOR_LENGTH), AfterValidator(_cursor)
]


EMPTY: Final = cast(list[Any], ())
"""Default of a list: pydantic would copy an empty list for every request."""


class ApiRequest(BaseModel):
    """Base of every request: unknown fields are rejected."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ListQuery(ApiRequest):
    """A request for lists of `n` items."""

    n: Count | None = Field(None, description="Length of the list.")

    @property
    def cost(self) -> int:
        """The number of requests it counts as in the rate limit."""
        return math.ceil((self.n or 1) / ITEMS_PER_REQUEST)


def _no_session(user_id: str) -> str:
    if user_id.startswith(SESSION):
        raise ValueError("names a session: give session_id, or the id of its user")
    return user_id


RegisteredId = Annotated[Id, AfterValidator(_no_session)]
"""A user, who is not a session."""


class UserScoped(ApiRequest):
    """A request that may name a user or, without a user, a session."""

    user_id: Id | None = None
    session_id: SessionId | None = None

    @property
    def effective_user_id(self) -> str | None:
        """The user id; `session:ID` for a session without a user."""
        if self.user_id is None and self.session_id is not None:
            return SESSION + self.session_id
        return self.user_id


class RecommendationQuery(ListQuery, UserScoped):
    """GET /recommendations, and the body of POST /recommendations"""

    user_id: Id | None = Field(
        None,
        description="Any id; an unknown user gets trending items. Omit it for a visitor.",
        examples=["bob"],
    )
    session_id: SessionId | None = Field(
        None,
        description="A visitor's session, whose feedback is the history. Ignored with a user_id.",
    )
    items: ItemIds = Field(
        EMPTY, description="The session: items in view or in the basket, newest first."
    )
    exclude: ItemIds = Field(EMPTY, description="Items that must not be in the list.")
    category: Category = None
    interests: InterestList = Field(
        EMPTY,
        description="Categories or item ids, for a user without history. Repeat, or separate by "
        "commas.",
    )
    filters: Conditions = Field(EMPTY)
    offset: Annotated[int, BeforeValidator(_number), Field(ge=0, le=1000)] = Field(
        0,
        description="Ranks to skip. Items may move between two requests; cursors avoid repeats.",
    )
    cursor: Cursor | None = Field(
        None,
        description="Pages without repeats: `*` for the first, `next` of the response for others.",
        examples=["*"],
    )
    policy: Policy | None = Field(
        None,
        description="What orders the list; by default the user's experiment decides, else `blend`. "
        "A model that is not loaded, or knows nothing of the history, falls back to interests, "
        "then trends: see `source`.",
        examples=["als"],
    )
    diversity: Share | None = Field(
        None, description="Penalty of an item for its similarity to items ranked above it."
    )
    explore: Share | None = Field(
        None, description="Probability that a rank shows an item from below the list; default 0."
    )
    explain: bool = Field(
        False, description="Return the events of the user that moved each item most."
    )
    preview: bool = Field(
        False,
        description="The list is not shown to the user: no impression (its id is null), not "
        "counted in exposure or experiments.",
    )
    page: Label | None = Field(
        None,
        description="Where the list is shown, in the shop's own words; part of its impression.",
        examples=["home"],
    )
    device: Label | None = Field(
        None,
        description="The kind of device it is shown on; part of its impression.",
        examples=["phone"],
    )
    after: After | None = Field(
        None,
        description="The position from POST /feedback: wait until that event is in the state.",
        examples=["feedback/2/1041"],
    )


class BatchQuery(ListQuery):
    """POST /recommendations/batch"""

    user_ids: Annotated[list[Id], Field(min_length=1, max_length=500)]

    @property
    def cost(self) -> int:
        """The number of requests it counts as in the rate limit."""
        return super().cost * len(self.user_ids)


class LatestQuery(ListQuery):
    """GET /latest"""

    category: Category = None
    filters: Conditions = Field(EMPTY)


class PopularQuery(LatestQuery):
    """GET /popular"""

    window: HalfLife | None = Field(
        None, description="Trending over this half-life; by default all-time popularity."
    )


class SimilarQuery(LatestQuery):
    """GET /similar-items"""

    item_id: Id = Field(examples=["B0019EHU8G"])
    by: SimilarityKind = Field(
        SimilarityKind.ALL,
        description="`bought`: chosen by the same users; `content`: described alike; or both.",
    )


class SearchQuery(ListQuery):
    """GET /search"""

    q: Annotated[str, StringConstraints(max_length=200)] = Field(
        description="Prefixes of words of a title, category or id.", examples=["sand 32"]
    )


class InterestsUpdate(ApiRequest):
    """PUT /users/{user_id}/interests"""

    interests: InterestList = Field(
        description="Categories or item ids; an empty list deletes them.",
        examples=[["Cameras", "B0019EHU8G"]],
    )


class Login(ApiRequest):
    """POST /sessions/{session_id}/user"""

    user_id: RegisteredId = Field(
        description="The user that the session belongs to.", examples=["bob"]
    )
    after: After | None = Field(
        None,
        description="The position from POST /feedback of the session's last event: wait until it "
        "is in the state, so that it is part of the history.",
        examples=["feedback/2/1041"],
    )


class ExposureQuery(ApiRequest):
    """GET /exposure"""

    days: Annotated[int, BeforeValidator(_number), Field(ge=1, le=366)] = Field(
        7, description="Of the last days (UTC), today included."
    )
    experiment: Id | None = Field(None, description="Only lists of this experiment, by arm.")


class HistoryQuery(ApiRequest):
    """GET /users/{user_id}/history"""

    n: Count = 50


def _not_future(value: datetime) -> datetime:
    if value > events.now() + CLOCK_SKEW:
        raise ValueError("is in the future")
    return events.representable(value)


class Feedback(UserScoped):
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

    user_id: RegisteredId | None = Field(
        None, description="Without it, the session acts as a user."
    )
    item_id: Id
    action: Action
    rating: Rating | None = Field(None, description="Stars, 0 to 5.")
    impression_id: Id | None = Field(None, description="The list that showed the item.")
    event_id: Id | None = Field(
        None, description="Reuse it after a 503: the event takes effect once."
    )
    time: Annotated[AwareDatetime, AfterValidator(_not_future)] | None = Field(
        None, description="Event time, with a time zone; now by default."
    )

    @model_validator(mode="after")
    def _has_user(self) -> Self:
        if self.effective_user_id is None:
            raise ValueError("user_id or session_id is required")
        return self


class FeedbackList(RootModel[list[dict[str, Any]]]):
    """Several events, each validated apart: an invalid one rejects no other."""

    root: Annotated[list[dict[str, Any]], Field(min_length=1, max_length=MAX_EVENTS)]

    @property
    def user_ids(self) -> tuple[str, ...]:
        """The users and sessions that the events name."""
        named = []
        for event in self.root:
            user_id, session_id = event.get("user_id"), event.get("session_id")
            if user_id is not None:
                named.append(str(user_id))
            elif session_id is not None:
                named.append(f"{SESSION}{session_id}")
        return tuple(named)

    @property
    def cost(self) -> int:
        """The number of requests it counts as in the rate limit."""
        return math.ceil(len(self.root) / EVENTS_PER_REQUEST)


BODY_TAGS = ("one event", "a list of events")
"""Stand in the locations of validation errors; `DirectRoute` removes them."""
FeedbackBody = Annotated[
    Annotated[Feedback, Tag(BODY_TAGS[0])] | Annotated[FeedbackList, Tag(BODY_TAGS[1])],
    Discriminator(lambda value: BODY_TAGS[isinstance(value, list | FeedbackList)]),
]


def split(interests: list[str]) -> tuple[str, ...]:
    """Interests that were repeated, separated by commas, or both."""
    parts = (part.strip() for interest in interests for part in interest.split(","))
    return tuple(dict.fromkeys(part for part in (*interests, *parts) if part))
