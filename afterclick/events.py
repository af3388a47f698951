"""The events on the topics: CloudEvents 1.0, structured mode, JSON.

`Event` is the envelope; `type` selects the payload in `data`. `decode` and `encode` are the only
codecs. Ids are strings here; integer indices exist only in arrays.
"""

from __future__ import annotations

import hashlib
import uuid
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any, Final, Literal

import orjson
from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    TypeAdapter,
    ValidationError,
)

from afterclick.errors import BadEvent

REVIEW_TYPE: Final = "afterclick.review.v1"
FEEDBACK_TYPE: Final = "afterclick.feedback.v1"
IMPRESSION_TYPE: Final = "afterclick.impression.v1"
ITEM_TYPE: Final = "afterclick.item.v1"
MODEL_TYPE: Final = "afterclick.model.v1"
DATASET_SOURCE: Final = "dataset/"
"""Prefix of `source` of a replayed dataset."""
IMPORT_SOURCE: Final = "import/"
"""Prefix of `source` of past events by a caller with the scope `admin`."""
API_SOURCE: Final = "afterclick/api"
"""`source` of feedback by any other caller of the API."""
SESSION_SOURCE: Final = "afterclick/session"
"""`source` of the copies that a user gets of the events of a session, at login."""


class Action(StrEnum):
    """What a user did with an item."""

    REVIEW = "review"
    VIEW = "view"
    CLICK = "click"
    LIKE = "like"
    BASKET = "basket"
    PURCHASE = "purchase"
    SKIP = "skip"
    UNDO = "undo"
    """Cancels the user's earlier actions on the item (`state.effective`)."""


def printable(value: str) -> str:
    """The text itself. Raises ValueError for control characters and lone surrogates."""
    if value.isprintable():  # the fast path
        return value
    if any(ord(c) < 32 or ord(c) == 127 or 0xD800 <= ord(c) <= 0xDFFF for c in value):
        raise ValueError("control characters and lone surrogates are not allowed")
    return value


PRINTABLE: Final = r"^[^\x00-\x1f\x7f]*$"
"""JSON Schema pattern of printable text."""
Id = Annotated[
    str,
    StringConstraints(min_length=1, max_length=128),
    AfterValidator(printable),
    Field(json_schema_extra={"pattern": PRINTABLE}),
]
VISITOR: Final = "visitor"
"""User id of impressions without a user."""
SESSION: Final = "session:"
"""Prefix of the user id of a session without a user."""
SessionId = Annotated[
    str,
    StringConstraints(min_length=1, max_length=128 - len(SESSION)),
    AfterValidator(printable),
    Field(json_schema_extra={"pattern": PRINTABLE}),
]
Rating = Annotated[float, Field(ge=0, le=5, allow_inf_nan=False)]


class Payload(BaseModel):
    """Base of every payload: immutable, and unknown fields are rejected."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Interaction(Payload):
    """An action of a user on an item: a review or feedback."""

    user_id: Id
    item_id: Id
    action: Action
    rating: Rating | None = None
    text: Annotated[str, StringConstraints(max_length=32_768)] | None = None
    impression_id: Id | None = None
    session_id: Id | None = None


class ShownItem(Payload):
    """One row of an impression."""

    item_id: Id
    score: Annotated[float, Field(allow_inf_nan=False)]
    source: str
    propensity: Annotated[float, Field(gt=0, le=1)] = 1.0


Label = Annotated[
    str,
    StringConstraints(min_length=1, max_length=64),
    AfterValidator(printable),
    Field(json_schema_extra={"pattern": PRINTABLE}),
]


class Context(Payload):
    """Where a list was shown."""

    page: Label | None = None
    """The shop's name of the page or the place on it."""
    device: Label | None = None
    """The kind of device."""


class Impression(Payload):
    """A list that a user was shown: answered by REST, or pushed and reported as seen. Feedback
    refers to its id."""

    impression_id: Id
    user_id: Id
    items: tuple[ShownItem, ...]
    model_version: str | None
    source: str
    policy: str | None = None
    experiment: str | None = None
    arm: str | None = None
    fallback: bool | None = None
    """True: the options of the arm could not make this list."""
    context: Context | None = None


class Item(Payload):
    """An item of the catalogue."""

    item_id: Id
    title: str | None = None
    categories: tuple[str, ...] = ()
    brand: str | None = None
    price: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None


class ModelPublished(Payload):
    """A complete artifact, ready to load."""

    version: Id
    uri: str
    manifest_sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    metrics: dict[str, float] = {}


MAX_LEAD_MS: Final = 300_000
"""How far ahead of its arrival in the log an event may count: the clocks of producers differ by
less."""
END_YEAR: Final = 2262
"""The first year whose times are invalid: in it, nanoseconds since 1970 exceed 64 bits."""
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def representable(value: datetime) -> datetime:
    """The time itself. Raises ValueError before 1970 and from `END_YEAR` on: it may overflow."""
    if value.year >= END_YEAR or value < EPOCH:
        raise ValueError(f"is not in the years 1970 to {END_YEAR - 1}")
    return value


Time = Annotated[AwareDatetime, AfterValidator(representable)]


class _Envelope(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    specversion: Literal["1.0"] = "1.0"
    id: Id
    source: Annotated[str, StringConstraints(min_length=1, max_length=256)]
    time: Time
    subject: Id
    datacontenttype: Literal["application/json"] = "application/json"
    producedtime: Time | None = None
    """Extension: when the producer sent the event, possibly long after `time`."""

    @property
    def time_ms(self) -> int:
        """Event time, milliseconds since the epoch."""
        return round(self.time.timestamp() * 1000)

    @property
    def is_copy(self) -> bool:
        """Whether it is a copy of a session's event: part of the user's history, and of no counts.

        The event of the session counts.
        """
        return self.source == SESSION_SOURCE

    def trusted_ms(self, log_ms: float) -> int:
        """The time from which this event counts for the age of its user's account, in ms.

        The event time of a source that is trusted with the past; otherwise `log_ms`, when the event
        reached the log. A client may date its events back, but no account is older for it.
        """
        trusted = self.source.startswith((DATASET_SOURCE, IMPORT_SOURCE))
        return self.time_ms if trusted else round(log_ms)


class ReviewEvent(_Envelope):
    """A review was written (key: user_id)."""

    type: Literal["afterclick.review.v1"] = REVIEW_TYPE
    data: Interaction


class FeedbackEvent(_Envelope):
    """A user reacted to an item (key: user_id)."""

    type: Literal["afterclick.feedback.v1"] = FEEDBACK_TYPE
    data: Interaction


class ImpressionEvent(_Envelope):
    """A list was shown (key: user_id)."""

    type: Literal["afterclick.impression.v1"] = IMPRESSION_TYPE
    data: Impression


class ItemEvent(_Envelope):
    """An item was added to the catalogue or changed (key: item_id)."""

    type: Literal["afterclick.item.v1"] = ITEM_TYPE
    data: Item


class ModelEvent(_Envelope):
    """A model was published (key: the constant `model`)."""

    type: Literal["afterclick.model.v1"] = MODEL_TYPE
    data: ModelPublished


InteractionEvent = ReviewEvent | FeedbackEvent
Event = Annotated[
    ReviewEvent | FeedbackEvent | ImpressionEvent | ItemEvent | ModelEvent,
    Field(discriminator="type"),
]
EVENT_ADAPTER: TypeAdapter[Event] = TypeAdapter(Event)


def decode(raw: bytes | None) -> Event:
    """The event in a record's value. Raises BadEvent, naming the invalid field."""
    if raw is None:
        raise BadEvent("the record has no value; expected an event as a JSON object")
    try:
        return EVENT_ADAPTER.validate_json(raw)
    except ValidationError as error:
        raise BadEvent(_first_problem(error)) from None
    except ValueError as error:
        raise BadEvent(str(error)) from None


def decode_interaction(raw: bytes | None) -> InteractionEvent:
    """The review or feedback in a record's value. Raises BadEvent for other events."""
    event = decode(raw)
    if isinstance(event, ReviewEvent | FeedbackEvent):
        return event
    raise BadEvent(f"type: {event.type} is not an interaction; write it to its own topic")


def decode_impression(raw: bytes | None) -> ImpressionEvent:
    """The impression in a record's value. Raises BadEvent for other events."""
    event = decode(raw)
    if isinstance(event, ImpressionEvent):
        return event
    raise BadEvent(f"type: {event.type} is not an impression; write it to its own topic")


def encode(event: BaseModel) -> bytes:
    """The JSON of an event, without fields that are None."""
    return event.__pydantic_serializer__.to_json(event, exclude_none=True)


def json_schema() -> dict[str, Any]:
    """The JSON Schema of every event, as committed in docs/events.schema.json."""
    return EVENT_ADAPTER.json_schema()


def stable_id(*parts: str | int) -> str:
    """A deterministic id: the same parts always give the same id."""
    digest = hashlib.blake2b(orjson.dumps([str(p) for p in parts]), digest_size=9)
    return digest.hexdigest()


def new_id() -> str:
    """A random id (feedback, impression)."""
    return uuid.uuid4().hex


def now() -> datetime:
    """The current time in UTC."""
    return datetime.now(UTC)


def interaction_event(
    interaction: Interaction,
    *,
    event_id: str,
    time: datetime,
    source: str,
    produced: datetime | None = None,
) -> InteractionEvent:
    """The event of an interaction: a review for the action `review`, else feedback."""
    kind = ReviewEvent if interaction.action is Action.REVIEW else FeedbackEvent
    return kind(
        id=event_id,
        source=source,
        time=time,
        subject=interaction.item_id,
        producedtime=produced,
        data=interaction,
    )


def _first_problem(error: ValidationError) -> str:
    problem = error.errors(include_url=False, include_context=False)[0]
    where = ".".join(str(p) for p in problem["loc"]) or "event"
    more = error.error_count() - 1
    return f"{where}: {problem['msg']}" + (f" (and {more} more)" if more else "")
