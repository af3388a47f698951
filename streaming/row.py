"""One Kafka row at a time through streaming.apply: what the real-time trigger runs in its workers.

reads   redis  what streaming.apply reads
writes  redis  what streaming.apply writes
        topic  state-changes, <topic>.dlq

Spark's own sink is of no use here: between two rows of a partition Spark waits for the next one and does not
look at what the worker has answered, so answers would stay behind for as long as the partition is quiet. The
worker therefore sends its outputs itself and answers null.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from streaming.apply import Applier, Output, Plan, Record
from streaming.connection import connect

_DEAD_LETTER_S = 30.0


@dataclass
class RowApplier:
    """Applies one row; a Spark task has one of its own."""

    plan: Plan
    bootstrap: str
    _applier: Applier | None = field(default=None, init=False)
    _sender: Sender | None = field(default=None, init=False)

    def __call__(
        self, key: bytes | None, value: bytes | None, topic: str, partition: int, offset: int, log_us: int
    ) -> None:
        if self._applier is None or self._sender is None:
            self._applier = Applier(self.plan, connect(self.plan.url, self.plan.cluster))
            self._sender = sender(self.bootstrap)
        record = Record(offset, _bytes(key), _bytes(value), log_us / 1000)
        for output in self._applier.apply(topic, partition, [record]):
            self._sender.send(output)


class Sender:
    """Sends outputs in order, without waiting for others to join them.

    A dead letter is on the topic when `send` returns. A failed delivery is raised by the next `send`.
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

    def send(self, output: Output) -> None:
        place: Any = {} if output.partition is None else {"partition": output.partition}
        self._producer.produce(
            output.topic,
            key=output.key,
            value=output.value,
            headers=list(output.headers),
            on_delivery=self._delivered,
            **place,
        )
        self._producer.poll(0)
        if output.headers and self._producer.flush(_DEAD_LETTER_S):
            raise KafkaException(KafkaError(KafkaError._TIMED_OUT, "a dead letter could not be delivered"))
        if self._failed is not None:
            raise KafkaException(self._failed)

    def _delivered(self, error: KafkaError | None, _: Message) -> None:
        self._failed = error or self._failed


@cache
def sender(bootstrap: str) -> Sender:
    """This process's sender: a worker outlives its tasks, and so does what it has yet to deliver."""
    return Sender(bootstrap)


def _bytes(value: bytes | None) -> bytes | None:
    return None if value is None else bytes(value)  # Spark hands out bytearrays
