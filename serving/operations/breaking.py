"""Faults on purpose, for demonstrations: what a crash, a slow store and a resending client would do.

reads   file   <home>/stack.json, the newest records of topic feedback
writes  topic  feedback: records that are in it already, byte for byte
"""

from __future__ import annotations

import os
import signal

from confluent_kafka import Consumer, KafkaException, Message, Producer, TopicPartition
from redis import Redis
from redis.exceptions import RedisError

from afterclick.errors import NotRunning, Unavailable
from afterclick.io.home import StackRecord
from afterclick.settings import KafkaSettings, Settings

TIMEOUT_S = 5.0
STREAM = "stream"


def kill_stream(settings: Settings) -> int:
    """SIGKILL to the stream job of the stack that runs from this home; its supervisor starts it again.

    Returns its process id. Raises NotRunning where no stack runs here, or the job does not.
    """
    record = StackRecord.read(settings.home)
    if record is None or not StackRecord.is_fresh(settings.home):
        raise NotRunning(
            "no stack runs from this home: only `afterclick up` would start the job again"
        )
    part = record.part(STREAM)
    if part is None or part.pid is None:
        raise NotRunning("the stream job does not run just now")
    try:
        os.kill(part.pid, signal.SIGKILL)
    except ProcessLookupError:
        raise NotRunning("the stream job does not run just now") from None
    return part.pid


def hold_up_redis(settings: Settings, seconds: float) -> None:
    """Let Redis answer nobody for so long. Raises Unavailable."""
    client: Redis = Redis.from_url(settings.redis.url, socket_timeout=TIMEOUT_S)
    try:
        client.client_pause(int(seconds * 1000), all=True)
    except RedisError as error:
        raise Unavailable(f"Redis does not answer: {error}") from None
    finally:
        client.close()


def resend(kafka: KafkaSettings, count: int) -> int:
    """Write the newest feedback once more, the same bytes and so the same event ids. Returns how many.

    Raises Unavailable where Kafka does not take them.
    """
    try:
        messages = _newest(kafka, count)
        producer = Producer({"bootstrap.servers": kafka.bootstrap, "enable.idempotence": True})
        for message in messages:
            partition = message.partition()
            assert partition is not None
            producer.produce(kafka.topics.feedback, message.value(), message.key(), partition)
        if producer.flush(TIMEOUT_S):
            raise Unavailable("Kafka does not take events now")
    except KafkaException as error:
        raise Unavailable(f"Kafka does not answer: {error.args[0]}") from None
    return len(messages)


def _newest(kafka: KafkaSettings, count: int) -> list[Message]:
    """About `count` of the newest feedback, the same share of each partition."""
    consumer = Consumer(
        {
            "bootstrap.servers": kafka.bootstrap,
            "group.id": "afterclick-resend",
            "enable.auto.commit": False,
        }
    )
    found: list[Message] = []
    try:
        for number in range(kafka.partitions):
            partition = TopicPartition(kafka.topics.feedback, number)
            first, end = consumer.get_watermark_offsets(partition, timeout=TIMEOUT_S)
            wanted = min(-(-count // kafka.partitions), end - first)
            if wanted > 0:
                consumer.assign([TopicPartition(kafka.topics.feedback, number, end - wanted)])
                found += [m for m in consumer.consume(wanted, timeout=TIMEOUT_S) if not m.error()]
    finally:
        consumer.close()
    return found
