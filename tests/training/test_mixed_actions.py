"""One meaning of feedback: the stream's state and the event log agree on mixed actions, at every
moment.

The same events are applied by the stream's functions in a real Valkey, in the order in which they
arrive, and read as an event log. A moment is compared by what has happened before it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pytest
import redis
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from afterclick.events import Action, InteractionEvent, encode
from afterclick.settings import Settings, StreamSettings
from afterclick.signals import stars_of
from afterclick.state import HistoryEntry, StateChange
from afterclick.trends import HALF_LIVES_MS, TrendTable
from afterclick.user_vectors import UserState
from streaming.apply import Applier
from streaming.archive_table import ArchiveAppender, create_archive
from streaming.connection import NodeConnection, load_functions
from streaming.records import Record
from tests.streaming.builders import DAY_S, START_S, State, apply_config, event, stored
from training import etl, event_log
from training.event_log import CODES, EventLog, Votes
from training.models.popularity import sums_at
from training.query_replay import Histories

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

SIGNALS = StreamSettings().signals
WEIGHTS = SIGNALS.actions
HOUR_S = 3600
ARRIVED_MS = (START_S + 60 * DAY_S) * 1000.0
NO_EVENT = np.array([-1], np.int32)


def day(n: float) -> float:
    return n * DAY_S


MIXED: list[InteractionEvent] = [
    event("alice", "camera", "view", at=day(10)),
    event("alice", "camera", "click", at=day(11)),
    event("bob", "camera", "review", at=day(11)),
    event("alice", "camera", "purchase", at=day(13)),
    event("alice", "camera", "undo", at=day(14)),
    event("alice", "camera", "skip", at=day(15)),
    event("alice", "camera", "like", at=day(16)),  # a like after a skip
    event("alice", "lens", "click", at=day(14)),
    event("alice", "lens", "click", at=day(12)),  # late, and older than the vote that it follows
    event("alice", "lens", "click", at=day(17)),  # a repeat
    event("bob", "lens", "view", at=day(11)),
    event("bob", "lens", "purchase", at=day(11) + HOUR_S),
    event("bob", "bag", "skip", at=day(12)),
    event("bob", "bag", "view", at=day(12)),  # at the time of the skip
    event("bob", "strap", "undo", at=day(12)),  # nothing to undo
    event("carol", "bag", "like", at=day(19)),
    event("carol", "bag", "undo", at=day(18)),  # late: before the like
    event("carol", "camera", "basket", at=day(19)),
    event("carol", "camera", "undo", at=day(19)),  # at the time of what it undoes
    event("bob", "lens", "skip", at=day(20)),
    event("alice", "bag", "view", at=day(1)),  # late: an established account from here on
    event("alice", "bag", "purchase", at=day(2)),
    event("bob", "camera", "view", at=day(3)),
    event("carol", "lens", "review", at=day(12), rating=5.0),
    event("carol", "lens", "review", at=day(18), rating=1.0),  # replaces the five stars
    event("dave", "strap", "purchase", at=day(4)),
    event("dave", "strap", "review", at=day(9), rating=2.0),  # outweighs the purchase
    event("dave", "strap", "review", at=day(8), rating=4.0),  # late: replaced at once
    event("dave", "bag", "review", at=day(9), rating=1.0),
    event("dave", "bag", "review", at=day(15)),
    event("dave", "bag", "review", at=day(21), rating=3.0),
    event("dave", "bag", "click", at=day(22)),
]


@dataclass(frozen=True)
class Played:
    """What the stream made of events: the published trends, and the state in Valkey."""

    table: TrendTable
    state: State

    def user(self, user_id: str, item_ids: list[str], now_ms: int) -> UserState:
        """The state of a user, as serving reads it from the stored history."""
        rows = self.state.histories.get(user_id, [])
        newest_first = [HistoryEntry.from_member(member, ms) for ms, member in reversed(rows)]
        return UserState.of(newest_first, item_ids.index, SIGNALS, now_ms)


@dataclass(frozen=True)
class Stream:
    """The stream's functions in a Valkey."""

    client: redis.Redis
    url: str

    def play(self, events: Sequence[InteractionEvent], history_length: int = 200) -> Played:
        """Apply the events in this order, to a new state."""
        config = apply_config(self.url, history_length=history_length)
        applier = Applier(config, NodeConnection(self.url))
        table, offsets = TrendTable(), Counter[str]()
        for topic, group in groupby(events, key=_topic):
            records = _records(list(group), offsets[topic])
            offsets[topic] += len(records)
            for output in applier.apply(topic, 0, records):
                table.apply(StateChange.decode(output.value or b""))
        users = {one.data.user_id for one in events}
        return Played(table, stored(self.client, config.keys, users))


def _topic(one: InteractionEvent) -> str:
    return "reviews" if one.data.action is Action.REVIEW else "feedback"


def _records(events: list[InteractionEvent], first: int) -> list[Record]:
    return [
        Record(offset, one.data.user_id.encode(), encode(one), ARRIVED_MS)
        for offset, one in enumerate(events, first)
    ]


@pytest.fixture(scope="module")
def stream(redis_url: str) -> Iterator[Stream]:
    with redis.Redis.from_url(redis_url) as client:
        load_functions(client)
        yield Stream(client, redis_url)


def log_of(events: Sequence[InteractionEvent]) -> EventLog:
    """The events as the ETL has them."""
    users = np.array([one.data.user_id for one in events])
    items = np.array([one.data.item_id for one in events])
    user_ids, user = np.unique(users, return_inverse=True)
    item_ids, item = np.unique(items, return_inverse=True)
    said = [(one.data.action, one.data.rating) for one in events]
    n = len(events)
    return EventLog(
        user_ids=user_ids,
        item_ids=item_ids,
        user=user.astype(np.int32),
        item=item.astype(np.int32),
        time_ms=np.array([one.time_ms for one in events], np.int64),
        trusted_ms=np.array([one.trusted_ms(ARRIVED_MS) for one in events], np.int64),
        action=np.array([CODES[action] for action, _ in said], np.int8),
        stars=np.array([stars_of(action, rating) for action, rating in said], np.int8),
        weight=np.array([SIGNALS.weight(action, rating) for action, rating in said], np.float32),
        trusted=np.ones(n, bool),
        propensity=np.full(n, np.nan, np.float32),
        position=np.full(n, -1, np.int16),
    ).sorted()


def happened(events: Sequence[InteractionEvent], now_ms: int) -> list[InteractionEvent]:
    """The events before a moment, in the order in which they arrived."""
    return [one for one in events if one.time_ms < now_ms]


def moments_of(events: Sequence[InteractionEvent]) -> list[int]:
    """Before and after each time of an event."""
    times = sorted({one.time_ms for one in events})
    return [*times, *(time_ms + 1 for time_ms in times), times[-1] + 5 * DAY_S * 1000]


def assert_agree(log: EventLog, played: Played, now_ms: int) -> None:
    """The whole log, asked as of a moment, says what the stream's state of then says."""
    assert_trends_agree(log.votes(), log.item_ids, played, now_ms)
    assert_counts_agree(log.before(now_ms), played)
    assert_states_agree(log, played, now_ms)


def assert_trends_agree(
    votes: Votes, item_ids: np.typing.NDArray[np.str_], played: Played, now_ms: int
) -> None:
    """All half-lives, of all votes and of established users: published, stored, and replayed."""
    moment = np.array([now_ms])
    for part, kind in ((votes, 0), (votes.of_established(), 1)):
        ((_, sums),) = sums_at(part, moment)
        published = played.table.both(float(now_ms))[kind]
        for index, item in enumerate(item_ids.tolist()):
            row, trend = played.table.find(item), played.state.trends.get(item)
            if row is None or trend is None:
                assert not sums[index].any()
                continue
            of_kind = (trend.sums, trend.established)[kind]
            age = np.array([now_ms - trend.time_ms]) / np.array(list(HALF_LIVES_MS.values()))
            assert published[row] == pytest.approx(sums[index], rel=1e-6, abs=1e-6)
            assert np.array(of_kind) * np.exp2(-age) == pytest.approx(
                sums[index], rel=1e-6, abs=1e-6
            )


def assert_counts_agree(past: EventLog, played: Played) -> None:
    """Positive events of each item and reviews with stars, and users with a positive one."""
    positive = np.flatnonzero(past.weight > 0)
    counted = np.flatnonzero((past.weight > 0) | (past.stars > 0))
    counts = Counter(past.item_ids[past.item[counted]].tolist())
    distinct = {(past.user[row], past.item[row]) for row in positive}
    assert counts == played.state.counts
    assert Counter(str(past.item_ids[item]) for _, item in distinct) == played.state.uniques
    published = dict(zip(played.table.ids, played.table.counts.tolist(), strict=True))
    assert {item: count for item, count in published.items() if count} == counts
    stars = dict(zip(played.table.ids, played.table.stars.tolist(), strict=True))
    rated = {item: tuple(numbers) for item, numbers in stars.items() if any(numbers)}
    assert rated == played.state.ratings
    not_positive = np.flatnonzero((past.weight <= 0) & (past.stars > 0))
    assert Counter(past.item_ids[past.item[not_positive]].tolist()) == Counter(
        {item: numbers.not_positive for item, numbers in played.state.ratings.items()}
    )


def assert_states_agree(log: EventLog, played: Played, now_ms: int) -> None:
    """Items, weights, times and seen items of every user; the pairs are the items of positive
    actions."""
    histories, item_ids = Histories.of(log, 200), log.item_ids.tolist()
    pairs = log.before(now_ms).pairs()
    for index, user_id in enumerate(log.user_ids.tolist()):
        served = played.user(user_id, item_ids, now_ms)
        replayed = histories.state(index, now_ms, NO_EVENT)
        assert liked(replayed) == liked(served)
        assert replayed.times_ms.tolist() == served.times_ms.tolist()
        assert set(replayed.seen.tolist()) == set(served.seen.tolist())
        mine = pairs.user == index
        graded = dict(zip(pairs.item[mine].tolist(), pairs.weight[mine].tolist(), strict=True))
        assert graded == {item: weight for item, (weight, _) in liked(served).items()}


def liked(state: UserState) -> dict[int, tuple[float, float]]:
    """item_index → weight and time."""
    columns = (state.items.tolist(), state.weights.tolist(), state.times_ms.tolist())
    return {item: (weight, ms) for item, weight, ms in zip(*columns, strict=True)}


def test_stream_and_log_agree_on_mixed_actions_at_every_moment(stream: Stream) -> None:
    log = log_of(MIXED)
    for now_ms in moments_of(MIXED):
        assert_agree(log, stream.play(happened(MIXED, now_ms)), now_ms)


SOURCES = {"alice": "dataset/test", "bob": "afterclick/api"}


def sourced(user: str, item: str, action: str, at: float, rating: float | None) -> InteractionEvent:
    """An event of a replay (alice) or of a client (bob)."""
    return event(user, item, action, at=at, source=SOURCES[user], rating=rating)


EVENTS = st.lists(
    st.builds(
        sourced,
        user=st.sampled_from(["alice", "bob"]),
        item=st.sampled_from(["bag", "camera", "lens"]),
        action=st.sampled_from([*(str(action) for action in Action), "review", "review"]),
        rating=st.sampled_from([None, 0.0, 1.0, 2.5, 4.0, 5.0]),
        at=st.sampled_from([0.0, 60.0, day(1), day(6.5), day(7), day(8), day(20), day(20.5)]),
    ),
    min_size=1,
    max_size=25,
)


@hypothesis_settings(max_examples=80, deadline=None)
@given(events=EVENTS, days=st.sampled_from([0.5, 7.25, 20.25, 30.0]))
def test_stream_and_log_agree_on_any_events_in_any_order_of_arrival(
    stream: Stream, events: list[InteractionEvent], days: float
) -> None:
    now_ms = int((START_S + day(days)) * 1000)
    assert_agree(log_of(events), stream.play(happened(events, now_ms)), now_ms)


def test_a_short_history_holds_the_same_newest_events(stream: Stream) -> None:
    events = [one for one in MIXED if one.data.user_id == "alice"]
    log, now_ms = log_of(events), int((START_S + day(30)) * 1000)
    played = stream.play(events, history_length=4)
    replayed = Histories.of(log, 4).state(0, now_ms, NO_EVENT)
    served = played.user("alice", log.item_ids.tolist(), now_ms)
    assert liked(replayed) == liked(served)
    assert set(replayed.seen.tolist()) == set(served.seen.tolist())
    assert len(liked(served)) < len(liked(Histories.of(log, 200).state(0, now_ms, NO_EVENT)))


def test_an_item_counts_once_at_its_newest_time_with_its_strongest_action() -> None:
    log = log_of(MIXED)
    camera, lens = (log.item_ids.tolist().index(item) for item in ("camera", "lens"))
    alice, bob = (log.user_ids.tolist().index(user) for user in ("alice", "bob"))
    histories = Histories.of(log, 200)

    def of(user: int, item: int, days: float) -> tuple[float, float] | None:
        state = liked(histories.state(user, at(days), NO_EVENT))
        return state.get(item)

    assert of(alice, camera, 13.5) == (WEIGHTS[Action.PURCHASE], at(13))
    assert of(alice, camera, 15.5) is None  # undone, then skipped
    assert of(alice, camera, 30) == (WEIGHTS[Action.LIKE], at(16))
    assert of(alice, lens, 30) == (WEIGHTS[Action.CLICK], at(17))
    assert of(bob, lens, 11.01) == (WEIGHTS[Action.VIEW], at(11))
    assert of(bob, lens, 30) == (WEIGHTS[Action.PURCHASE], at(11) + HOUR_S * 1000)


def at(days: float) -> int:
    return int((START_S + day(days)) * 1000)


def test_a_purchase_after_a_view_is_a_pair_at_the_view_graded_as_a_purchase() -> None:
    assert pair(log_of(MIXED), "bob", "lens") == (at(11), WEIGHTS[Action.PURCHASE])


def test_no_later_weight_or_undo_reaches_an_earlier_moment() -> None:
    log = log_of(MIXED)
    assert pair(log.before(at(11.01)), "bob", "lens") == (at(11), WEIGHTS[Action.VIEW])
    assert pair(log.before(at(13.5)), "alice", "camera") == (at(10), WEIGHTS[Action.PURCHASE])
    assert pair(log.before(at(15.5)), "alice", "camera") is None
    assert pair(log, "alice", "camera") == (at(16), WEIGHTS[Action.LIKE])


def pair(log: EventLog, user_id: str, item_id: str) -> tuple[int, float] | None:
    """Time and weight of an interaction."""
    rows = log.pairs()
    found = (rows.user_ids[rows.user] == user_id) & (rows.item_ids[rows.item] == item_id)
    times, weights = rows.time_ms[found].tolist(), rows.weight[found].tolist()
    return (times[0], weights[0]) if times else None


@pytest.mark.parametrize("now_ms", moments_of(MIXED))
def test_the_log_as_of_a_moment_is_the_log_that_ends_then(now_ms: int) -> None:
    whole, ended = (
        log_of(MIXED),
        log_of(happened(MIXED, now_ms)) if happened(MIXED, now_ms) else None,
    )
    past = whole.before(now_ms)
    assert len(past) == (len(ended) if ended else 0)
    if ended is None:
        return
    assert named_pairs(past) == named_pairs(ended)
    for kind in (Votes.of_established, lambda votes: votes):
        ((_, of_whole),) = sums_at(kind(whole.votes()), np.array([now_ms]))
        ((_, of_ended),) = sums_at(kind(ended.votes()), np.array([now_ms]))
        known = np.searchsorted(whole.item_ids, ended.item_ids)
        assert of_whole[known] == pytest.approx(of_ended)
        assert of_whole.sum() == pytest.approx(of_ended.sum())


def named_pairs(log: EventLog) -> list[tuple[str, str, int, float]]:
    rows = log.pairs()
    columns = (rows.user_ids[rows.user], rows.item_ids[rows.item], rows.time_ms, rows.weight)
    return list(zip(*(column.tolist() for column in columns), strict=True))


@pytest.mark.parametrize(
    ("source", "established"),
    [("afterclick/api", False), ("dataset/test", True), ("import/shop", True)],
)
def test_a_client_cannot_date_its_account_back(source: str, established: bool) -> None:
    backdated = event("mallory", "bag", "undo", at=day(1), source=source)
    log = log_of([backdated, event("mallory", "camera", "like", at=day(25), source=source)])
    assert log.established().tolist() == [False, established]
    likes = log.votes().of_established().weight.tolist()
    assert likes == ([WEIGHTS[Action.LIKE]] if established else [])


@pytest.mark.spark
def test_the_etl_gives_the_events_of_the_log(spark: SparkSession, settings: Settings) -> None:
    """Through the code of the archive query, with an event that arrives twice."""
    events = [*MIXED, event("dan", "bag", "view", at=day(3), source="afterclick/api")]
    records = _records([*events, MIXED[0]], first=0)
    columns = {
        "key": [record.key for record in records],
        "value": [record.value for record in records],
        "topic": ["feedback"] * len(records),
        "partition": [0] * len(records),
        "offset": [record.offset for record in records],
        "timestamp": [round(record.log_ms * 1000) for record in records],
    }
    create_archive(settings.archive)
    list(ArchiveAppender(settings.archive)([pa.RecordBatch.from_pydict(columns)]))
    version, report = etl.run(spark, settings)
    loaded = event_log.load(settings.home / "etl" / version)
    assert report.balanced()
    assert loaded.fingerprint() == log_of(events).fingerprint()
    assert loaded.trusted_ms.tolist() == log_of(events).trusted_ms.tolist()
    assert (loaded.trusted_ms != loaded.time_ms).sum() == 1
