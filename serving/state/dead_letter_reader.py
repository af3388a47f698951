"""Events that could not be read: how many, and the newest.

reads   topic  <topic>.dlq
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any

from confluent_kafka import Consumer, KafkaException, Message, TopicPartition

from afterclick.errors import Unavailable
from afterclick.settings import KafkaSettings
from afterclick.topics import dlq

TIMEOUT_S = 5.0
NEWEST = 10
PREVIEW = 200


class DeadLetters:
    """Reads the dead-letter topics, one caller at a time, over a connection that is kept."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self._lock = Lock()
        self._consumer: Consumer | None = None

    def counts(self) -> dict[str, int]:
        """Dead letters held per topic. Blocks: use a thread. Raises Unavailable where Kafka is away."""
        with self._connected() as consumer:
            spans = {topic: _span(consumer, topic) for topic in self._settings.topics.interactions}
        return {topic: end - first for topic, (first, end) in spans.items()}

    def newest(self, n: int = NEWEST) -> list[dict[str, Any]]:
        """The last `n` per topic, the newest first. Blocks: use a thread. Raises Unavailable."""
        with self._connected() as consumer:
            messages = [
                m for topic in self._settings.topics.interactions for m in _last(consumer, topic, n)
            ]
        messages.sort(key=lambda message: -message.timestamp()[1])
        return [_row(message) for message in messages]

    def close(self) -> None:
        """Give the connection up; the next caller makes another."""
        with self._lock:
            self._drop()

    @contextmanager
    def _connected(self) -> Iterator[Consumer]:
        with self._lock:
            if self._consumer is None:
                self._consumer = Consumer(
                    {
                        "bootstrap.servers": self._settings.bootstrap,
                        "group.id": "afterclick-dead-letters",
                        "enable.auto.commit": False,
                        "log_level": 0,
                    }
                )
            try:
                yield self._consumer
            except KafkaException as error:
                self._drop()
                raise Unavailable(
                    f"Kafka does not say what dead letters there are: {error}"
                ) from None

    def _drop(self) -> None:
        if self._consumer is not None:
            self._consumer.close()
            self._consumer = None


def _span(consumer: Consumer, topic: str) -> tuple[int, int]:
    """First and next offset of a topic's dead letters."""
    first, end = consumer.get_watermark_offsets(TopicPartition(dlq(topic), 0), timeout=TIMEOUT_S)
    return int(first), int(end)


def _last(consumer: Consumer, topic: str, n: int) -> list[Message]:
    first, end = _span(consumer, topic)
    wanted = min(n, end - first)
    if wanted <= 0:
        return []
    consumer.assign([TopicPartition(dlq(topic), 0, end - wanted)])
    found = consumer.consume(wanted, timeout=TIMEOUT_S)
    consumer.unassign()
    return [message for message in found if not message.error()]


def _row(message: Message) -> dict[str, Any]:
    return {
        "topic": message.topic(),
        "offset": message.offset(),
        "headers": {str(header[0]): _text(header[1]) for header in message.headers() or ()},
        "value": _text(message.value())[:PREVIEW],
    }


def _text(raw: bytes | str | None) -> str:
    return raw.decode(errors="replace") if isinstance(raw, bytes) else raw or ""
