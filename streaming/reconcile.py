"""Compare the state in Redis with an independent recount of the Kafka log.

reads   redis  {p:*}:position, :counts, :uniques, :trends, {u:*}:history
        topic  reviews, feedback, forgotten
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import redis
from numpy.typing import NDArray

from afterclick.errors import StateConflict, Unavailable
from afterclick.redis_keys import Keys
from afterclick.settings import Settings
from afterclick.trends import HALF_LIVES_MS, Trend
from streaming.recount import Place, Recount, log_ends, recount

TOLERANCE = 1e-9
_EXAMPLES = 10
_ATTEMPTS = 3


@dataclass(frozen=True)
class Difference:
    """One place where the state is not what the log says."""

    where: str
    state: str
    log: str


@dataclass
class Report:
    """What was compared and what differs."""

    positions: dict[str, int]
    behind: int
    events: int
    poison: int
    duplicates: int
    forgotten: int
    users: int
    items: int
    counted_in_state: int
    counted_in_log: int
    uniques_in_state: int
    uniques_in_log: int
    lost: int = 0
    """Counts missing from the state, over all items."""
    double: int = 0
    """Counts too many in the state, over all items."""
    differences: int = 0
    by_kind: dict[str, int] = field(default_factory=dict)
    examples: list[Difference] = field(default_factory=list)
    seconds: float = 0.0

    def note(self, kind: str, where: str, state: object, log: object) -> None:
        self.differences += 1
        self.by_kind[kind] = self.by_kind.get(kind, 0) + 1
        if self.by_kind[kind] <= _EXAMPLES:
            self.examples.append(Difference(f"{kind} {where}", str(state), str(log)))


@dataclass
class _Partitions:
    """The partitions' part of the state, summed over all of them, each read at one moment."""

    positions: dict[Place, int] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    uniques: Counter[str] = field(default_factory=Counter)
    trends: dict[str, list[Trend]] = field(default_factory=dict)


def reconcile(settings: Settings, wait_s: float = 0.0) -> Report:
    """Recount the log up to the positions and compare everything in the state with it.

    `wait_s` gives the stream that long to reach the end of the log first. Raises StateConflict where the
    state keeps moving while it is read, LogTruncated, Unavailable.
    """
    started = time.monotonic()
    client: redis.Redis = redis.Redis.from_url(settings.redis.url, socket_timeout=60)
    try:
        if wait_s:
            _wait(client, settings, wait_s)
        for _ in range(_ATTEMPTS):
            report = _attempt(client, settings)
            if report:
                report.seconds = round(time.monotonic() - started, 3)
                return report
    except redis.RedisError as error:
        raise Unavailable(f"Redis: {error}") from None
    finally:
        client.close()
    raise StateConflict(
        "the state moves while it is read: stop what produces events, or use --wait"
    )


def _attempt(client: redis.Redis, settings: Settings) -> Report | None:
    """One comparison; None where the state moved meanwhile and something differs."""
    keys, ends = settings.redis.keys, log_ends(settings)
    state = _read_partitions(client, keys, ends)
    total = recount(settings, state.positions)
    report = Report(
        positions={
            f"{topic}/{partition}": at for (topic, partition), at in state.positions.items()
        },
        behind=sum(end - state.positions[place] for place, end in ends.items()),
        events=total.events,
        poison=total.poison,
        duplicates=total.duplicates,
        forgotten=total.forgotten,
        users=len(total.users),
        items=len(total.trending),
        counted_in_state=state.counts.total(),
        counted_in_log=total.counts.total(),
        lost=(total.counts - state.counts).total(),
        double=(state.counts - total.counts).total(),
        uniques_in_state=state.uniques.total(),
        uniques_in_log=sum(total.uniques.values()),
    )
    _compare_integers(report, "count", state.counts, total.counts)
    _compare_integers(report, "uniques", state.uniques, total.uniques)
    _compare_trends(report, state.trends, total)
    _compare_histories(report, client, keys, total)
    moved = report.differences and _positions(client, keys, list(ends)) != state.positions
    return None if moved else report


def _wait(client: redis.Redis, settings: Settings, wait_s: float) -> None:
    deadline = time.monotonic() + wait_s
    while True:
        ends = log_ends(settings)
        if all(
            at >= ends[place]
            for place, at in _positions(client, settings.redis.keys, list(ends)).items()
        ):
            return
        if time.monotonic() > deadline:
            raise StateConflict(
                f"the stream did not reach the end of the log within {wait_s:.0f} s"
            )
        time.sleep(0.5)


def _positions(client: redis.Redis, keys: Keys, places: list[Place]) -> dict[Place, int]:
    values = [client.get(keys.applied_offset(*place)) for place in places]
    return {place: int(value) if value else -1 for place, value in zip(places, values, strict=True)}


def _read_partitions(client: redis.Redis, keys: Keys, places: Iterable[Place]) -> _Partitions:
    state = _Partitions()
    for place in places:
        with client.pipeline(transaction=True) as pipeline:
            pipeline.get(keys.applied_offset(*place))
            for name in (keys.counts, keys.uniques, keys.trends):
                pipeline.hgetall(name(*place))
            position, counts, uniques, trends = pipeline.execute()
        state.positions[place] = int(position) if position else -1
        for total, found in ((state.counts, counts), (state.uniques, uniques)):
            total.update({item.decode(): int(number) for item, number in found.items()})
        for item, packed in trends.items():
            state.trends.setdefault(item.decode(), []).append(Trend.unpack(packed))
    return state


def _compare_integers(
    report: Report, kind: str, state: dict[str, int], log: dict[str, int]
) -> None:
    for item in state.keys() | log.keys():
        if state.get(item, 0) != log.get(item, 0):
            report.note(kind, f"of item {item}", state.get(item, 0), log.get(item, 0))


def _compare_trends(report: Report, state: dict[str, list[Trend]], total: Recount) -> None:
    log_items = set(total.trending)
    for item in state.keys() | log_items:
        taken_back = total.taken_back.get(item, -math.inf)
        if item not in state or (item not in log_items and taken_back == -math.inf):
            report.note("trend", f"of item {item}", item in state, item in log_items)
            continue
        newest, sums = _merged(state[item])
        expected_newest, expected = total.trend(item)
        if (
            expected_newest < newest <= taken_back
        ):  # it keeps the moment of an event that is forgotten
            expected_newest, expected = newest, expected * _decay(newest - expected_newest)
        scale = np.maximum(1.0, np.abs(expected))
        if newest != expected_newest or np.any(np.abs(sums - expected) > TOLERANCE * scale):
            report.note("trend", f"of item {item}", (newest, *sums), (expected_newest, *expected))


def _merged(parts: list[Trend]) -> tuple[float, NDArray[np.float64]]:
    """The trend of an item over all partitions, as of its newest event."""
    newest = max(part.time_ms for part in parts)
    totals = [
        math.fsum(sums[i] * 2.0 ** ((at - newest) / half_life) for at, sums in kind)
        for kind in (
            [(part.time_ms, part.sums) for part in parts],
            [(part.time_ms, part.established) for part in parts],
        )
        for i, half_life in enumerate(HALF_LIVES_MS.values())
    ]
    return newest, np.array(totals)


def _decay(elapsed_ms: float) -> NDArray[np.float64]:
    return np.tile(np.exp2(-elapsed_ms / np.array(list(HALF_LIVES_MS.values()))), 2)


def _compare_histories(report: Report, client: redis.Redis, keys: Keys, total: Recount) -> None:
    for users in _blocks(total.users, 2000):
        with client.pipeline(transaction=False) as pipeline:
            for user in users:
                pipeline.zrange(keys.history(user), 0, -1, withscores=True)
            answers: list[Any] = pipeline.execute()
        for user, found in zip(users, answers, strict=True):
            history = [(int(score), bytes(member)) for member, score in found]
            if history != total.history(user):
                report.note("history", f"of user {user}", history, total.history(user))
    kept = set(total.users)
    prefix, suffix = keys.history("\0").split("\0")
    pattern = keys.history("*").replace("[", r"\[")
    for key in client.scan_iter(match=pattern, count=5000):
        user = key.decode().removeprefix(prefix).removesuffix(suffix)
        if user not in kept:
            report.note("history", f"of user {user}", "present", "no event")


def _blocks(items: Iterable[str], size: int) -> Iterator[list[str]]:
    source = iter(items)
    while block := list(islice(source, size)):
        yield block
