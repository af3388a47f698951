"""The state can be rebuilt from the event archive."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
import pytest
import redis

from afterclick.errors import StateConflict, StateLocked
from afterclick.events import MAX_LEAD_MS, encode
from afterclick.io.event_archive import EventArchive
from afterclick.redis_keys import Keys
from afterclick.settings import Settings, StreamSettings
from streaming.apply import Applier, ApplyConfig
from streaming.connection import NodeConnection, load_functions
from streaming.lease import Lease, hold_lease
from streaming.proof.forget_requests import forget
from streaming.proof.rebuild import rebuild, swap
from streaming.proof.reconcile import reconcile
from streaming.weights import require_weights
from tests.streaming.builders import event, raw
from tests.streaming.stream_process import produce
from tests.streaming.topic_log import apply_log, archive_log, partition_logs


@pytest.fixture
def archived(settings: Settings) -> Settings:
    """A topic with a malformed record between its events, and its event archive."""
    events = [
        event(f"user-{n % 7}", f"item-{n % 5}", "like", at=n, event_id=str(n)) for n in range(40)
    ]
    produce(settings, [*events[:20], b"poison", *events[20:], events[0]])
    archive_log(settings)
    return settings


def test_the_rebuilt_state_equals_the_log_and_replaces_the_old_one(archived: Settings) -> None:
    with redis.Redis.from_url(archived.redis.url) as client:
        client.zadd(archived.redis.keys.history("ghost"), {"[]": 1})
        client.hset(archived.redis.keys.counts(archived.kafka.topics.reviews, 0), "ghost", 7)
        rebuilt = rebuild(archived)
        assert rebuilt.events == 41
        assert not list(client.scan_iter(f"{archived.redis.prefix}rebuilding:*"))
    report = reconcile(archived)
    assert report.differences == 0
    assert report.counted_in_state == 40


def with_weights(settings: Settings, **more: dict[object, float]) -> Settings:
    return settings.model_copy(update={"stream": StreamSettings.model_validate(more)})


def test_other_weights_need_a_rebuild(settings: Settings, client: redis.Redis) -> None:
    """The stream refuses the state, and reconcile names the cause. Control: unrecorded weights."""
    stars = [
        event(f"user-{n % 7}", f"item-{n % 5}", "review", at=n, rating=n % 6) for n in range(40)
    ]
    produce(settings, stars)
    archive_log(settings)
    apply_log(settings)
    assert reconcile(settings).differences == 0
    changed, keys = with_weights(settings, star_weights={3: -0.5}), settings.redis.keys
    with pytest.raises(StateConflict, match=r"3 stars 0.5 → -0.5\): stop .* `afterclick rebuild`"):
        require_weights(client, keys, changed.stream.signals, [])
    with pytest.raises(StateConflict, match="other weights"):
        forget(changed, "nobody")
    report = reconcile(changed)
    assert (report.differences, report.by_kind) == (1, {"weights": 1})
    assert "3 stars" in (report.cause or "")

    recorded = raw(client.get(keys.weights))
    client.delete(keys.weights)
    assert reconcile(changed).by_kind.keys() == {"trend", "uniques", "ratings"}
    partitions = [name for name, _ in partition_logs(settings)]
    with pytest.raises(StateConflict, match="an earlier version"):
        require_weights(client, keys, settings.stream.signals, partitions)
    client.set(keys.weights, recorded)

    rebuild(changed)
    assert reconcile(changed).differences == 0
    require_weights(client, keys, changed.stream.signals, partitions)
    assert reconcile(settings).by_kind == {"weights": 1}


def dated(user: str, time: str) -> bytes:
    """An event with this time."""
    return orjson.dumps(orjson.loads(encode(event(user, action="like"))) | {"time": time})


def test_an_event_with_a_time_too_far_ahead_is_malformed_for_every_reader(
    settings: Settings, client: redis.Redis
) -> None:
    far = ["9999-12-31T23:59:59-14:00", "2261-12-31T23:59:59Z"]
    far.append((datetime.now(UTC) + timedelta(days=2)).isoformat())
    produce(settings, [event("alice", "lens"), *(dated("alice", time) for time in far)])
    archive_log(settings)
    apply_log(settings)
    report = reconcile(settings)
    assert (report.differences, report.events, report.poison) == (0, 4, 3)
    archived = EventArchive.open(settings.archive)
    assert archived.read(columns=["item_id"])["item_id"].to_pylist() == ["lens"]
    assert rebuild(settings).events == 1
    assert reconcile(settings).differences == 0
    assert forget(settings, "alice").rows == 1

    applier = Applier(ApplyConfig.of(settings, 1), NodeConnection(settings.redis.url))
    outputs = [
        each for place, log in partition_logs(settings) for each in applier.apply(*place, log)
    ]
    dead_letters = [output for output in outputs if output.topic.endswith(".dlq")]
    assert len(dead_letters) == len(far)


def test_an_event_ahead_of_the_log_takes_place_at_its_arrival_for_every_reader(
    settings: Settings, client: redis.Redis
) -> None:
    tomorrow = (datetime.now(UTC) + timedelta(hours=23)).isoformat()
    produce(settings, [event("bob", action="like"), dated("alice", tomorrow)])
    archive_log(settings)
    apply_log(settings)
    arrived_ms = {record.log_ms for _, log in partition_logs(settings) for record in log}
    key = settings.redis.keys.history("alice")
    ((_, time_ms),) = raw(client.zrange(key, 0, -1, withscores=True))
    assert time_ms - MAX_LEAD_MS in arrived_ms
    times = EventArchive.open(settings.archive).read("user_id = 'alice'")["event_time"].to_pylist()
    assert [time.timestamp() * 1000 for time in times] == [time_ms]
    assert reconcile(settings).differences == 0
    rebuild(settings)
    assert reconcile(settings).differences == 0
    assert forget(settings, "alice").rows == 1
    assert reconcile(settings).differences == 0


def test_a_rebuild_is_rejected_while_a_stream_runs(archived: Settings) -> None:
    with redis.Redis.from_url(archived.redis.url) as client:
        load_functions(client)
        with hold_lease(client, archived.redis.keys, 10), pytest.raises(StateLocked):
            rebuild(archived)


def test_a_rebuild_that_lost_its_lease_changes_nothing(
    client: redis.Redis, settings: Settings
) -> None:
    keys = settings.redis.keys
    staged = Keys(f"{keys.prefix}rebuilding:")
    client.set(keys.applied_offset("reviews", 0), 5)
    client.set(staged.applied_offset("reviews", 0), 3)
    client.set(keys.lease, "another")
    lost = Lease(keys.lease, "owner")
    with pytest.raises(StateLocked, match="took the lease"):
        swap(client, staged, keys, lost)
    assert client.get(keys.applied_offset("reviews", 0)) == b"5"
    swap(client, staged, keys)  # control: not checked
    assert client.get(keys.applied_offset("reviews", 0)) == b"3"


def test_without_a_log_the_state_is_unchanged(settings: Settings) -> None:
    with redis.Redis.from_url(settings.redis.url) as client:
        client.set(settings.redis.keys.applied_offset(settings.kafka.topics.reviews, 0), 5)
        with pytest.raises(StateConflict):
            rebuild(settings)
        assert (
            client.get(settings.redis.keys.applied_offset(settings.kafka.topics.reviews, 0)) == b"5"
        )


class Killed(BaseException):
    """The process is killed here."""


class KilledClient(redis.Redis):
    """A client whose process is killed before its n-th write."""

    left = 0

    def execute_command(self, *args: Any, **options: Any) -> Any:
        if args[0] in ("DEL", "UNLINK", "RENAME", "FCALL"):
            if self.left == 0:
                raise Killed
            self.left -= 1
        return super().execute_command(*args, **options)  # type: ignore[no-untyped-call]


@pytest.fixture
def staged(archived: Settings) -> Keys:
    """A rebuilt state, also copied to the keys of a rebuild in progress."""
    rebuild(archived)
    keys, staged = archived.redis.keys, Keys(f"{archived.redis.prefix}rebuilding:")
    with redis.Redis.from_url(archived.redis.url) as client:
        for key in list(client.scan_iter(f"{keys.prefix}{{*")):
            client.copy(key, staged.prefix.encode() + key.removeprefix(keys.prefix.encode()))
    return staged


def kill_during(
    settings: Settings, swapping: Callable[..., None], staged: Keys, writes: int
) -> None:
    with KilledClient.from_url(settings.redis.url) as client:
        client.left = writes
        with pytest.raises(Killed):
            swapping(client, staged, settings.redis.keys)


@pytest.mark.parametrize("writes", [0, 1, 5, 12, 16])
def test_after_a_kill_during_the_swap_the_stream_restores_the_state(
    archived: Settings, staged: Keys, writes: int
) -> None:
    kill_during(archived, swap, staged, writes)
    apply_log(archived)
    assert reconcile(archived).differences == 0


def key_by_key(client: redis.Redis, new: Keys, old: Keys) -> None:
    client.delete(*client.scan_iter(f"{old.prefix}{{*"))
    for key in sorted(client.scan_iter(f"{new.prefix}{{*")):
        client.rename(key, old.prefix.encode() + key.removeprefix(new.prefix.encode()))


def test_without_transactions_a_kill_during_the_swap_loses_counts(
    archived: Settings, staged: Keys
) -> None:
    kill_during(archived, key_by_key, staged, 4)
    apply_log(archived)
    assert reconcile(archived).differences > 0
