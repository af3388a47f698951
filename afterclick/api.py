"""The API's vocabulary and responses: the OpenAPI document and the client use the same models.

The routes build responses as plain dicts, written by orjson; tests compare them with these models.
The models ignore unknown fields, and defaults stand for fields that an older API does not send.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Final

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from afterclick.events import Action, Id

SOMETIMES: Final = "sometimes"
"""Marks a field that a response leaves out where it does not apply."""


class Tier(StrEnum):
    """How personal a list is: the cold-start tiers, best first."""

    PERSONALISED = "personalised"
    SESSION = "session"
    INTERESTS = "interests"
    TRENDING = "trending"
    POPULAR = "popular"


class Policy(StrEnum):
    """What orders a list."""

    BLEND = "blend"
    """The cold-start tiers: personalised where possible."""
    TRENDING = "trending"
    """Trending items, the same for everyone, without the items the user has seen."""
    POPULAR = "popular"
    """All-time popularity, the same for everyone, without the items the user has seen."""
    ALS = "als"
    """ALS alone, with the user folded in; without a history, the next tiers."""
    TWO_TOWER = "two_tower"
    """The sequence model alone, likewise."""
    NCF = "ncf"
    """NCF (NeuMF over the live history) alone, likewise."""
    CONTENT = "content"
    """Similarity to the content of the user's newest items alone, likewise."""


class SamplingPolicy(StrEnum):
    """How exploration draws from the items below the list."""

    UNIFORM = "uniform"
    """Uniformly: ε-greedy."""
    SOFTMAX = "softmax"
    """In proportion to exp(score / s), s the standard deviation of those scores."""


class HalfLife(StrEnum):
    """Half-life of a trend."""

    HOUR = "hour"
    DAY = "day"
    WEEK = "week"
    MONTH = "month"


class SimilarityKind(StrEnum):
    """What makes two items similar."""

    ALL = "all"
    CO_PURCHASE = "bought"
    CONTENT = "content"


class Badge(StrEnum):
    """A property of an item now, the same for every user."""

    TRENDING = "trending"
    """Among the most chosen of this hour, at several times its rate of the month."""
    NEW = "new"
    """First seen in the last month, or since the model was trained."""


class Metric(StrEnum):
    """What an experiment compares: one value per user, over the first `days` since their first
    list."""

    CONVERSION = "conversion"
    """1 for a user with a purchase, else 0; the mean is the share of buyers."""
    CLICKS = "clicks_per_user"
    """The user's clicks."""


class Decision(StrEnum):
    """What an experiment shows about an arm, compared with the control."""

    BETTER = "better"
    WORSE = "worse"
    OPEN = "open"
    """Nothing yet: users are missing."""
    UNDECIDED = "undecided"
    """Nothing at the planned size: a change as large as planned is unlikely."""


class ApiModel(BaseModel):
    """Base of every response."""

    model_config = ConfigDict(
        extra="ignore", frozen=True, json_schema_serialization_defaults_required=True
    )

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """The schema with all fields required but those marked SOMETIMES."""
        schema = handler(core_schema)
        body = handler.resolve_ref_schema(schema)
        left_out = {n for n, f in cls.model_fields.items() if SOMETIMES in f.metadata}
        if left_out and "required" in body:
            body["required"] = [name for name in body["required"] if name not in left_out]
        return schema


# Lists


class ItemSummary(ApiModel):
    """An item of the catalogue."""

    item_id: str
    title: str | None = None
    categories: tuple[str, ...] = ()


class ItemRatings(ApiModel):
    """The reviews with stars that count: the newest of each user."""

    count: int
    mean: float = Field(description="Mean of the stars, 1 to 5.")


class ListedItem(ItemSummary):
    """One row of a list that is the same for every user."""

    score: float
    reason: str = Field("", examples=["because you liked Sandisk 32 GB"])
    ratings: Annotated[ItemRatings | None, SOMETIMES] = Field(
        None, description="Of an item with stars."
    )


class Attribution(ApiModel):
    """An event of the user that moved an item."""

    event_id: str | None = None
    item_id: str
    title: str | None = None
    action: Action
    effect: float = Field(description="The score minus the score without this event.")


class RecommendedItem(ListedItem):
    """One row of a personal list, with the contributions to its score."""

    source: str = Field("", description="The candidate source that retrieved it.", examples=["als"])
    badges: tuple[Badge, ...] = Field((), description="Properties of the item now.")
    contributions: dict[str, float] = Field(
        {},
        description="Contributions to the score; they add up to it to 1e-6.",
        examples=[{"model": 1.2, "history": 0.7, "trend": 0.3, "content": 0.0, "rules": 0.5}],
    )
    attributions: Annotated[tuple[Attribution, ...] | None, SOMETIMES] = Field(
        None, description="With `explain`: the events that moved the item most."
    )
    propensity: Annotated[float | None, SOMETIMES] = Field(
        None, description="With exploration: the probability that this rank shows this item."
    )


class AssignedArm(ApiModel):
    """The experiment that made a list."""

    name: str
    arm: str
    fallback: Annotated[str | None, SOMETIMES] = Field(
        None, description="Why the arm's options did not make the list."
    )


class Recommendations(ApiModel):
    """A list for one user."""

    user_id: str | None
    source: Tier
    degraded: bool = Field(
        False, description="A dependency is unavailable; the list is the best without it."
    )
    reduced: bool = Field(False, description="Under load shedding: fewer candidates were ranked.")
    fresh: bool | None = Field(
        None, description="Whether the list includes the event of `after`; null without `after`."
    )
    model_version: str | None = None
    impression_id: str | None = Field(None, description="Null for a preview.")
    as_of: dict[str, int] = Field(
        {},
        description="Per partition, the offset of the newest event in the list.",
        examples=[{"feedback/0": 17}],
    )
    items: tuple[RecommendedItem, ...]
    experiment: Annotated[AssignedArm | None, SOMETIMES] = Field(
        None, description="For a user in an experiment."
    )
    next: Annotated[str | None, SOMETIMES] = Field(
        None, description="With `cursor`: the cursor of the next page, null at the end."
    )


class Cause(ApiModel):
    """The event that changed a list pushed on a WebSocket."""

    event_id: str
    item_id: str | None = None
    title: str | None = None
    action: str | None = None
    stamps_ms: dict[str, float] = {}
    """Milliseconds since the epoch: event in the log, event in the state, list pushed."""


class PushedList(Recommendations):
    """A list on the WebSocket; the first one has no `cause`."""

    cause: Annotated[Cause | None, SOMETIMES] = None


class Batch(ApiModel):
    """A list per user, in the order of the request."""

    lists: tuple[Recommendations, ...]


class SimilarItems(ApiModel):
    """Items similar to one item."""

    item_id: str
    model_version: str | None = None
    items: tuple[ListedItem, ...]


class LatestItems(ApiModel):
    """The newest items."""

    items: tuple[ListedItem, ...]


class PopularItems(ApiModel):
    """The most popular items."""

    window: str
    items: tuple[ListedItem, ...]


# Catalogue


class FoundItems(ApiModel):
    """Search results, most chosen first."""

    items: tuple[ItemSummary, ...]


class ItemDetails(ItemSummary):
    """One item: catalogue entry and live counts."""

    brand: str | None = None
    price: float | None = None
    interactions: int = Field(0, description="Positive actions, and all reviews with stars.")
    positives: int = Field(0, description="The interactions of positive weight.")
    ratings: ItemRatings | None = None
    trends: dict[str, float] = {}
    in_model: bool = False
    badges: tuple[Badge, ...] = ()


class CategoryRow(ApiModel):
    """A category and its number of items."""

    category: str
    items: int


class Categories(ApiModel):
    """The categories of the catalogue, largest first."""

    categories: tuple[CategoryRow, ...]


# Users and feedback


class HistoryRow(ApiModel):
    """One action of the user."""

    event_id: str
    item_id: str
    title: str | None = None
    action: Action
    rating: float | None = None
    time: datetime | None = None


class History(ApiModel):
    """A user's actions, newest first."""

    user_id: str
    degraded: bool = False
    events: tuple[HistoryRow, ...]


class Interests(ApiModel):
    """A user's stored interests."""

    user_id: str
    interests: tuple[str, ...]


class User(Interests):
    """A user."""

    first_seen: AwareDatetime
    last_seen: AwareDatetime
    experiment: AssignedArm | None = None


class ErasureState(StrEnum):
    """How far the erasure of a user is."""

    REQUESTED = "requested"
    """Lists, history and SQL are without the user; counts and the log still have the events."""
    COMPLETE = "complete"


class Erasure(ApiModel):
    """The erasure of a user."""

    user_id: str
    state: ErasureState
    until: AwareDatetime = Field(description="What the user did up to then is erased.")
    events: int | None = Field(None, description="Events whose counts were retracted.")
    remaining: int | None = Field(
        None, description="Events whose counts remain, without a user: see docs/exactness.md."
    )
    rows: int | None = Field(None, description="Rows erased from the event log.")


class Accepted(ApiModel):
    """Kafka has acknowledged the event; pass `position` as `after` to see it in the next list."""

    event_id: str = Field(examples=["5f1c0a9be3b84a3f9f2a6c1f6f1f3f5e"])
    position: str = Field(description="topic/partition/offset", examples=["feedback/2/1041"])


class EventResult(ApiModel):
    """What became of one event of a list."""

    event_id: str | None = Field(description="Null for an invalid event that names none.")
    position: str | None = Field(description="topic/partition/offset; null if it was not taken.")
    status: int = Field(
        description="202; 422: invalid, see `detail`; 503: send it again with its `event_id`.",
        examples=[202],
    )
    detail: str | None = Field(description="Why it was not taken.")


class AcceptedList(ApiModel):
    """Kafka has acknowledged the events with the status 202."""

    accepted: int
    results: list[EventResult] = Field(description="In the order of the events.")


class SessionMerge(ApiModel):
    """The events of a session that its user now has as well."""

    session_id: str
    user_id: str
    events: int = Field(description="Events of the session, also those copied before.")
    position: str | None = Field(
        description="Pass it as `after` to see the session in the next list; null without events.",
        examples=["feedback/2/1041"],
    )
    fresh: bool | None = Field(
        description="Whether the event of `after` is among them; null without `after`."
    )


# Experiments, tokens, quarantine


class Deleted(ApiModel):
    """The name of what was deleted."""

    removed: str


class Estimate(ApiModel):
    """A figure and its confidence interval."""

    value: float
    low: float
    high: float


class ArmResults(ApiModel):
    """One arm. The first one is the control; differences are to it. Actions count from a user's
    first list on, for `days` days, whatever list they name."""

    name: str
    policy: str
    share: float = Field(description="Planned share of the users in the experiment.")
    users: int = Field(description="Users who were shown a list.")
    lists: int = Field(description="Lists shown to them.")
    fallback_lists: int = Field(
        description="Of these, lists that the arm's options could not make; their users count."
    )
    clicks: int
    buyers: int = Field(description="Users with a purchase.")
    purchases: int
    conversion: float = Field(description="Buyers / users.")
    clicks_per_user: float
    clicks_per_list: float
    difference: Estimate | None = Field(
        description="Of the experiment's metric, to the control; the intervals of all arms hold "
        "together and at all looks. Null while it cannot be estimated."
    )
    p_value: float | None = Field(
        description="Always-valid p-value of the difference, adjusted for the number of arms (Holm)"
    )
    decision: Decision | None = Field(
        description="By the p-value; null for the control and after a sample ratio mismatch."
    )


class SampleRatio(ApiModel):
    """Test for a sample ratio mismatch."""

    p_value: float
    broken: bool = Field(description="The split is too unlikely; ignore the results.")


class Results(ApiModel):
    """The results of an experiment so far."""

    name: str
    running: bool
    metric: Metric
    days: int
    planned_users: int = Field(description="Users that each arm needs by the plan.")
    counted_until: AwareDatetime | None = Field(
        description="Of the actions in the state, those logged until then are counted."
    )
    level: float
    arms: tuple[ArmResults, ...]
    sample_ratio: SampleRatio


class Token(ApiModel):
    """A token for one user."""

    token: str
    expires: AwareDatetime


class QuarantinedItem(ApiModel):
    """An item in quarantine."""

    item_id: str
    title: str | None
    trends: dict[str, float] = Field(description="Remaining trends by half-life.")


class Quarantine(ApiModel):
    """Items whose votes by new accounts do not count."""

    established_share: float = Field(
        description="Usual share of established users in an item's votes; 0 while unknown."
    )
    new_account_weight: dict[str, float] = Field(
        description="Weight of a new account's vote by half-life: below 1 where new accounts "
        "exceed their usual share."
    )
    quarantined: tuple[QuarantinedItem, ...]
    approved: tuple[str, ...] = Field(description="Items that an administrator approved.")


class QuarantineApproval(BaseModel):
    """POST /admin/quarantine"""

    model_config = ConfigDict(extra="forbid", frozen=True)

    item_id: Id
    approved: bool = Field(True, description="false: apply the limits to the item again.")


class Ack(ApiModel):
    """What was done."""

    done: str


# Monitoring


class ReactionRow(ApiModel):
    """Lists and reactions of one tier and model."""

    source: str
    model_version: str | None
    arm: str | None = Field(None, description="With `experiment`.")
    sent: int = Field(
        description="Lists answered by REST or pushed since the API started; 0 with `experiment`."
    )
    lists: int = Field(description="Lists shown: answered, or pushed and reported as seen.")
    reacted: int = Field(
        description="Lists with a click, like, basket or purchase by the user who saw them."
    )
    items: int
    clicks: int = Field(description="Each action counts once per list and item.")
    likes: int = 0
    baskets: int = 0
    purchases: int = 0
    skips: int = 0


class RankRow(ApiModel):
    """Impressions of one rank, and reactions to them."""

    place: int = Field(description="From 1.")
    shown: int
    clicks: int
    likes: int = 0
    baskets: int = 0
    purchases: int = 0
    skips: int = 0


class Reactions(ApiModel):
    """Impressions and the reactions to them."""

    rows: tuple[ReactionRow, ...]
    places: tuple[RankRow, ...]


class RecentRequest(ApiModel):
    """One request to this process."""

    time: float = Field(description="Seconds since the epoch.")
    method: str
    target: str = Field(description="Path and query, the first 200 characters.")
    status: int
    ms: float


class RecentRequests(ApiModel):
    """The latest requests, newest first."""

    requests: tuple[RecentRequest, ...]


class PublishedModel(ApiModel):
    """A published model."""

    version: str
    uri: str
    metrics: dict[str, float]
    serving: bool
    refused: str | None = Field(description="Why it cannot be served.")


class Models(ApiModel):
    """The latest published models, newest first."""

    serving: str | None
    models: tuple[PublishedModel, ...]


class DeadLetter(ApiModel):
    """An event that could not be read."""

    topic: str
    offset: int
    headers: dict[str, str]
    value: str = Field(description="The first 200 characters.")


class DeadLetters(ApiModel):
    """Events that could not be read: counts per topic, and the newest."""

    counts: dict[str, int]
    newest: tuple[DeadLetter, ...]


class Health(ApiModel):
    """Liveness, and the state of each dependency."""

    status: str = Field(examples=["ready"])
    parts: Annotated[dict[str, Any], SOMETIMES] = {}
