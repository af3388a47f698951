"""Events and logs with defaults, the expected state, and the state in Redis."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import redis

from afterclick.events import (
    DATASET_SOURCE,
    Action,
    Impression,
    ImpressionEvent,
    Interaction,
    InteractionEvent,
    ShownItem,
    encode,
    interaction_event,
    new_id,
    now,
)
from afterclick.redis_keys import Keys
from afterclick.settings import StreamSettings
from afterclick.state import HistoryEntry, StarCounts
from afterclick.trends import HALF_LIVES_MS, Trend
from streaming.apply import ApplyConfig
from streaming.connection import Command, Connection
from streaming.records import Output, Record

TOPICS = ("reviews", "feedback")
DAY_S = 86_400
AGE_S = 7 * DAY_S
START_S = 1_400_000_000
SIGNALS = StreamSettings().signals
WEIGHTS = {str(action): weight for action, weight in SIGNALS.actions.items()}


def event(
    user: str = "alice",
    item: str = "camera",
    action: str = "click",
    *,
    at: float = 0.0,
    event_id: str = "",
    source: str = f"{DATASET_SOURCE}test",
    rating: float | None = None,
) -> InteractionEvent:
    """An interaction, `at` seconds after START_S."""
    data = {"user_id": user, "item_id": item, "action": action, "rating": rating}
    return interaction_event(
        Interaction.model_validate(data),
        event_id=event_id or new_id(),
        time=datetime.fromtimestamp(START_S + at, UTC),
        source=source,
    )


def impression(
    impression_id: str,
    user: str = "alice",
    items: Sequence[str] = ("a", "b", "c"),
    *,
    model: str | None = "m1",
    at_ms: float | None = None,
    experiment: str | None = None,
    arm: str | None = None,
) -> ImpressionEvent:
    """A list as the API logs it, shown now."""
    shown = Impression(
        impression_id=impression_id,
        user_id=user,
        items=tuple(ShownItem(item_id=item, score=1.0, source="als") for item in items),
        model_version=model,
        source="trending",
        policy="blend",
        experiment=experiment,
        arm=arm,
    )
    time = now() if at_ms is None else datetime.fromtimestamp(at_ms / 1000, UTC)
    return ImpressionEvent(id=impression_id, source="/serving", time=time, subject=user, data=shown)


def reaction(
    impression_id: str,
    item: str,
    action: str = "click",
    *,
    user: str = "alice",
    at_ms: float | None = None,
) -> InteractionEvent:
    """A reaction to a list, now."""
    data = {"user_id": user, "item_id": item, "action": action, "impression_id": impression_id}
    return interaction_event(
        Interaction.model_validate(data),
        event_id=new_id(),
        time=now() if at_ms is None else datetime.fromtimestamp(at_ms / 1000, UTC),
        source="afterclick/api",
    )


LOG_MS = (START_S + 40 * DAY_S) * 1000.0


def log_of(
    events: Iterable[InteractionEvent], first: int = 0, log_ms: float = LOG_MS
) -> list[Record]:
    """A partition's log with one record per event, which all reached it at one moment."""
    return [
        Record(offset, one.data.user_id.encode(), encode(one), log_ms)
        for offset, one in enumerate(events, first)
    ]


def apply_config(url: str, **more: object) -> ApplyConfig:
    """A configuration with its own key prefix."""
    options = {
        "url": url,
        "cluster": False,
        "keys": Keys(f"{uuid4().hex[:8]}:"),
        "topics": TOPICS,
        "state_changes": "state-changes",
        "state_changes_partitions": 1,
        "signals": SIGNALS,
        "history_length": 200,
        "ledger_length": 4096,
        "max_ahead_ms": DAY_S * 1000.0,
        "established_ms": AGE_S * 1000,
        "max_voted_items": 10_000,
        "session_ttl_ms": 30 * DAY_S * 1000,
        "user_ttl_ms": 730 * DAY_S * 1000,
    }
    return ApplyConfig(**(options | more))  # type: ignore[arg-type]


class Crash(Exception):
    """The process dies here."""


@dataclass
class CrashingConnection:
    """A connection that fails at its n-th call: before the call reached the server, or after."""

    inner: Connection
    call_number: int
    reached: bool

    def call(self, commands: Sequence[Command]) -> list[Any]:
        self.call_number -= 1
        if self.call_number == 0 and not self.reached:
            raise Crash
        answers = self.inner.call(commands)
        if self.call_number == 0:
            raise Crash
        return answers


@dataclass
class State:
    """The whole state, partitions summed."""

    counts: Counter[str] = field(default_factory=Counter)
    uniques: Counter[str] = field(default_factory=Counter)
    ratings: dict[str, StarCounts] = field(default_factory=dict)
    trends: dict[str, Trend] = field(default_factory=dict)
    histories: dict[str, list[tuple[float, bytes]]] = field(default_factory=dict)

    def same_as(self, other: State) -> None:
        """Assert equality; trends may differ by 1e-9."""
        assert self.counts == other.counts
        assert self.uniques == other.uniques
        assert self.ratings == other.ratings
        assert self.histories == other.histories
        assert self.trends.keys() == other.trends.keys()
        for item, trend in self.trends.items():
            assert trend.time_ms == other.trends[item].time_ms
            its_trend = other.trends[item]
            pairs = zip(
                trend.sums + trend.established, its_trend.sums + its_trend.established, strict=True
            )
            for mine, its in pairs:
                assert abs(mine - its) <= 1e-9 * max(1.0, abs(its)), item


def expected(events: Iterable[InteractionEvent], history_length: int = 200) -> State:
    """The state that events result in, each counted once, by afterclick.trends.Trend."""
    state, seen, pairs = State(), set(), set()
    votes: dict[tuple[str, str, str], tuple[int, int, float]] = {}
    since: dict[str, int] = {}
    for one in events:
        data = one.data
        if (data.user_id, one.id) in seen:
            continue
        seen.add((data.user_id, one.id))
        is_rated = data.action == "review" and data.rating is not None
        weight = SIGNALS.weight(data.action, data.rating)
        if weight > 0 or is_rated:
            state.counts[data.item_id] += 1
        if weight <= 0 and is_rated:
            _add(state, data.item_id, StarCounts(not_positive=1))
        if weight > 0 and (data.user_id, data.item_id) not in pairs:
            pairs.add((data.user_id, data.item_id))
            state.uniques[data.item_id] += 1
        none_yet = Trend(one.time_ms, (0.0,) * len(HALF_LIVES_MS))
        state.trends[data.item_id] = state.trends.get(data.item_id, none_yet).add(one.time_ms, 0.0)
        vote = (data.user_id, data.item_id, data.action)
        stars = float(data.rating or 0.5) if is_rated else 0.0
        times = (one.time_ms, one.trusted_ms(LOG_MS), stars)
        votes[vote] = max(times, votes.get(vote, times))
        since[data.user_id] = min(times[1], since.get(data.user_id, times[1]))
        entry = HistoryEntry(one.id, data.item_id, data.action, data.rating, one.time_ms)
        state.histories.setdefault(data.user_id, []).append((float(one.time_ms), entry.member()))
    for (user, item, action), (time_ms, trusted_ms, stars) in votes.items():
        weight = SIGNALS.weight(Action(action), stars or None)
        if stars:
            _add(state, item, StarCounts(1, max(round(stars), 1), int(weight > 0)))
        is_established = trusted_ms - since[user] >= AGE_S * 1000
        if weight < 0 and not is_established:
            continue
        established = weight if is_established else 0.0
        state.trends[item] = state.trends[item].add(time_ms, weight, established)
    state.histories = {
        user: sorted(rows)[-history_length:] for user, rows in state.histories.items()
    }
    return state


def _add(state: State, item: str, more: StarCounts) -> None:
    state.ratings[item] = state.ratings.get(item, StarCounts()).plus(more)


def raw(reply: Any) -> Any:
    """A reply of Redis; its type allows for strings, which `decode_responses` would return."""
    return reply


def stored(client: redis.Redis, keys: Keys, users: Iterable[str], partitions: int = 1) -> State:
    """The state in Redis."""
    state = State()
    for topic in TOPICS:
        for partition in range(partitions):
            for total, key in ((state.counts, keys.counts), (state.uniques, keys.uniques)):
                counted: dict[bytes, bytes] = raw(client.hgetall(key(topic, partition)))
                for item, number in counted.items():
                    total[item.decode()] += int(number)
            rated: dict[bytes, bytes] = raw(client.hgetall(keys.ratings(topic, partition)))
            for item, numbers in rated.items():
                _add(state, item.decode(), StarCounts.decode(numbers))
            trends: dict[bytes, bytes] = raw(client.hgetall(keys.trends(topic, partition)))
            for item, packed in trends.items():
                trend = Trend.unpack(packed)
                before = state.trends.get(item.decode())
                state.trends[item.decode()] = _merge(before, trend) if before else trend
    state.ratings = {item: counts for item, counts in state.ratings.items() if any(counts)}
    for user in users:
        rows: list[tuple[bytes, float]] = raw(
            client.zrange(keys.history(user), 0, -1, withscores=True)
        )
        if rows:
            state.histories[user] = [(score, member) for member, score in rows]
    return state


def _merge(a: Trend, b: Trend) -> Trend:
    newest = max(a.time_ms, b.time_ms)

    def both(x: tuple[float, ...], y: tuple[float, ...]) -> tuple[float, ...]:
        decays = [
            [2.0 ** ((one.time_ms - newest) / h) for h in HALF_LIVES_MS.values()] for one in (a, b)
        ]
        return tuple(p * k + q * m for p, q, k, m in zip(x, y, *decays, strict=True))

    return Trend(newest, both(a.sums, b.sums), both(a.established, b.established))


@dataclass
class Outbox:
    """The topics that workers write to; sending never fails."""

    outputs: list[Output] = field(default_factory=list)

    def send(self, output: Output, delivered: Callable[[], None] | None = None) -> None:
        self.outputs.append(output)
        if delivered:
            delivered()

    def send_to_dlq(self, dead_letters: Sequence[Output]) -> None:
        self.outputs += dead_letters
