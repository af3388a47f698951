"""Requests to forget users: the compacted topic `forgotten`, a record per user.

reads, writes  topic  forgotten
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import structlog

from afterclick.errors import BadEvent, Unavailable
from afterclick.io.kafka_clients import ConnectionErrors, create_producer
from afterclick.io.kafka_log import KafkaLog, OffsetRange, OffsetRanges
from afterclick.settings import KafkaSettings
from afterclick.state import TopicPartition, decode_forgotten, encode_forgotten

if TYPE_CHECKING:
    from confluent_kafka import KafkaError, Message

log = structlog.get_logger()

TIMEOUT_S = 30.0
BATCH = 1000
"""Records read at once."""


def publish_forgotten(
    kafka: KafkaSettings, user_id: str, until_ms: int, timeout_s: float = TIMEOUT_S
) -> None:
    """Request that a user's events up to a time are forgotten.

    Raises Unavailable unless Kafka acknowledges it.
    """
    errors: list[KafkaError] = []
    connection = ConnectionErrors(kafka)
    producer = create_producer(kafka, {"enable.idempotence": True}, connection)
    producer.produce(
        kafka.topics.forgotten,
        key=user_id.encode(),
        value=encode_forgotten(until_ms),
        on_delivery=lambda error, _: errors.append(error) if error else None,
    )
    if producer.flush(timeout_s) or errors:
        reason = f" ({connection.refusal})" if connection.refusal else ""
        raise Unavailable(
            f"Kafka at {kafka.bootstrap} did not acknowledge the request{reason}; "
            "nothing was forgotten"
        )


def decode_requests(
    records: Iterable[tuple[int | None, bytes | None, bytes | None]],
) -> dict[str, int]:
    """User → event time ms up to which they are forgotten, of records (offset, key, value).

    Deleted records change nothing. Malformed ones are skipped, counted and logged: the topic is
    compacted, and keeps them.
    """
    requests: dict[str, int] = {}
    malformed: list[tuple[int | None, BadEvent]] = []
    for offset, key, value in records:
        if value is None:
            continue
        try:
            user_id, until_ms = decode_forgotten(key, value)
        except BadEvent as error:
            malformed.append((offset, error))
            continue
        requests[user_id] = max(until_ms, requests.get(user_id, until_ms))
    if malformed:
        offset, first = malformed[0]
        log.warning("malformed records skipped", n=len(malformed), first=offset, error=str(first))
    return requests


def requests_of(messages: Iterable[Message]) -> dict[str, int]:
    """The requests in records of the topic: user → event time ms."""
    return decode_requests((each.offset(), each.key(), each.value()) for each in messages)


def read_forgotten(kafka: KafkaSettings) -> dict[str, int]:
    """Every request on the topic, none if it does not exist. Raises Unavailable."""
    with KafkaLog(kafka, TIMEOUT_S) as kafka_log:
        topic = kafka.topics.forgotten
        if not kafka_log.exists(topic):
            return {}
        return requests_of(kafka_log.read(kafka_log.ranges(topic)))


class ForgottenLog:
    """The requests on the topic, each once, oldest first."""

    def __init__(self, kafka: KafkaSettings) -> None:
        self._topic, self._log = kafka.topics.forgotten, KafkaLog(kafka)
        self._next: dict[TopicPartition, int] = {}

    def read(self) -> dict[str, int]:
        """Up to `BATCH` further requests of each partition: user → event time ms.

        A topic that does not exist is empty. Raises Unavailable.
        """
        if not self._log.exists(self._topic):
            return {}
        ranges: OffsetRanges = {}
        for partition, held in self._log.ranges(self._topic).items():
            begin = max(self._next.get(partition, 0), held.begin)
            ranges[partition] = OffsetRange(begin, min(begin + BATCH, held.end))
        requests = requests_of(self._log.read(ranges))
        self._next |= {partition: span.end for partition, span in ranges.items()}
        return requests

    def close(self) -> None:
        """Close the connection."""
        self._log.close()
