"""Read a compacted topic once: the newest record of each key.

reads   topic  whichever is asked for
"""

from __future__ import annotations

import structlog
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from afterclick.errors import Unavailable
from afterclick.settings import KafkaSettings

log = structlog.get_logger()


def newest(kafka: KafkaSettings, topic: str, timeout_s: float = 30.0) -> dict[bytes, bytes]:
    """Key → value of the newest records, without deleted keys. A topic that does not exist is empty.

    Raises Unavailable.
    """
    consumer = Consumer(
        {
            "bootstrap.servers": kafka.bootstrap,
            "group.id": "afterclick-training",
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "auto.offset.reset": "earliest",
        }
    )
    try:
        return _drain(consumer, topic, timeout_s)
    except KafkaException as error:
        raise Unavailable(f"Kafka at {kafka.bootstrap} does not answer: {error.args[0]}") from None
    finally:
        consumer.close()


def _drain(consumer: Consumer, topic: str, timeout_s: float) -> dict[bytes, bytes]:
    known = consumer.list_topics(topic, timeout=timeout_s).topics[topic]
    if known.error is not None or not known.partitions:
        log.warning("no such topic", topic=topic)
        return {}
    consumer.assign([TopicPartition(topic, p, 0) for p in known.partitions])
    found: dict[bytes, bytes] = {}
    open_partitions = set(known.partitions)
    while open_partitions:
        message = consumer.poll(timeout_s)
        if message is None:
            raise Unavailable(f"the topic {topic} stopped answering while it was read")
        error = message.error()
        if error is not None and error.code() != KafkaError._PARTITION_EOF:
            raise KafkaException(error)
        if error is not None:
            open_partitions.discard(message.partition())
            continue
        key, value = message.key() or b"", message.value()
        if value is None:
            found.pop(key, None)
        else:
            found[key] = value
    return found
