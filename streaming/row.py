"""One Kafka row at a time through streaming.apply: what the real-time trigger runs in its workers.

reads   redis  what streaming.apply reads
writes  redis  what streaming.apply writes
        topic  state-changes, <topic>.dlq; how far the first got goes to Redis with the next row

Spark's own sink is of no use here: between two rows of a partition Spark waits for the next one and does not
look at what the worker has answered, so answers would stay behind for as long as the partition is quiet. The
worker therefore sends its outputs itself and answers null.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from streaming.apply import Applier, Output, Plan, Record
from streaming.connection import connect

_DEAD_LETTER_S = 30.0


@dataclass
class RowApplier:
    """Applies one row; a Spark task has one of its own, which connects with the first row."""

    plan: Plan
    bootstrap: str
    applier: Applier | None = None
    sender: Sender | None = None

    def __call__(
        self,
        key: bytes | None,
        value: bytes | None,
        topic: str,
        partition: int,
        offset: int,
        log_us: int,
    ) -> None:
        if self.applier is None or self.sender is None:
            self.sender = sender(self.bootstrap)
            connection = connect(self.plan.url, self.plan.cluster)
            self.applier = Applier(self.plan, connection, self.sender.bury)
        record = Record(offset, _bytes(key), _bytes(value), log_us / 1000)
        for output in self.applier.apply(topic, partition, [record]):
            self.sender.send(output, partial(self._delivered, offset))

    def _delivered(self, offset: int) -> None:
        if self.applier is not None:
            self.applier.announced = offset


class Sender:
    """Sends outputs in order, without waiting for others to join them.

    A failed delivery is raised by the next `send` or `bury`.
    """

    def __init__(self, bootstrap: str) -> None:
        self._failed: KafkaError | None = None
        self._producer = Producer(
            {
                "bootstrap.servers": bootstrap,
                "enable.idempotence": True,
                "linger.ms": 0,
                "socket.nagle.disable": True,
                "log_level": 2,
            }
        )

    def send(self, output: Output, delivered: Callable[[], None] | None = None) -> None:
        """Send an output; `delivered` is called by a later `send` or `bury` once it is on its topic."""
        place: Any = {} if output.partition is None else {"partition": output.partition}
        self._producer.produce(
            output.topic,
            key=output.key,
            value=output.value,
            headers=list(output.headers),
            on_delivery=partial(self._report, delivered),
            **place,
        )
        self._producer.poll(0)
        self._raise_failed()

    def bury(self, letters: Sequence[Output]) -> None:
        """Send dead letters; they are on their topic when this returns. Raises KafkaException."""
        for letter in letters:
            self.send(letter)
        if letters and self._producer.flush(_DEAD_LETTER_S):
            raise KafkaException(
                KafkaError(KafkaError._TIMED_OUT, "a dead letter could not be delivered")
            )
        self._raise_failed()

    def _raise_failed(self) -> None:
        failed, self._failed = self._failed, None  # the next task starts with a clean slate
        if failed is not None:
            raise KafkaException(failed)

    def _report(
        self, delivered: Callable[[], None] | None, error: KafkaError | None, _: Message
    ) -> None:
        self._failed = error or self._failed
        if delivered is not None and self._failed is None:
            delivered()


@cache
def sender(bootstrap: str) -> Sender:
    """This process's sender: a worker outlives its tasks, and so does what it has yet to deliver."""
    return Sender(bootstrap)


def _bytes(value: bytes | None) -> bytes | None:
    return None if value is None else bytes(value)  # Spark hands out bytearrays
