"""Experiments are counted from the log: once, by any process, whatever is restarted."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import datetime, timedelta
from functools import partial
from typing import Any

import orjson
import pytest
from confluent_kafka import Producer
from sqlalchemy import select, update
from websockets.sync.client import ClientConnection, connect

from afterclick import events
from afterclick.events import Action, Impression, ImpressionEvent, ShownItem, new_id
from afterclick.settings import Settings
from afterclick.state import Effect, StateChange
from serving.control.erasure import UserEraser
from serving.control.experiments import (
    ArmSums,
    Experiment,
    ExperimentDraft,
    add_experiment,
    read_sums,
)
from serving.control.store import Database, experiment_progress, experiment_users
from serving.events.experiment_counts import ExperimentCounter
from tests.serving.mini_stream import MiniStream
from tests.serving.running import Running, received
from tests.serving.test_experiments import DECIDED_BY, TWO_ARMS
from tests.waiting import wait_until

DRAFT = {"name": "e", **DECIDED_BY, "days": 7, "arms": TWO_ARMS}
USERS, REPLICAS = 200, 3


@pytest.fixture
def stored(settings: Settings, database_url: str) -> Settings:
    """Settings with an empty SQLite or Postgres database."""
    serving = settings.serving.model_copy(update={"database": database_url})
    return settings.model_copy(update={"serving": serving})


@pytest.fixture
def database(stored: Settings) -> Iterator[Database]:
    """The database with a running experiment that is ten days old."""
    database = Database(stored.database)
    database.upgrade()
    experiment = Experiment.of(ExperimentDraft.model_validate(DRAFT))
    with database.begin() as connection:
        created = experiment.created - timedelta(days=10)
        add_experiment(connection, experiment.model_copy(update={"created": created}))
    yield database
    database.close()


class Records:
    """Writes impressions and state changes as the API and the stream do."""

    def __init__(self, settings: Settings) -> None:
        self._kafka, self._offset = settings.kafka, -1
        self._producer = Producer({"bootstrap.servers": settings.kafka.bootstrap, "acks": "all"})

    def impression(
        self, user_id: str, at: datetime | None = None, arm: str = "a", fallback: bool = False
    ) -> None:
        shown = Impression(
            impression_id=new_id(),
            user_id=user_id,
            items=(ShownItem(item_id="i", score=1.0, source="als"),),
            model_version="m1",
            source="trending",
            experiment="e",
            arm=arm,
            fallback=fallback or None,
        )
        event = ImpressionEvent(
            id=shown.impression_id,
            source="test",
            time=at or events.now(),
            subject=user_id,
            data=shown,
        )
        self._write(self._kafka.topics.impressions, user_id, events.encode(event))

    def change(
        self,
        user_id: str,
        action: Action = Action.PURCHASE,
        *,
        effect: Effect = Effect.APPLIED,
        at: datetime | None = None,
    ) -> StateChange:
        """The next event of the feedback topic, as a state change."""
        now_ms = events.now().timestamp() * 1000
        self._offset += 1
        change = StateChange(
            user_id=user_id,
            item_id="i",
            action=action,
            event_id=new_id(),
            time_ms=round((at or events.now()).timestamp() * 1000),
            topic=self._kafka.topics.feedback,
            partition=0,
            offset=self._offset,
            effect=effect,
            weight=1.0,
            first_user_item=False,
            log_ms=now_ms,
            read_ms=now_ms,
            applied_ms=now_ms,
        )
        self._producer.produce(self._kafka.topics.feedback, b"{}", user_id, 0)  # has this offset
        self.repeat(change)
        return change

    def repeat(self, change: StateChange, effect: Effect | None = None) -> None:
        """Write a state change, again or with another effect."""
        change = change.model_copy(update={"effect": effect or change.effect})
        topic = self._kafka.topics.state_changes
        self._producer.produce(topic, change.encode(), change.user_id, 0)

    def flush(self) -> None:
        assert self._producer.flush(20) == 0

    def _write(self, topic: str, key: str, value: bytes) -> None:
        self._producer.produce(topic, value, key)


@pytest.fixture
def records(stored: Settings) -> Records:
    return Records(stored)


def counted(settings: Settings, database: Database, settle_s: float = 0.0) -> dict[str, ArmSums]:
    """The sums of the arms after one process has counted everything."""
    counter = ExperimentCounter(settings, database, settle_s)
    while counter.count():
        pass
    counter.stop()
    with database.begin() as connection:
        return read_sums(connection, "e")


@pytest.mark.parametrize("forgotten", [True, False])
def test_lists_of_a_forgotten_user_are_not_counted(
    stored: Settings, database: Database, records: Records, forgotten: bool
) -> None:
    """They are in the log for weeks. The control: without the eraser they are counted."""
    now = events.now()
    records.impression("ann", now - timedelta(hours=1))
    records.impression("ann", now)  # after the erasure
    records.impression("bob", now - timedelta(hours=1))
    records.flush()
    eraser = UserEraser()
    if forgotten:
        eraser.forget({"ann": round((now - timedelta(minutes=1)).timestamp() * 1000)})
    counter = ExperimentCounter(stored, database, 0.0, eraser)
    wait_until(lambda: not counter.count())
    counter.stop()
    with database.begin() as connection:
        columns = experiment_users.c
        query = select(columns.user_id, columns.lists).order_by(columns.user_id)
        assert connection.execute(query).all() == [("ann", 1 if forgotten else 2), ("bob", 1)]


def test_a_purchase_counts_in_the_first_seven_days_from_the_first_list_on(
    stored: Settings, database: Database, records: Records
) -> None:
    now = events.now()
    for user_id, days in (("day 7", 6.9), ("day 8", 7.1), ("later", 0.0)):
        records.impression(user_id, now - timedelta(days=days))
        records.impression(user_id)
    for user_id in ("day 7", "day 8", "never shown"):
        records.change(user_id)
    records.change("later", at=now - timedelta(days=1))
    records.change("later", Action.CLICK, at=now + timedelta(hours=1))
    records.flush()
    found = counted(stored, database)
    assert found == {
        "a": ArmSums(
            users=3, lists=6, clicks=1, clicks_squared=1, buyers=1, purchases=1, fallback_lists=0
        )
    }


def test_lists_of_an_arm_that_could_not_be_served_are_counted_and_their_users_stay(
    stored: Settings, database: Database, records: Records
) -> None:
    records.impression("ann", arm="b", fallback=True)
    records.impression("ann", arm="b")
    records.impression("bob", arm="b", fallback=True)
    records.flush()
    found = counted(stored, database)["b"]
    assert (found.users, found.lists, found.fallback_lists) == (2, 3, 2)


def test_an_event_counts_once_however_often_the_stream_reports_it(
    stored: Settings, database: Database, records: Records
) -> None:
    records.impression("ann")
    change = records.change("ann")
    records.repeat(change)
    records.repeat(change, Effect.REPLAYED)
    records.change("ann", effect=Effect.DUPLICATE)
    records.change("ann", effect=Effect.FORGOTTEN)
    records.change("ann", effect=Effect.REPLAYED)  # its first report was lost
    records.flush()
    assert counted(stored, database)["a"].purchases == 2
    records.repeat(change)
    records.flush()
    assert counted(stored, database)["a"].purchases == 2


def test_a_reaction_counts_once_its_impression_had_time_to_arrive(
    stored: Settings, database: Database, records: Records
) -> None:
    shown = events.now()
    records.change("ann")
    records.flush()
    assert counted(stored, database, settle_s=60) == {}
    records.impression("ann", shown)
    records.flush()
    assert counted(stored, database, settle_s=60)["a"].buyers == 0
    assert counted(stored, database)["a"].buyers == 1


@pytest.mark.parametrize("positions_kept", [True, False], ids=["kept", "control: lost"])
def test_processes_that_count_at_the_same_time_and_restart_count_each_record_once(
    stored: Settings, database: Database, records: Records, positions_kept: bool
) -> None:
    for n in range(USERS):
        for _ in range(3):
            records.impression(f"user-{n}")
        records.change(f"user-{n}", Action.CLICK)
        records.change(f"user-{n}")
    records.flush()
    own = [Database(stored.database) for _ in range(REPLICAS)]
    threads = [threading.Thread(target=counted, args=(stored, one)) for one in own]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one in own:
        one.close()
    if not positions_kept:
        with database.begin() as connection:
            connection.execute(update(experiment_progress).values(positions={}))
    found = counted(stored, database)["a"]
    times = 1 if positions_kept else 2
    assert (found.users, found.buyers) == (USERS, USERS)
    assert (found.lists, found.clicks) == (times * 3 * USERS, times * USERS)


def arms_of(api: Running) -> list[dict[str, Any]]:
    arms: list[dict[str, Any]] = api.get("/experiments/e")["arms"]
    return arms


def total(api: Running, figure: str) -> int:
    return sum(arm[figure] for arm in arms_of(api))


def test_purchases_count_on_every_replica_and_after_a_restart(
    stored: Settings, stream: MiniStream
) -> None:
    with ExitStack() as replicas:
        first, second = (replicas.enter_context(Running(stored)) for _ in range(2))
        for api in (first, second):
            api.ready()
            wait_until(partial(getattr, api.service.control, "available"))
        assert first.http.post("/experiments", json=DRAFT).status_code == 201
        wait_until(lambda: second.service.control.experiments)
        for user_id in ("ann", "bob", "eve"):
            first.list_for(user_id)
        second.list_for("ann")
        event_id = new_id()
        for api in (first, second):  # a client that sends it again
            api.feedback("ann", "camera-1", "purchase", event_id=event_id)
        wait_until(lambda: total(second, "purchases"))
        assert (total(first, "lists"), total(first, "users")) == (4, 3)
    with Running(stored) as restarted:
        restarted.ready()
        restarted.feedback("bob", "camera-2", "purchase")
        restarted.feedback("bob", "camera-2", "click", impression_id="of another list")
        wait_until(lambda: total(restarted, "clicks"))
        assert (total(restarted, "purchases"), total(restarted, "buyers")) == (2, 2)
        until = datetime.fromisoformat(restarted.get("/experiments/e")["counted_until"])
        assert until < events.now()


def seen(socket: ClientConnection, impression_id: Any) -> None:
    socket.send(orjson.dumps({"type": "seen", "impression_id": impression_id}).decode())


def test_a_pushed_list_counts_once_it_is_seen(settings: Settings, stream: MiniStream) -> None:
    def counts() -> tuple[int, int]:
        rows = api.get("/exposure")["rows"]
        return sum(row["sent"] for row in rows), sum(row["lists"] for row in rows)

    with Running(settings) as api:
        api.ready()
        wait_until(lambda: api.service.control.available)
        assert api.http.post("/experiments", json=DRAFT).status_code == 201
        with connect(f"{api.ws}/ws/recommendations?user_id=ann") as socket:
            hidden = received(socket)
            api.feedback("ann", "camera-1")
            shown = received(socket)
            assert counts() == (2, 0)
            for message in ("{", "[]", '{"type": "seen"}', '{"type": "other"}'):
                socket.send(message)
            seen(socket, "unknown")
            seen(socket, [])
            for _ in range(2):
                seen(socket, shown["impression_id"])
            wait_until(lambda: counts() == (2, 1))
        with connect(f"{api.ws}/ws/recommendations?user_id=ann") as socket:
            last = received(socket)
            seen(socket, hidden["impression_id"])  # of a connection that is closed
            seen(socket, last["impression_id"])
            wait_until(lambda: counts() == (3, 2))
        wait_until(lambda: total(api, "lists") == 2)
        assert total(api, "users") == 1
