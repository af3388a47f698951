"""Events: old ones stay readable, codecs round-trip, and `decode` rejects hostile input."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from pydantic import ValidationError

from afterclick import events
from afterclick.errors import BadEvent
from afterclick.events import (
    Action,
    Interaction,
    ItemEvent,
    ReviewEvent,
    decode,
    decode_interaction,
    encode,
)

GOLDEN = sorted((Path(__file__).parent / "golden").glob("*.json"))
REVIEW = orjson.loads((Path(__file__).parent / "golden" / "review.v1.json").read_bytes())

ID = st.text(
    st.characters(min_codepoint=32, exclude_categories=["Cs"], exclude_characters="\x7f"),
    min_size=1,
    max_size=128,
)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=200)
ZONES = st.integers(-23 * 60, 23 * 60).map(lambda m: timezone(timedelta(minutes=m)))
TIMES = st.datetimes(datetime(1970, 1, 2), datetime(2200, 1, 1), timezones=ZONES)
INTERACTIONS = st.builds(
    Interaction,
    user_id=ID,
    item_id=ID,
    action=st.sampled_from(Action),
    rating=st.none() | st.floats(0, 5),
    text=st.none() | TEXT,
    impression_id=st.none() | ID,
    session_id=st.none() | ID,
)


def changed(**data: Any) -> bytes:
    """A review event with other data fields; a field that is None is left out."""
    fields = {k: v for k, v in {**REVIEW["data"], **data}.items() if v is not None}
    return orjson.dumps({**REVIEW, "data": fields})


def enveloped(**fields: Any) -> bytes:
    """A review event with another envelope; a field that is None is left out."""
    return orjson.dumps({k: v for k, v in {**REVIEW, **fields}.items() if v is not None})


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_golden_events_stay_readable_and_are_written_as_they_were(path: Path) -> None:
    raw = path.read_bytes().strip()
    event = decode(raw)
    assert event.type == f"afterclick.{path.stem.partition('-')[0]}"
    assert encode(event) == raw


def test_there_is_a_golden_event_of_every_type() -> None:
    types = {d["$ref"].rsplit("/", 1)[-1] for d in events.json_schema()["oneOf"]}
    assert len({path.stem.partition("-")[0] for path in GOLDEN}) == len(types) == 5


@settings(max_examples=300, deadline=None)
@given(INTERACTIONS, ID, TIMES, st.text(min_size=1, max_size=50).filter(str.isprintable))
def test_an_encoded_event_decodes_to_the_same(
    interaction: Interaction, event_id: str, time: datetime, source: str
) -> None:
    event = events.interaction_event(interaction, event_id=event_id, time=time, source=source)
    raw = encode(event)
    again = decode_interaction(raw)
    assert again == event
    assert again.time_ms == round(time.timestamp() * 1000)
    assert isinstance(again, ReviewEvent) == (interaction.action is Action.REVIEW)
    assert encode(again) == raw
    assert b"null" not in raw or "null" in f"{interaction}{event_id}{source}"


@settings(max_examples=300, deadline=None)
@given(
    st.binary(max_size=400)
    | st.text(max_size=200).map(lambda t: t.encode("utf-8", "surrogatepass"))
)
def test_any_bytes_are_an_event_or_bad_event(raw: bytes) -> None:
    with pytest.raises(BadEvent):
        decode(raw)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from([*REVIEW, *REVIEW["data"]]), JSON)
def test_any_json_in_any_field_is_an_event_or_bad_event(name: str, value: object) -> None:
    event = (
        {**REVIEW, name: value}
        if name in REVIEW
        else {**REVIEW, "data": {**REVIEW["data"], name: value}}
    )
    raw = json.dumps(
        event
    ).encode()  # unlike orjson it writes NaN, Infinity and integers of any size
    try:
        encoded = encode(decode(raw))
    except BadEvent:
        return
    assert decode(encoded) == decode(raw)


HOSTILE = {
    "no value": None,
    "empty": b"",
    "NUL": b"\x00",
    "not JSON": b"hello",
    "not an object": b"[]",
    "null": b"null",
    "deep": b"[" * 200_000,
    "half": encode(decode(orjson.dumps(REVIEW)))[:-5],
    "two": orjson.dumps(REVIEW) * 2,
    "bad UTF-8": orjson.dumps(REVIEW).replace(b"AY6S", b"\xff\xfe"),
    "NaN rating": orjson.dumps(REVIEW).replace(b'"rating":4.5', b'"rating":NaN'),
    "Infinity rating": orjson.dumps(REVIEW).replace(b'"rating":4.5', b'"rating":Infinity'),
    "-Infinity rating": orjson.dumps(REVIEW).replace(b'"rating":4.5', b'"rating":-Infinity'),
    "huge rating": orjson.dumps(REVIEW).replace(b'"rating":4.5', b'"rating":1e999'),
    "text NaN rating": changed(rating="NaN"),
    "rating 6": changed(rating=6),
    "rating -1": changed(rating=-1),
    "lone surrogate id": orjson.dumps(REVIEW).replace(b"AY6S", b"\\ud800"),
    "lone surrogate text": orjson.dumps(REVIEW).replace(b"cheap", b"\\udfff"),
    "NUL in an id": changed(user_id="a\x00b"),
    "line end in an id": changed(item_id="a\nb"),
    "DEL in an id": changed(user_id="\x7f"),
    "empty id": changed(user_id=""),
    "long id": changed(user_id="x" * 129),
    "long text": changed(text="x" * 32_769),
    "number as id": changed(user_id=7),
    "list as id": changed(user_id=["a"]),
    "no user": orjson.dumps({**REVIEW, "data": {"item_id": "b", "action": "review"}}),
    "unknown action": changed(action="stare"),
    "extra data field": changed(colour="red"),
    "extra envelope field": enveloped(colour="red"),
    "naive time": enveloped(time="2014-07-23T00:00:00"),
    "no time": enveloped(time=None),
    "time that overflows in UTC": enveloped(time="9999-12-31T23:59:59-14:00"),
    "time that overflows in nanoseconds": enveloped(time="2262-04-12T00:00:00Z"),
    "production time that overflows": enveloped(producedtime="9999-12-31T23:59:59-14:00"),
    "time before 1970": enveloped(time="1969-12-31T23:59:59Z"),
    "time before 1970 in UTC": enveloped(time="1970-01-01T00:00:00+14:00"),
    "time of year 1": enveloped(time="0001-01-01T00:00:00+14:00"),
    "time of no calendar": enveloped(time="2014-02-30T00:00:00Z"),
    "other specversion": enveloped(specversion="0.3"),
    "unknown type": enveloped(type="afterclick.review.v2"),
    "no type": enveloped(type=None),
    "data of another type": enveloped(type="afterclick.item.v1"),
    "other content type": enveloped(datacontenttype="text/plain"),
}


@pytest.mark.parametrize("raw", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_records_are_bad_events_in_one_line(raw: bytes | None) -> None:
    with pytest.raises(BadEvent) as caught:
        decode(raw)
    assert re.fullmatch(r"[^\n]{5,500}", str(caught.value))


def test_the_hostile_review_is_valid_without_its_fault() -> None:
    assert decode(changed()) == decode(orjson.dumps(REVIEW))


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_no_event_has_a_time_that_overflows(path: Path) -> None:
    event = orjson.loads(path.read_bytes())
    decode(orjson.dumps(event | {"time": "2261-12-31T23:59:59-14:00"}))
    with pytest.raises(BadEvent, match="time"):
        decode(orjson.dumps(event | {"time": "9999-12-31T23:59:59-14:00"}))


def test_a_bad_event_names_the_field() -> None:
    with pytest.raises(BadEvent, match="rating"):
        decode(changed(rating=9))
    with pytest.raises(BadEvent, match=r"and 1 more"):
        decode(changed(rating=9, user_id=""))


def test_an_item_event_is_not_an_interaction() -> None:
    raw = next(path for path in GOLDEN if path.stem == "item.v1").read_bytes()
    assert isinstance(decode(raw), ItemEvent)
    with pytest.raises(BadEvent, match="not an interaction"):
        decode_interaction(raw)


def test_times_of_different_zones_are_equal() -> None:
    times = ("2014-07-23T02:00:00+02:00", "2014-07-23T00:00:00Z", "2014-07-22T19:00:00.000-05:00")
    assert {decode(enveloped(time=t)).time_ms for t in times} == {1406073600000}


def test_the_json_schema_accepts_golden_events_and_rejects_hostile_ones() -> None:
    schema = Draft202012Validator(events.json_schema())
    for path in GOLDEN:
        schema.validate(orjson.loads(path.read_bytes()))
    for name in (
        "rating 6",
        "empty id",
        "unknown action",
        "extra data field",
        "no user",
        "unknown type",
    ):
        raw = HOSTILE[name]
        assert raw is not None
        assert not schema.is_valid(orjson.loads(raw)), name


def test_events_are_immutable() -> None:
    event = decode(orjson.dumps(REVIEW))
    with pytest.raises(ValidationError, match="frozen"):
        event.id = "other"  # type: ignore[misc]


@given(
    st.lists(ID | st.integers(), min_size=1, max_size=4),
    st.lists(ID | st.integers(), min_size=1, max_size=4),
)
def test_stable_ids_depend_only_on_the_parts(one: list[str | int], two: list[str | int]) -> None:
    assert events.stable_id(*one) == events.stable_id(*one)
    assert (events.stable_id(*one) == events.stable_id(*two)) == (
        [*map(str, one)] == [*map(str, two)]
    )


def test_stable_ids_never_change() -> None:
    # a change here would count every replayed row twice
    assert (
        events.stable_id("review", "AY6S3QIFWFWQB", "B00DYNQR3O", 1406073600000)
        == "716fefad8a67fff2d3"
    )
    assert events.stable_id("a", "bc") != events.stable_id("ab", "c")


def test_new_ids_differ_and_now_has_a_zone() -> None:
    assert len({events.new_id() for _ in range(1000)}) == 1000
    assert events.now().tzinfo is UTC
