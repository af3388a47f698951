"""Compare the state in Redis with an independent recount of the Kafka log.

reads   redis  {p:*}:position, :counts, :uniques, :ratings, :trends, :exposed, :exposures:*
        redis  {u:*}:history, weights
        topic  reviews, feedback, impressions, forgotten
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Set
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import numpy as np
import redis

from afterclick.arrays import Float64Array
from afterclick.errors import StateConflict
from afterclick.io.redis_clients import create_redis, redis_unavailable
from afterclick.redis_keys import Keys
from afterclick.settings import Settings
from afterclick.state import StarCounts, TopicPartition
from afterclick.trends import HALF_LIVES_MS, Trend
from streaming.connection import refuse_cluster
from streaming.exposures import exposed_offsets
from streaming.proof.exposure_recount import ExposureRecount, compare_exposures, read_state
from streaming.proof.recount import Recount, last_offsets, recount
from streaming.unknown_items import read_catalogue_ids, removed_items
from streaming.weights import weights_conflict

TOLERANCE = 1e-9
_EXAMPLES = 10
_ATTEMPTS = 3


@dataclass(frozen=True)
class Difference:
    """A value that differs between state and log."""

    where: str
    state: str
    log: str


@dataclass
class Reconciliation:
    """What was compared and what differs. Field names are the keys of `reconcile --json`."""

    positions: dict[str, int]
    behind: int
    events: int
    poison: int
    """Malformed records."""
    duplicates: int
    forgotten: int
    users: int
    items: int
    counted_in_state: int
    counted_in_log: int
    uniques_in_state: int
    uniques_in_log: int
    expired: int = 0
    """Users in the log whose history has expired."""
    removed_items: int = 0
    """Items that the catalogue lacks, or lacked, whose counts were removed."""
    lost: int = 0
    """Counts missing from the state, over all items."""
    double: int = 0
    """Counts in excess in the state, over all items."""
    lists_in_state: int = 0
    """Lists shown, of the days for which they are counted."""
    lists_in_log: int = 0
    reactions_in_state: int = 0
    """Reactions that joined these lists."""
    reactions_in_log: int = 0
    differences: int = 0
    cause: str | None = None
    """Why nothing was compared: the state was computed with other weights. One difference."""
    by_kind: dict[str, int] = field(default_factory=dict)
    examples: list[Difference] = field(default_factory=list)
    seconds: float = 0.0

    def add(self, kind: str, name: str, state: object, log: object) -> None:
        """Record a difference; the first ones of each kind are kept as examples."""
        self.differences += 1
        self.by_kind[kind] = self.by_kind.get(kind, 0) + 1
        if self.by_kind[kind] <= _EXAMPLES:
            self.examples.append(Difference(f"{kind} {name}", str(state), str(log)))


@dataclass
class _PartitionState:
    """Counts and trends in Redis over all partitions, each read in one transaction."""

    applied: dict[TopicPartition, int] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    uniques: Counter[str] = field(default_factory=Counter)
    ratings: dict[str, StarCounts] = field(default_factory=dict)
    trends: dict[str, list[Trend]] = field(default_factory=dict)


def reconcile(settings: Settings, wait_s: float = 0.0) -> Reconciliation:
    """Recount the log up to the applied offsets and compare the whole state with it.

    Waits up to `wait_s` for the stream to reach the end of the log first. Raises StateConflict if
    the state keeps changing while it is read, LogTruncated, Unavailable.
    """
    started = time.monotonic()
    refuse_cluster(settings)
    client = create_redis(settings.redis, socket_timeout=60)
    try:
        if wait_s:
            _wait(client, settings, wait_s)
        for _ in range(_ATTEMPTS):
            report = _attempt(client, settings)
            if report:
                report.seconds = round(time.monotonic() - started, 3)
                return report
    except redis.RedisError as error:
        raise redis_unavailable(error) from None
    finally:
        client.close()
    raise StateConflict(
        "the state changes while it is read: stop the producers of events, or use --wait"
    )


def _attempt(client: redis.Redis, settings: Settings) -> Reconciliation | None:
    """One comparison; None if something differs and the state changed meanwhile."""
    keys, ends = settings.redis.keys, last_offsets(settings)
    if conflict := weights_conflict(client, keys, settings.stream.signals):
        return _not_compared(conflict)
    days, logged = settings.stream.exposure_days, _logged(settings)
    state = _read_partitions(client, keys, ends)
    counted = read_state(client, keys, logged, days)
    exposures = ExposureRecount.of(settings, counted.offsets)
    expected = recount(settings, state.applied, exposures)
    removed = _removed_items(client, settings, state, expected)
    report = Reconciliation(
        positions={str(name): offset for name, offset in state.applied.items()},
        behind=sum(end - state.applied[name] for name, end in ends.items()),
        events=expected.events,
        poison=expected.malformed,
        duplicates=expected.duplicates,
        forgotten=expected.forgotten,
        users=len(expected.users),
        items=len(expected.trending),
        counted_in_state=state.counts.total(),
        counted_in_log=expected.counts.total(),
        lost=(expected.counts - state.counts).total(),
        double=(state.counts - expected.counts).total(),
        uniques_in_state=state.uniques.total(),
        uniques_in_log=sum(expected.uniques.values()),
    )
    report.removed_items = len(removed)
    report.lost -= sum(expected.counts[item] - state.counts[item] for item in removed)
    _compare_integers(report, "count", state.counts, expected.counts, removed)
    _compare_integers(report, "uniques", state.uniques, expected.uniques, removed)
    _compare_ratings(report, state.ratings, expected, removed)
    _compare_trends(report, state.trends, expected, removed)
    _compare_histories(report, client, keys, expected)
    totals = compare_exposures(report.add, counted.counts, exposures.counts(), days)
    report = replace(report, **vars(totals))
    changed = report.differences and (
        _applied_offsets(client, keys, ends) != state.applied
        or exposed_offsets(client, keys, logged) != counted.offsets
    )
    return None if changed else report


def _not_compared(cause: str) -> Reconciliation:
    """The report of a state that cannot equal the log."""
    report = Reconciliation({}, *(0,) * 11, cause=cause)
    report.add("weights", "of the state", "other weights", "those of the settings")
    return report


def _logged(settings: Settings) -> list[TopicPartition]:
    """The partitions with lists and reactions."""
    return list(last_offsets(settings, *settings.kafka.topics.logged))


def _removed_items(
    client: redis.Redis, settings: Settings, state: _PartitionState, expected: Recount
) -> set[str]:
    """Items with smaller counts than in the log because they were removed as unknown ones."""
    removed = removed_items(client, settings.redis.keys)
    if known := read_catalogue_ids(settings):
        removed |= {item for item in expected.trending if item not in known | state.trends.keys()}
    return {item for item in removed if state.counts[item] <= expected.counts[item]}


def _wait(client: redis.Redis, settings: Settings, wait_s: float) -> None:
    deadline, keys = time.monotonic() + wait_s, settings.redis.keys
    while True:
        ends = last_offsets(settings, *settings.kafka.topics.logged)
        applied = exposed_offsets(client, keys, ends)
        events = [name for name in ends if name.topic in settings.kafka.topics.interactions]
        for name, offset in _applied_offsets(client, keys, events).items():
            applied[name] = min(applied[name], offset)
        if all(applied[name] >= end for name, end in ends.items()):
            return
        if time.monotonic() > deadline:
            raise StateConflict(
                f"the stream did not reach the end of the log within {wait_s:.0f} s"
            )
        time.sleep(0.5)


def _applied_offsets(
    client: redis.Redis, keys: Keys, partitions: Iterable[TopicPartition]
) -> dict[TopicPartition, int]:
    values = {name: client.get(keys.applied_offset(*name)) for name in partitions}
    return {name: int(value) if value else -1 for name, value in values.items()}


def _read_partitions(
    client: redis.Redis, keys: Keys, partitions: Iterable[TopicPartition]
) -> _PartitionState:
    state = _PartitionState()
    for name in partitions:
        with client.pipeline(transaction=True) as pipeline:
            pipeline.get(keys.applied_offset(*name))
            for key in (keys.counts, keys.uniques, keys.ratings, keys.trends):
                pipeline.hgetall(key(*name))
            applied, counts, uniques, ratings, trends = pipeline.execute()
        state.applied[name] = int(applied) if applied else -1
        for total, numbers in ((state.counts, counts), (state.uniques, uniques)):
            total.update({item.decode(): int(number) for item, number in numbers.items()})
        for item, numbers in ratings.items():
            before = state.ratings.get(item.decode(), StarCounts())
            state.ratings[item.decode()] = before.plus(StarCounts.decode(numbers))
        for item, packed in trends.items():
            state.trends.setdefault(item.decode(), []).append(Trend.unpack(packed))
    return state


def _compare_integers(
    report: Reconciliation,
    kind: str,
    state: dict[str, int],
    log: dict[str, int],
    removed: Set[str],
) -> None:
    for item in (state.keys() | log.keys()) - removed:
        if state.get(item, 0) != log.get(item, 0):
            report.add(kind, f"of item {item}", state.get(item, 0), log.get(item, 0))


def _compare_ratings(
    report: Reconciliation, state: dict[str, StarCounts], expected: Recount, removed: Set[str]
) -> None:
    log, none = expected.ratings, (0, 0, 0, 0)
    for item in (state.keys() | log.keys()) - removed:
        if state.get(item, none) != log.get(item, none):
            report.add("ratings", f"of item {item}", state.get(item, none), log.get(item, none))


def _compare_trends(
    report: Reconciliation, state: dict[str, list[Trend]], expected: Recount, removed: Set[str]
) -> None:
    log_items = set(expected.trending)
    for item in (state.keys() | log_items) - removed:
        retracted_ms = expected.retracted.get(item, expected.erased_ms)
        if item not in state or (item not in log_items and retracted_ms == -math.inf):
            report.add("trend", f"of item {item}", item in state, item in log_items)
            continue
        newest, sums = _sum_partitions(state[item])
        expected_newest, expected_sums = expected.trend(item)
        if expected_newest < newest <= retracted_ms:  # keeps the time of a forgotten event
            expected_sums = expected_sums * _decay(newest - expected_newest)
            expected_newest = newest
        tolerance = TOLERANCE * np.maximum(1.0, np.abs(expected_sums))
        if newest != expected_newest or np.any(np.abs(sums - expected_sums) > tolerance):
            log = (expected_newest, *expected_sums)
            report.add("trend", f"of item {item}", (newest, *sums), log)


def _sum_partitions(trends: list[Trend]) -> tuple[float, Float64Array]:
    """Newest event time ms of an item over all partitions, and (2·H,) sums as of then."""
    newest = max(trend.time_ms for trend in trends)
    all_votes = [(trend.time_ms, trend.sums) for trend in trends]
    established = [(trend.time_ms, trend.established) for trend in trends]
    totals = [
        math.fsum(sums[i] * 2.0 ** ((time_ms - newest) / half_life) for time_ms, sums in votes)
        for votes in (all_votes, established)
        for i, half_life in enumerate(HALF_LIVES_MS.values())
    ]
    return newest, np.array(totals)


def _decay(elapsed_ms: float) -> Float64Array:
    return np.tile(np.exp2(-elapsed_ms / np.array(list(HALF_LIVES_MS.values()))), 2)


def _compare_histories(
    report: Reconciliation, client: redis.Redis, keys: Keys, expected: Recount
) -> None:
    now_ms = time.time() * 1000
    for users in _batched(expected.users, 2000):
        with client.pipeline(transaction=False) as pipeline:
            for user in users:
                pipeline.zrange(keys.history(user), 0, -1, withscores=True)
            replies: list[Any] = pipeline.execute()
        for user, reply in zip(users, replies, strict=True):
            history = [(int(score), bytes(member)) for member, score in reply]
            if not history and expected.expired(user, now_ms):
                report.expired += 1
                continue
            if history != expected.history(user):
                report.add("history", f"of user {user}", history, expected.history(user))
    known = set(expected.users)
    prefix, suffix = keys.history("\0").split("\0")
    pattern = keys.history("*").replace("[", r"\[")
    for key in client.scan_iter(match=pattern, count=5000):
        user = key.decode().removeprefix(prefix).removesuffix(suffix)
        if user not in known:
            report.add("history", f"of user {user}", "present", "no event")


def _batched(items: Iterable[str], size: int) -> Iterator[list[str]]:
    source = iter(items)
    while batch := list(islice(source, size)):
        yield batch
