"""Write impressions: the lists that users have seen.

writes  topic  impressions

While Kafka is down the producer buffers; impressions beyond its buffer are dropped and counted.
"""

from __future__ import annotations

import threading
from typing import Any

import orjson
from confluent_kafka import KafkaError, KafkaException, Message, Producer

from afterclick import events
from afterclick.events import IMPRESSION_TYPE, VISITOR
from afterclick.io.background import Heartbeat
from afterclick.io.kafka_clients import create_producer
from afterclick.settings import KafkaSettings
from serving.response_cache import Recommendation

SOURCE = "/serving"
BUFFER = 20_000


class ImpressionLog:
    """A producer that never blocks."""

    def __init__(self, settings: KafkaSettings, producer: Producer | None = None) -> None:
        self._topic = settings.topics.impressions
        self.dropped = 0
        self._producer = producer or create_producer(
            settings,
            {
                "partitioner": "murmur2_random",
                "acks": "all",
                "linger.ms": 50,
                "message.timeout.ms": 30_000,
                "queue.buffering.max.messages": BUFFER,
                "delivery.report.only.error": True,
                "on_delivery": self._on_delivery,
            },
        )
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._poll, name="impression-reports", daemon=True)
        self.heartbeat = Heartbeat("impression-reports")

    def start(self) -> None:
        self.heartbeat.beat()
        self._thread.start()

    def append(self, answer: Recommendation) -> None:
        """Write one impression."""
        try:
            self._producer.produce(self._topic, encode(answer), answer.body["user_id"] or VISITOR)
        except (BufferError, KafkaException):  # KafkaException: unknown topic
            self.dropped += 1

    def stop(self, timeout_s: float = 2.0) -> None:
        """Flush for at most `timeout_s`, and end the thread."""
        self._producer.flush(timeout_s)
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(1.0)

    def _on_delivery(self, error: KafkaError | None, _: Message) -> None:
        self.dropped += error is not None

    def _poll(self) -> None:
        while not self._stop.is_set():
            self.heartbeat.beat()
            self._producer.poll(0.2)
        self.heartbeat.beat(None)


def encode(answer: Recommendation) -> bytes:
    """The JSON of an ImpressionEvent, as `events.encode` writes it, without building the event."""
    body = answer.body
    impression: dict[str, Any] = {
        "impression_id": body["impression_id"],
        "user_id": body["user_id"] or VISITOR,
        "items": orjson.Fragment(answer.rendered.impression_rows),
        "model_version": body["model_version"],
        "source": body["source"],
        "policy": answer.policy,
    }
    experiment = body.get("experiment")
    if experiment is not None:
        impression |= {"experiment": experiment["name"], "arm": experiment["arm"]}
        if "fallback" in experiment:
            impression["fallback"] = True
    if answer.context is not None:
        impression["context"] = answer.context.model_dump(exclude_none=True)
    return orjson.dumps(
        {
            "specversion": "1.0",
            "id": body["impression_id"],
            "source": SOURCE,
            "type": IMPRESSION_TYPE,
            "time": events.now(),
            "subject": body["user_id"] or VISITOR,
            "datacontenttype": "application/json",
            "data": impression,
        }
    )
