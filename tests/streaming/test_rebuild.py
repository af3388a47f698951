"""The state can be made anew from the Parquet log."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import redis

from afterclick.errors import StateConflict, StateLocked
from afterclick.redis_keys import Keys
from afterclick.settings import Settings
from streaming.connection import load_functions
from streaming.positions import hold_lease
from streaming.proof.rebuild import rebuild, swap
from streaming.proof.reconcile import reconcile
from tests.streaming.builders import event
from tests.streaming.stream_process import produce
from tests.streaming.topic_log import apply_log, archive_log


@pytest.fixture
def archived(settings: Settings) -> Settings:
    """A topic with poison between its events, and its Parquet log in two files."""
    events = [
        event(f"user-{n % 7}", f"item-{n % 5}", "like", at=n, event_id=str(n)) for n in range(40)
    ]
    produce(settings, [*events[:20], b"poison", *events[20:], events[0]])
    archive_log(settings)
    return settings


def test_it_is_what_the_log_says_and_what_was_there_before_is_gone(archived: Settings) -> None:
    with redis.Redis.from_url(archived.redis.url) as client:
        client.zadd(archived.redis.keys.history("ghost"), {"[]": 1})
        client.hset(archived.redis.keys.counts(archived.kafka.topics.reviews, 0), "ghost", 7)
        rebuilt = rebuild(archived)
        assert rebuilt.events == 41
        assert not list(client.scan_iter(f"{archived.redis.prefix}rebuilding:*"))
    report = reconcile(archived)
    assert report.differences == 0
    assert report.counted_in_state == 40


def test_beside_a_running_stream_it_is_refused(archived: Settings) -> None:
    with redis.Redis.from_url(archived.redis.url) as client:
        load_functions(client)
        with hold_lease(client, archived.redis.keys, 10), pytest.raises(StateLocked):
            rebuild(archived)


def test_without_a_log_the_state_stays_as_it_is(settings: Settings) -> None:
    with redis.Redis.from_url(settings.redis.url) as client:
        client.set(settings.redis.keys.applied_offset(settings.kafka.topics.reviews, 0), 5)
        with pytest.raises(StateConflict):
            rebuild(settings)
        assert (
            client.get(settings.redis.keys.applied_offset(settings.kafka.topics.reviews, 0)) == b"5"
        )


class Killed(BaseException):
    """The process is gone."""


class Dying(redis.Redis):
    """A client whose process is killed before one of its writes."""

    left = 0

    def execute_command(self, *args: Any, **options: Any) -> Any:
        if args[0] in ("DEL", "UNLINK", "RENAME"):
            self.write()
        return super().execute_command(*args, **options)

    def pipeline(self, transaction: Any = True, shard_hint: Any = None) -> Any:
        self.write()
        return super().pipeline(transaction, shard_hint)

    def write(self) -> None:
        if self.left == 0:
            raise Killed
        self.left -= 1


@pytest.fixture
def beside(archived: Settings) -> Keys:
    """A rebuilt state that stands beside the same live one."""
    rebuild(archived)
    keys, beside = archived.redis.keys, Keys(f"{archived.redis.prefix}rebuilding:")
    with redis.Redis.from_url(archived.redis.url) as client:
        for key in list(client.scan_iter(f"{keys.prefix}{{*")):
            client.copy(key, beside.prefix.encode() + key.removeprefix(keys.prefix.encode()))
    return beside


def kill_during(
    settings: Settings, swapping: Callable[..., None], beside: Keys, writes: int
) -> None:
    with Dying.from_url(settings.redis.url) as dying:
        dying.left = writes
        with pytest.raises(Killed):
            swapping(dying, beside, settings.redis.keys)


@pytest.mark.parametrize("writes", [0, 1, 5, 12, 16])
def test_killed_while_the_states_are_swapped_the_stream_makes_the_rest_anew(
    archived: Settings, beside: Keys, writes: int
) -> None:
    kill_during(archived, swap, beside, writes)
    apply_log(archived)
    assert reconcile(archived).differences == 0


def key_by_key(client: redis.Redis, new: Keys, old: Keys) -> None:
    client.delete(*client.scan_iter(f"{old.prefix}{{*"))
    for key in sorted(client.scan_iter(f"{new.prefix}{{*")):
        client.rename(key, old.prefix.encode() + key.removeprefix(new.prefix.encode()))


def test_moved_key_by_key_a_partition_has_a_position_before_it_has_all_counts(
    archived: Settings, beside: Keys
) -> None:
    kill_during(archived, key_by_key, beside, 4)
    apply_log(archived)
    assert reconcile(archived).differences > 0
