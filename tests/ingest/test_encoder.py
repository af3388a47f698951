"""The fast encoder writes the bytes of `events.encode`."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given, settings
from hypothesis import strategies as st

from afterclick.events import Action, Interaction, decode, encode, interaction_event, stable_id
from ingest.producer import Encoder
from ingest.rows import MAX_TIME_MS, Row, to_batch

ID = st.text(
    st.characters(min_codepoint=32, exclude_categories=["Cs"], exclude_characters="\x7f"),
    min_size=1,
    max_size=20,
) | st.sampled_from(['"', "\\", "\\u0041", "</script>", "\u2028", "😀", "é"])
ROWS = st.builds(
    Row,
    user_id=ID,
    item_id=ID,
    time_ms=st.integers(0, MAX_TIME_MS) | st.integers(0, 4_000_000).map(lambda s: s * 1000),
    rating=st.none() | st.floats(0, 5) | st.sampled_from([1.0, 4.5, 0.1, 1e-5, 5e-324]),
    text=st.none() | st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40),
    action=st.none() | st.sampled_from(list(map(str, Action))),
)


def slowly(row: Row, shift_ms: int, source: str) -> bytes:
    action = Action(row.action or "review")
    interaction = Interaction(
        user_id=row.user_id, item_id=row.item_id, action=action, rating=row.rating, text=row.text
    )
    time = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=row.time_ms + shift_ms)
    event_id = stable_id(action, row.user_id, row.item_id, row.time_ms)
    return encode(interaction_event(interaction, event_id=event_id, time=time, source=source))


@settings(max_examples=500, deadline=None)
@given(st.lists(ROWS, max_size=6), st.integers(0, 10**12), st.sampled_from(["dataset/x", 'a"b\\é']))
def test_the_bytes_equal_those_of_events_encode(
    rows: list[Row], shift_ms: int, source: str
) -> None:
    groups = Encoder(source, "reviews", "feedback", shift_ms).encode(to_batch(rows))
    messages = [(topic, m["key"], m["value"]) for topic, group in groups for m in group]
    assert messages == [
        (
            "reviews" if (row.action or "review") == "review" else "feedback",
            row.user_id,
            slowly(row, shift_ms, source),
        )
        for row in rows
    ]


def test_the_event_id_of_a_row_is_independent_of_the_clock_and_the_dataset_name() -> None:
    batch = to_batch([Row("u", "i", 1_300_000_000_000, 4.0, None, None)])
    ids = {
        decode(Encoder(source, "r", "f", shift).encode(batch)[0][1][0]["value"]).id
        for source in ("dataset/a", "dataset/b")
        for shift in (0, 86_400_000)
    }
    assert len(ids) == 1
