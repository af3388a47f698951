"""Events that could not be read: how many, and the newest.

reads   topic  <topic>.dlq
"""

from __future__ import annotations

from typing import Any

from confluent_kafka import Consumer, KafkaException, Message, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._listoffsets import OffsetSpec

from afterclick.errors import Unavailable
from afterclick.settings import KafkaSettings
from afterclick.topics import dlq

TIMEOUT_S = 2.0
NEWEST = 10
PREVIEW = 200


def count_dead_letters(settings: KafkaSettings) -> dict[str, int]:
    """Dead letters held per topic. Blocks: use a thread. Raises Unavailable where Kafka is away."""
    admin = AdminClient({"bootstrap.servers": settings.bootstrap, "log_level": 0})
    return {topic: _held(admin, dlq(topic)) for topic in settings.topics.interactions}


def newest_dead_letters(settings: KafkaSettings, n: int = NEWEST) -> list[dict[str, Any]]:
    """The last `n` per topic, the newest first. Blocks: use a thread. Raises Unavailable."""
    consumer = Consumer(
        {
            "bootstrap.servers": settings.bootstrap,
            "group.id": "afterclick-dead-letters",
            "enable.auto.commit": False,
            "log_level": 0,
        }
    )
    try:
        messages = [
            message
            for topic in settings.topics.interactions
            for message in _last(consumer, TopicPartition(dlq(topic), 0), n)
        ]
    except KafkaException as error:
        raise Unavailable(f"Kafka does not give the dead letters: {error}") from None
    finally:
        consumer.close()
    messages.sort(key=lambda message: -message.timestamp()[1])
    return [_row(message) for message in messages]


def _held(admin: AdminClient, topic: str) -> int:
    partition = TopicPartition(topic, 0)
    specs = (OffsetSpec.earliest(), OffsetSpec.latest())  # type: ignore[no-untyped-call]
    try:
        first, last = (
            admin.list_offsets({partition: spec}, request_timeout=TIMEOUT_S)[partition].result().offset
            for spec in specs
        )
    except KafkaException as error:
        raise Unavailable(f"Kafka does not say how many dead letters there are: {error}") from None
    return int(last - first)


def _last(consumer: Consumer, partition: TopicPartition, n: int) -> list[Message]:
    first, end = consumer.get_watermark_offsets(partition, timeout=TIMEOUT_S)
    wanted = min(n, end - first)
    if wanted <= 0:
        return []
    consumer.assign([TopicPartition(partition.topic, 0, end - wanted)])
    found = consumer.consume(wanted, timeout=TIMEOUT_S)
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
