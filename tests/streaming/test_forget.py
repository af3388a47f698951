"""A forgotten user is in neither state nor log, whatever is replayed."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import Any

import orjson
import pytest
import redis
from confluent_kafka import Producer
from typer.testing import CliRunner

from afterclick.errors import BadEvent
from afterclick.io.event_archive import EventArchive
from afterclick.io.forgotten import ForgottenLog, publish_forgotten, read_forgotten
from afterclick.io.kafka_log import KafkaLog
from afterclick.settings import Settings
from afterclick.state import Forgetting, HistoryEntry, TopicPartition, decode_forgotten
from infra.cli import app
from serving.control.erasure import UserEraser
from serving.events.feedback import copy_of
from streaming.apply import CHUNK, Applier, ApplyConfig
from streaming.connection import NodeConnection
from streaming.forgotten_users import restore_forgotten
from streaming.lease import hold_lease
from streaming.positions import topic_partitions
from streaming.proof.forget import Begun, Forgetter, last_forgetting
from streaming.proof.forget_requests import ForgettingLoop, forget, request_forgetting
from streaming.proof.rebuild import rebuild
from streaming.proof.reconcile import reconcile
from tests.serving.mini_stream import MiniStream
from tests.streaming.builders import DAY_S, START_S, Crash, CrashingConnection, event
from tests.streaming.stream_process import environment, produce
from tests.streaming.topic_log import apply_log, archive_log, partition_logs
from tests.waiting import wait_until

ALICE = [
    event(
        "alice",
        f"item-{n % 5}",
        "like" if n % 3 else "skip",
        at=n * 7 % 20 * DAY_S,
        event_id=f"a{n}",
    )
    for n in range(20)
]
ALICE[4:12:2] = [  # reviews that replace each other
    event("alice", "item-2", "review", at=n * DAY_S, event_id=f"a{4 + 2 * n}", rating=rating)
    for n, rating in enumerate((5.0, 1.0, None, 2.0))
]
OTHERS = [
    event(
        f"user-{n % 7}",
        f"item-{n % 6}",
        "review" if n % 4 == 0 else "like",
        at=n / 2,
        event_id=f"o{n}",
        rating=n % 6 if n % 8 == 0 else None,
    )
    for n in range(40)
]
LOG = [*OTHERS[:20], *ALICE, *OTHERS[20:]]


def archived_users(settings: Settings) -> set[str]:
    table = EventArchive.open(settings.archive).read(columns=["user_id"])
    return set(table["user_id"].to_pylist())


def names_of(client: redis.Redis, settings: Settings, user: str) -> set[str]:
    """Names of a user's keys."""
    keys = client.scan_iter(settings.redis.prefix + "{u:" + user + "}*", count=5000)
    return {key.decode().split("}:")[1].split(":")[0] for key in keys}


def test_the_state_is_that_of_a_log_without_the_user(
    settings: Settings, client: redis.Redis
) -> None:
    produce(settings, [*LOG, ALICE[3]])
    apply_log(settings)
    archive_log(settings)
    assert "alice" in archived_users(settings)

    forgetting = forget(settings, "alice")

    assert (forgetting.events, forgetting.remaining, forgetting.rows) == (20, 0, 21)
    assert names_of(client, settings, "alice") == {"forgotten", "erased"}
    assert archived_users(settings) == {f"user-{n}" for n in range(7)}
    report = reconcile(settings)
    assert (report.differences, report.forgotten, report.counted_in_state) == (0, 21, 40)


def test_replays_of_the_dataset_or_the_topic_do_not_restore_the_user(
    settings: Settings, client: redis.Redis
) -> None:
    produce(settings, LOG)
    apply_log(settings)
    forget(settings, "alice")

    produce(settings, LOG)  # the dataset once more, the same ids
    renamed = [e.model_copy(update={"id": f"again-{e.id}"}) for e in ALICE]
    produce(settings, renamed)  # and under other ids
    apply_log(settings)
    archive_log(settings)
    assert reconcile(settings).differences == 0
    assert "alice" not in archived_users(settings)
    assert names_of(client, settings, "alice") == {"forgotten", "erased"}

    for key in client.scan_iter(settings.redis.prefix + "*"):
        client.delete(key)  # Redis loses the forgetting
    restore_forgotten(client, settings.redis.keys, settings.kafka)  # as a starting stream does
    apply_log(settings)
    assert reconcile(settings).differences == 0
    assert names_of(client, settings, "alice") == {"forgotten"}


def test_an_event_after_the_request_is_forgotten_if_it_was_applied_before_the_erasure(
    settings: Settings, client: redis.Redis
) -> None:
    produce(settings, [*OTHERS, event("alice", "lamp", "view", event_id="early")])
    apply_log(settings)
    requested_ms = request_forgetting(settings, client, "alice")
    late = event("alice", "lamp", "like", at=time.time() - START_S + 60, event_id="late")
    produce(settings, [late])  # its vote replaces the earlier one
    apply_log(settings)
    archive_log(settings)
    report = Forgetter(settings, client, "alice").complete(requested_ms)
    assert (report.until_ms, report.events, report.remaining) == (late.time_ms, 2, 0)
    assert read_forgotten(settings.kafka) == {"alice": late.time_ms}
    assert reconcile(settings).differences == 0


def test_without_the_topic_a_replay_restores_the_user(
    settings: Settings, client: redis.Redis
) -> None:
    """The control: Redis alone may lose the forgetting."""
    produce(settings, LOG)
    apply_log(settings)
    forget(settings, "alice")
    for key in client.scan_iter(settings.redis.prefix + "*"):
        client.delete(key)
    apply_log(settings)
    assert "history" in names_of(client, settings, "alice")
    assert reconcile(settings).differences > 0


MALFORMED = [
    (b"x", b"bob"),
    (b"", b'{"until_ms": 1}'),
    (b"\xff", b'{"until_ms": 1}'),
    (b"carol", b'{"until_ms": 1000000000000000000}'),  # no date
    (b"carol", b'{"until_ms": 1e26}'),
    (b"carol", b'{"until_ms": -1}'),
]


def test_every_reader_of_forgotten_skips_malformed_records(
    settings: Settings, client: redis.Redis
) -> None:
    produce(settings, LOG)
    apply_log(settings)
    archive_log(settings)
    producer = Producer({"bootstrap.servers": settings.kafka.bootstrap})
    for key, value in [*MALFORMED, (b"deleted", None)]:
        producer.produce(settings.kafka.topics.forgotten, value, key)
    assert producer.flush(30) == 0
    until_ms = forget(settings, "alice").until_ms

    restore_forgotten(client, settings.redis.keys, settings.kafka)  # the stream
    assert client.smembers(settings.redis.keys.forgotten_users) == {b"alice"}
    rebuild(settings)
    assert reconcile(settings).differences == 0  # the recount
    with closing(ForgottenLog(settings.kafka)) as requests:  # the loop of the stream job
        assert requests.read() == {"alice": until_ms}
    assert read_forgotten(settings.kafka) == {"alice": until_ms}  # training
    eraser = UserEraser()  # an API process
    with KafkaLog(settings.kafka) as log:
        eraser.read(log.last(settings.kafka.topics.forgotten, 100))
    assert eraser.until_ms == {"alice": until_ms}


@pytest.mark.parametrize(("key", "value"), MALFORMED)
def test_control_a_malformed_record_of_forgotten_is_an_error(key: bytes, value: bytes) -> None:
    with pytest.raises(BadEvent):
        decode_forgotten(key, value)


def test_a_returning_user_starts_with_an_empty_history(
    settings: Settings, client: redis.Redis
) -> None:
    produce(settings, LOG)
    apply_log(settings)
    until_ms = forget(settings, "alice").until_ms
    later = event(
        "alice", "item-1", "like", at=(until_ms / 1000) + 60 - 1_400_000_000, event_id="back"
    )
    produce(settings, [later])
    apply_log(settings)
    assert client.zcard(settings.redis.keys.history("alice")) == 1
    report = reconcile(settings)
    assert (report.differences, report.counted_in_state) == (0, 41)
    again = forget(settings, "alice")
    assert again.events == 1
    assert reconcile(settings).differences == 0


def test_a_user_is_forgotten_while_the_stream_runs(settings: Settings, client: redis.Redis) -> None:
    """The job that holds the lease does it."""
    produce(settings, LOG)
    with MiniStream(settings), hold_lease(client, settings.redis.keys, 10), job_loop(settings):
        forgetting = forget(settings, "alice")
        produce(settings, OTHERS)
        report = reconcile(settings, wait_s=30)
    assert forgetting.events <= 20  # events not applied yet are rejected
    assert (report.differences, report.forgotten) == (0, 20)


@contextmanager
def job_loop(settings: Settings) -> Iterator[ForgettingLoop]:
    """What a stream job runs beside its queries."""
    with closing(ForgettingLoop(settings)) as loop:
        loop.start()
        yield loop


class Interrupted(Exception):
    """The process dies here."""


class DiesBeforeCounts(Forgetter):
    def retract(self, past: object) -> Forgetting:
        raise Interrupted


class DiesBeforeLedgers(Forgetter):
    def delete_entries(self, entries: Iterable[object]) -> None:
        if list(entries):
            raise Interrupted


class DiesBeforeRows(Forgetter):
    def erase_rows(self, until_ms: int) -> int:
        raise Interrupted


class DiesBetweenCalls(Forgetter):
    """In the middle of the counts: after its first call to Redis."""

    def retract_deltas(
        self, partition: TopicPartition, until_ms: int, deltas: list[tuple[str | int, ...]]
    ) -> None:
        if self.client.exists(self.settings.redis.keys.retractions(*partition)):
            raise Interrupted
        super().retract_deltas(partition, until_ms, deltas)


def test_the_sessions_of_a_user_are_forgotten_too(settings: Settings, client: redis.Redis) -> None:
    """The control: the session of somebody else stays."""
    keys, users = settings.redis.keys, ("session:s1", "session:s2")
    visits = [
        event(user, f"item-{n}", action, at=n, event_id=f"v{n}")
        for user in users
        for n, action in enumerate(("like", "skip", "purchase"))
    ]
    produce(settings, [*LOG, *visits])
    apply_log(settings)
    before = reconcile(settings)
    rows: Any = client.zrange(keys.history("session:s1"), 0, -1, withscores=True)
    copies = [copy_of(HistoryEntry.from_member(*row), "s1", "alice") for row in rows]
    produce(settings, [*copies, *copies], "feedback")
    apply_log(settings)
    archive_log(settings)

    merged = reconcile(settings)
    assert merged.differences == 0
    assert merged.duplicates == len(copies) == 3
    counts = ("counted_in_state", "uniques_in_state")
    assert {name: vars(merged)[name] for name in counts} == {
        name: vars(before)[name] for name in counts
    }
    history: Any = client.zrange(keys.history("alice"), 0, -1)
    assert {copy.id for copy in copies} <= {orjson.loads(member)[0] for member in history}

    forget(settings, "alice")
    assert names_of(client, settings, "alice") == {"forgotten", "erased"}
    assert names_of(client, settings, "session:s1") == {"forgotten", "erased"}
    assert "history" in names_of(client, settings, "session:s2")
    assert not {"alice", "session:s1"} & archived_users(settings)
    assert "session:s2" in archived_users(settings)
    assert reconcile(settings).differences == 0


@pytest.mark.parametrize("dies", [DiesBeforeCounts, DiesBeforeLedgers, DiesBeforeRows])
def test_a_killed_forgetting_is_completed_by_the_next_job(
    settings: Settings, client: redis.Redis, dies: type[Forgetter]
) -> None:
    produce(settings, LOG)
    apply_log(settings)
    archive_log(settings)
    until_ms = request_forgetting(settings, client, "alice")
    with pytest.raises(Interrupted):
        dies(settings, client, "alice").complete(until_ms)
    unfinished = last_forgetting(client, settings.redis.keys, "alice")
    assert unfinished is None or unfinished.finished_ms is None
    assert "alice" in archived_users(settings)  # the control: without a job nobody goes on
    with job_loop(settings):
        report = wait_until(lambda: finished(client, settings, "alice"))
    assert report.events == 20
    assert names_of(client, settings, "alice") == {"forgotten", "erased"}
    assert "alice" not in archived_users(settings)
    assert reconcile(settings).differences == 0


def finished(client: redis.Redis, settings: Settings, user: str) -> Forgetting | None:
    report = last_forgetting(client, settings.redis.keys, user)
    return report if report and report.finished_ms is not None else None


def test_a_second_request_completes_the_first(settings: Settings, client: redis.Redis) -> None:
    produce(settings, LOG)
    apply_log(settings)
    archive_log(settings)
    until_ms = request_forgetting(settings, client, "alice")
    with pytest.raises(Interrupted):
        DiesBeforeRows(settings, client, "alice").complete(until_ms)
    forget(settings, "alice")
    assert names_of(client, settings, "alice") == {"forgotten", "erased"}
    assert reconcile(settings).differences == 0


def test_events_beyond_the_ledger_are_retracted(settings: Settings, client: redis.Redis) -> None:
    """By the log. The control: without a ledger they remain, and the report has their number."""
    short = with_ledger(settings, 4)
    feedback = [
        event("alice", f"item-{n % 7}", "purchase", at=n * DAY_S, event_id=f"f{n}")
        for n in range(9)
    ]
    produce(short, LOG)
    produce(short, feedback, "feedback")
    apply_log(short)
    archive_log(short)
    assert forget(short, "alice").model_dump(include={"events", "remaining", "rows"}) == {
        "events": 29,
        "remaining": 0,
        "rows": 29,
    }
    assert reconcile(short).differences == 0

    produce(short, [event("bob", f"item-{n}", "like", event_id=f"b{n}") for n in range(10)])
    apply_log(short)
    archive_log(short)
    client.delete(short.redis.keys.ledger("bob", short.kafka.topics.reviews))
    report = forget(short, "bob")
    assert (report.events, report.remaining) == (0, 10)
    assert reconcile(short).counted_in_state - reconcile(short).counted_in_log == 10


MANY = [
    event("bot", f"item-{n % 30}", "click" if n % 3 else "like", at=n * 600, event_id=f"m{n}")
    for n in range(1300)
]


def with_ledger(settings: Settings, length: int) -> Settings:
    stream = settings.stream.model_copy(update={"ledger_length": length})
    return settings.model_copy(update={"stream": stream})


class CountingClient(redis.Redis):
    """Counts the arguments of its largest command."""

    largest = 0

    def execute_command(self, *args: Any, **options: Any) -> Any:
        self.largest = max(self.largest, len(args))
        return super().execute_command(*args, **options)  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("ledger_length", [4, 4096])
def test_one_call_to_redis_retracts_a_bounded_number_of_events(
    settings: Settings, client: redis.Redis, ledger_length: int
) -> None:
    short = with_ledger(settings, ledger_length)
    produce(short, [*OTHERS, *MANY])
    apply_log(short)
    archive_log(short)
    counting: CountingClient = CountingClient.from_url(settings.redis.url)  # type: ignore[assignment]
    until_ms = request_forgetting(short, client, "bot")
    report = Forgetter(short, counting, "bot").complete(until_ms)
    counting.close()
    assert (report.events, report.remaining) == (1300, 0)
    assert 7 * CHUNK < counting.largest < 7 * CHUNK + 100  # one event has few deltas here
    assert names_of(client, settings, "bot") == {"forgotten", "erased"}
    assert not list(client.scan_iter(f"{settings.redis.prefix}forgetting:*"))
    assert reconcile(short).differences == 0


@pytest.mark.parametrize("offset_kept", [True, False])
def test_a_forgetting_that_was_killed_between_two_calls_goes_on(
    settings: Settings, client: redis.Redis, offset_kept: bool
) -> None:
    """The control: without the offset that was reached, events are retracted twice."""
    short = with_ledger(settings, 4)
    produce(short, [*OTHERS, *MANY])
    apply_log(short)
    archive_log(short)
    until_ms = request_forgetting(short, client, "bot")
    with pytest.raises(Interrupted):
        DiesBetweenCalls(short, client, "bot").complete(until_ms)
    assert reconcile(short).differences > 0  # some of it is retracted
    if not offset_kept:
        for partition in topic_partitions(short.kafka):
            client.delete(short.redis.keys.retractions(*partition))
    assert Forgetter(short, client, "bot").complete(until_ms).events == 1300
    assert (reconcile(short).differences == 0) is offset_kept


def test_an_event_during_the_erasure_does_not_hide_that_the_ledger_was_full(
    settings: Settings, client: redis.Redis
) -> None:
    short = with_ledger(settings, 4)
    produce(short, LOG)
    apply_log(short)
    archive_log(short)
    until_ms = request_forgetting(short, client, "alice")
    at = until_ms / 1000 + 60 - START_S

    def settle() -> None:  # the event takes the place of an earlier one in the ledger
        produce(short, [event("alice", "item-1", "like", at=at, event_id="back")])
        apply_log(short)
        assert client.zcard(short.redis.keys.ledger("alice", short.kafka.topics.reviews)) == 4

    report = Forgetter(short, client, "alice").complete(until_ms, settle)
    assert (report.events, report.remaining) == (20, 0)
    assert client.zcard(short.redis.keys.history("alice")) == 1
    assert reconcile(short).differences == 0


class ReadsTheArchiveOnly(Forgetter):
    def begin(self, until_ms: int) -> Begun:
        begun = super().begin(until_ms)
        return replace(begun, archived=dict.fromkeys(begun.archived, 2**40))


@pytest.mark.parametrize("forgetter", [Forgetter, ReadsTheArchiveOnly])
def test_trimmed_events_that_are_not_archived_are_retracted(
    settings: Settings, client: redis.Redis, forgetter: type[Forgetter]
) -> None:
    """The archive leaves them out from now on. The control: without the topics they stay counted
    and are not reported."""
    short = with_ledger(settings, 4)
    for part in (LOG[:30], LOG[30:], [event("alice", "item-2", "like", event_id="last")]):
        produce(short, part)
        apply_log(short)
        if part == LOG[:30]:
            archive_log(short)
    until_ms = request_forgetting(short, client, "alice")
    report = forgetter(short, client, "alice").complete(until_ms, lambda: archive_log(short))
    assert "alice" not in archived_users(short)
    is_control = forgetter is ReadsTheArchiveOnly
    assert ((report.events, report.remaining) == (21, 0)) is not is_control
    assert (reconcile(short).differences == 0) is not is_control


def test_a_rebuilt_state_leaves_out_forgotten_users(
    settings: Settings, client: redis.Redis
) -> None:
    produce(settings, LOG)
    archive_log(settings)
    publish_forgotten(settings.kafka, "alice", int(time.time() * 1000))  # the log still has them
    rebuild(settings)
    assert names_of(client, settings, "alice") == {"forgotten"}
    assert reconcile(settings).differences == 0


def test_events_of_a_crash_between_the_steps_are_forgotten_uncounted(
    settings: Settings, connection: NodeConnection
) -> None:
    """Step 1 has the events, step 2 has not run: they were not counted and never will be."""
    produce(settings, LOG)

    for name, records in partition_logs(settings):
        crashing = CrashingConnection(connection, 2, reached=False)
        with pytest.raises(Crash):
            list(Applier(ApplyConfig.of(settings, 1), crashing).apply(*name, records))
    assert forget(settings, "alice").events == 0
    apply_log(settings)
    report = reconcile(settings)
    assert (report.differences, report.counted_in_state) == (0, 40)


def test_the_command_reports_what_it_erased(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    produce(settings, LOG)
    apply_log(settings)
    archive_log(settings)
    for name, value in environment(settings).items():
        if name.startswith("AFTERCLICK_"):
            monkeypatch.setenv(name, value)
    result = CliRunner().invoke(app, ["forget", "alice", "--json"])
    assert result.exit_code == 0, result.output
    report = orjson.loads(result.stdout.splitlines()[-1])
    assert {name: report[name] for name in ("events", "remaining", "rows")} == {
        "events": 20,
        "remaining": 0,
        "rows": 20,
    }
    assert reconcile(settings).differences == 0
