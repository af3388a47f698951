"""A forgotten user has never been there: not in the state, not in the log, whatever is replayed."""

from __future__ import annotations

import time
from collections.abc import Iterable

import orjson
import pyarrow.dataset as ds
import pytest
import redis
from typer.testing import CliRunner

from afterclick.settings import Settings
from infra.cli import app
from streaming.apply import Applier, ApplyConfig
from streaming.connection import NodeConnection
from streaming.forgotten_users import publish_forgotten, restore_forgotten
from streaming.positions import hold_lease
from streaming.proof.forget import Forgetter, forget
from streaming.proof.rebuild import rebuild
from streaming.proof.reconcile import reconcile
from tests.serving.mini_stream import MiniStream
from tests.streaming.builders import DAY_S, Crash, CrashingConnection, event
from tests.streaming.stream_process import environment, produce
from tests.streaming.topic_log import apply_log, archive_log, partition_logs

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
OTHERS = [
    event(f"user-{n % 7}", f"item-{n % 6}", "like", at=n / 2, event_id=f"o{n}") for n in range(40)
]
LOG = [*OTHERS[:20], *ALICE, *OTHERS[20:]]


def archived_users(settings: Settings) -> set[str]:
    table = ds.dataset(settings.archive, partitioning="hive").to_table(columns=["user_id"])
    return set(table["user_id"].to_pylist())


def names_of(client: redis.Redis, settings: Settings, user: str) -> set[str]:
    """What is left of a user's keys."""
    found = client.scan_iter(settings.redis.prefix + "{u:" + user + "}*", count=5000)
    return {key.decode().split("}:")[1].split(":")[0] for key in found}


def test_nothing_is_left_and_the_state_is_that_of_a_log_without_them(
    settings: Settings, client: redis.Redis
) -> None:
    produce(settings, [*LOG, ALICE[3]])
    apply_log(settings)
    archive_log(settings)
    assert "alice" in archived_users(settings)

    found = forget(settings, "alice")

    assert (found.events, found.unknown, found.rows) == (20, 0, 21)
    assert names_of(client, settings, "alice") == {"forgotten"}
    assert archived_users(settings) == {f"user-{n}" for n in range(7)}
    report = reconcile(settings)
    assert (report.differences, report.forgotten, report.counted_in_state) == (0, 21, 40)


def test_neither_a_replay_of_the_dataset_nor_of_the_topic_brings_them_back(
    settings: Settings, client: redis.Redis
) -> None:
    produce(settings, LOG)
    apply_log(settings)
    forget(settings, "alice")

    produce(settings, LOG)  # the dataset once more, the same ids
    anew = [one.model_copy(update={"id": f"again-{one.id}"}) for one in ALICE]
    produce(settings, anew)  # and under other ids
    apply_log(settings)
    archive_log(settings)
    assert reconcile(settings).differences == 0
    assert "alice" not in archived_users(settings)
    assert names_of(client, settings, "alice") == {"forgotten"}

    for key in client.scan_iter(settings.redis.prefix + "*"):
        client.delete(key)  # Redis forgets that it has forgotten
    restore_forgotten(
        client, settings.redis.keys, settings.kafka
    )  # what a starting stream does first
    apply_log(settings)
    assert reconcile(settings).differences == 0
    assert names_of(client, settings, "alice") == {"forgotten"}


def test_without_the_topic_the_replay_brings_them_back(
    settings: Settings, client: redis.Redis
) -> None:
    """The control: Redis alone cannot keep a forgetting that it may lose."""
    produce(settings, LOG)
    apply_log(settings)
    forget(settings, "alice")
    for key in client.scan_iter(settings.redis.prefix + "*"):
        client.delete(key)
    apply_log(settings)
    assert "history" in names_of(client, settings, "alice")
    assert reconcile(settings).differences > 0


def test_who_comes_back_is_new(settings: Settings, client: redis.Redis) -> None:
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


def test_a_running_stream_goes_on_meanwhile(settings: Settings, client: redis.Redis) -> None:
    produce(settings, LOG)
    with MiniStream(settings), hold_lease(client, settings.redis.keys, 10):
        found = forget(settings, "alice")
        produce(settings, OTHERS)
        report = reconcile(settings, wait_s=30)
    assert found.events <= 20  # what the stream had not come to yet was refused
    assert (report.differences, report.forgotten) == (0, 20)


class CutOff(Exception):
    """The process died here."""


class DiesBeforeCounts(Forgetter):
    def retract(self, until_ms: int) -> tuple[int, int]:
        raise CutOff


class DiesBeforeLedgers(Forgetter):
    def delete_entries(self, entries: Iterable[object]) -> None:
        if list(entries):
            raise CutOff


@pytest.mark.parametrize("dies", [DiesBeforeCounts, DiesBeforeLedgers])
def test_cut_off_it_is_finished_by_running_it_again(
    settings: Settings, client: redis.Redis, dies: type[Forgetter]
) -> None:
    produce(settings, LOG)
    apply_log(settings)
    until_ms = int(time.time() * 1000)
    publish_forgotten(settings.kafka, "alice", until_ms)
    cut_off = dies(settings, client, "alice")
    with pytest.raises(CutOff):
        cut_off.finish(cut_off.begin(until_ms))
    assert "forgetting" in names_of(client, settings, "alice")
    assert forget(settings, "alice").events == 20
    assert names_of(client, settings, "alice") == {"forgotten"}
    assert reconcile(settings).differences == 0


def test_a_rebuilt_state_has_them_no_more_than_the_log(
    settings: Settings, client: redis.Redis
) -> None:
    produce(settings, LOG)
    archive_log(settings)
    publish_forgotten(settings.kafka, "alice", int(time.time() * 1000))  # the log still has them
    rebuild(settings)
    assert names_of(client, settings, "alice") == {"forgotten"}
    assert reconcile(settings).differences == 0


def test_a_crash_between_the_steps_and_then_a_forgetting(
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


def test_the_command_says_what_it_erased(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    produce(settings, LOG)
    apply_log(settings)
    archive_log(settings)
    for name, value in environment(settings).items():
        if name.startswith("AFTERCLICK_"):
            monkeypatch.setenv(name, value)
    answer = CliRunner().invoke(app, ["forget", "alice", "--json"])
    assert answer.exit_code == 0, answer.output
    said = orjson.loads(answer.stdout.splitlines()[-1])
    assert {name: said[name] for name in ("events", "unknown", "rows", "sql_rows")} == {
        "events": 20,
        "unknown": 0,
        "rows": 20,
        "sql_rows": 0,
    }
    assert reconcile(settings).differences == 0
