"""Events, load and outcome of a fault case, and the environment of its stream job."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

from confluent_kafka import Producer

from afterclick.events import Interaction, encode, interaction_event
from afterclick.io.kafka_clients import create_producer
from afterclick.settings import Settings
from infra.benchmarks.harness import Stack
from ingest.producer import producer_options
from streaming.proof.reconcile import Reconciliation

SMALL_BATCHES = {"AFTERCLICK_STREAM__BATCH_EVENTS": "8000"}
"""Several batches instead of one."""
REAL_TIME = {"AFTERCLICK_STREAM__TRIGGER": "real-time", "AFTERCLICK_STREAM__HANDOVER_S": "5"}
"""The default trigger, with a hand-over every few seconds."""
NO_FENCE = {"AFTERCLICK_STREAM__FENCE": "false"}
"""The control of most cases: offsets from Spark's checkpoint, counts without a fence."""


@dataclass(frozen=True)
class FaultLoad:
    """Events of each case, and how often a process is killed in it."""

    events: int = 20_000
    job_kills: int = 3
    server_kills: int = 2

    @classmethod
    def long(cls) -> FaultLoad:
        """Ten kills of the stream job, five of each server."""
        return cls(events=100_000, job_kills=10, server_kills=5)


@dataclass(frozen=True)
class FaultCase:
    """The outcome of a fault; field names are keys of `--json`.

    `lost` and `double` count events that are missing from, or repeated in, the state (for
    producers: the log).
    """

    name: str
    kills: int
    events: int
    lost: int
    double: int
    control_differs: bool
    """The same fault without the protection ended in a wrong state."""
    recovery_s: float
    """Seconds from the end of the fault until the whole log was applied."""
    note: str = ""
    """Outcome of the control."""

    @property
    def passed(self) -> bool:
        return not self.lost and not self.double and self.control_differs

    def failed(self, reason: str) -> FaultCase:
        """The same case as a failure: all of its events count as lost."""
        return replace(self, lost=self.events, note=f"{reason}; {self.note}")

    @classmethod
    def of(
        cls,
        name: str,
        kills: int,
        report: Reconciliation,
        recovery_s: float,
        control: Reconciliation,
    ) -> FaultCase:
        """From the reconciliations of the protected state and of the control."""
        return cls(
            name=name,
            kills=kills,
            events=report.events,
            lost=lost_events(report),
            double=report.double,
            control_differs=control.differences > 0,
            recovery_s=round(recovery_s, 1),
            note=f"control: lost {control.lost}, double {control.double}, "
            f"{control.differences} differences",
        )


def lost_events(report: Reconciliation) -> int:
    """Events missing from the state; 1 if it differs in something other than a count."""
    return report.lost + (1 if report.differences and not report.lost + report.double else 0)


MALFORMED = (
    b"",
    b"{",
    b"null",
    b"[1, 2]",
    b'"text"',
    b"\xff\xfe",
    b'{"id": "\xff"}',
    b'{"specversion":"1.0","type":"afterclick.review.v1"}',
    b'{"specversion":"1.0","rating":NaN}',
    b"[" * 10_000,
)
"""Ten kinds of malformed records."""
Row = tuple[str, bytes]
"""Key and value."""
NO_ACKS = {
    "enable.idempotence": False,
    "acks": "0",
    "delivery.timeout.ms": 1000,
    "request.timeout.ms": 1000,
}
"""The control of a producer: fire and forget, dropped after a second."""
_TICK_S = 0.02


def events(count: int, seed: int) -> Iterator[Row]:
    """Clicks, likes and skips of many users on few items; event ids depend on the seed."""
    rng = random.Random(seed)
    for n in range(count):
        user = f"user-{rng.randrange(count // 3 + 1)}"
        item, action = f"item-{rng.randrange(500)}", rng.choice(("click", "like", "skip"))
        moment = datetime.fromtimestamp(1_700_000_000 + rng.randrange(10**6), UTC)
        yield row(user, item, action, f"{seed}-{n}", moment)


def row(user: str, item: str, action: str, event_id: str, time: datetime | None = None) -> Row:
    """An event of a client, now unless `time` is given."""
    interaction = Interaction.model_validate({"user_id": user, "item_id": item, "action": action})
    moment = time or datetime.now(UTC)
    event = interaction_event(interaction, event_id=event_id, time=moment, source="bench")
    return user, encode(event)


def produce(settings: Settings, rows: Iterable[Row], topic: str = "", **overrides: Any) -> None:
    """Write rows to a topic (feedback) as the replay does; waits for their delivery."""
    producer = create_producer(settings.kafka, producer_options(120) | overrides)
    for key, value in rows:
        _queue(producer, topic or settings.kafka.topics.feedback, key, value)
    producer.flush(120)


def _queue(producer: Producer, topic: str, key: str, value: bytes) -> None:
    while True:
        try:
            producer.produce(topic, key=key, value=value)
        except BufferError:
            producer.poll(0.1)
            continue
        producer.poll(0)
        return


class SteadyProducer:
    """Produces `per_s` events per second during a `with`; `sent` holds their values."""

    def __init__(self, settings: Settings, seed: int, per_s: int = 2500, **overrides: Any) -> None:
        self._per_tick = max(1, round(per_s * _TICK_S))
        self._producer = create_producer(settings.kafka, producer_options(120) | overrides)
        self._topic = settings.kafka.topics.feedback
        self._rows = events(1_000_000, seed)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.sent: list[bytes] = []

    def __enter__(self) -> SteadyProducer:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._producer.flush(120)

    def wait_sent(self, stack: Stack, count: int) -> None:
        """Wait until `count` events were sent."""
        stack.wait(lambda: len(self.sent) >= count, f"{count} events to be produced")

    def _run(self) -> None:
        while not self._stop.wait(_TICK_S):
            for _ in range(self._per_tick):
                key, value = next(self._rows)
                _queue(self._producer, self._topic, key, value)
                self.sent.append(value)
