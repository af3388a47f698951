"""The events of a fault bench, and the producers that bring them into the log.

writes  topic  feedback, or the one that is given
"""

from __future__ import annotations

import random
import threading
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

from confluent_kafka import Producer

from afterclick.events import Interaction, encode, interaction_event
from afterclick.settings import Settings
from ingest.producer import producer_config

POISON = (
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
"""Ten kinds of records that are no events."""
Row = tuple[str, bytes]
"""Key and value."""
HEEDLESS = {
    "enable.idempotence": False,
    "acks": "0",
    "delivery.timeout.ms": 1000,
    "request.timeout.ms": 1000,
}
"""The control of a producer: what the log does not take within a second is dropped, and nobody looks."""
_TICK_S = 0.02


def events(number: int, seed: int) -> Iterator[Row]:
    """Clicks, likes and skips of many users on few items; another seed, other event ids."""
    draw = random.Random(seed)
    for n in range(number):
        user = f"user-{draw.randrange(number // 3 + 1)}"
        interaction = Interaction.model_validate(
            {
                "user_id": user,
                "item_id": f"item-{draw.randrange(500)}",
                "action": draw.choice(("click", "like", "skip")),
            }
        )
        moment = datetime.fromtimestamp(1_700_000_000 + draw.randrange(10**6), UTC)
        event = interaction_event(interaction, event_id=f"{seed}-{n}", time=moment, source="bench")
        yield user, encode(event)


def produce(settings: Settings, rows: Iterable[Row], topic: str = "", **overrides: Any) -> None:
    """Put rows on a topic (feedback) as the replay does, and wait until each is delivered or given up."""
    producer = Producer(producer_config(settings.kafka.bootstrap, 120) | overrides)
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
    """Produces `per_s` events a second for the time of a `with`; `sent` holds their values."""

    def __init__(self, settings: Settings, seed: int, per_s: int = 2500, **overrides: Any) -> None:
        self._per_tick = max(1, round(per_s * _TICK_S))
        self._producer = Producer(producer_config(settings.kafka.bootstrap, 120) | overrides)
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

    def _run(self) -> None:
        while not self._stop.wait(_TICK_S):
            for _ in range(self._per_tick):
                key, value = next(self._rows)
                _queue(self._producer, self._topic, key, value)
                self.sent.append(value)
