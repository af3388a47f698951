"""Fault injection for demonstrations: a crash of the stream job, a slow Redis, resent events.

reads   file   <home>/stack.json
        topic  feedback: the newest records
writes  topic  feedback: the same records, byte for byte
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import Any

from confluent_kafka import Consumer, KafkaException, Message, Producer, TopicPartition
from redis import Redis
from redis.exceptions import RedisError

from afterclick.errors import BadInput, NotRunning, Unavailable
from afterclick.io.home import StackRecord
from afterclick.settings import KafkaSettings, Settings

TIMEOUT_S = 5.0
RESENT_EVENTS = 50
KEPT_FAULTS = 10
_NO_JOB = "the stream job is not running"


class FaultInjection:
    """Injects faults where the settings allow it, and remembers the newest ones."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.allowed = settings.console.fault_injection
        self.injected: list[dict[str, Any]] = []
        self._faults: dict[str, Callable[[], str]] = {
            "stream": self._kill_stream,
            "redis": self._pause_redis,
            "duplicates": self._resend,
        }

    def inject(self, fault: str) -> str:
        """Inject a fault and describe it. Blocks. Raises BadInput, NotRunning, Unavailable."""
        if not self.allowed:
            raise BadInput(
                "fault injection is disabled: set AFTERCLICK_CONSOLE__FAULT_INJECTION=true"
            )
        if fault not in self._faults:
            raise BadInput(f"unknown fault {fault!r}: use one of {', '.join(self._faults)}")
        done = self._faults[fault]()
        entry = {"time": time.time(), "fault": fault, "done": done}
        self.injected = [entry, *self.injected][:KEPT_FAULTS]
        return done

    def _kill_stream(self) -> str:
        return f"killed the stream job, process {kill_stream(self._settings)}"

    def _pause_redis(self) -> str:
        seconds = self._settings.console.redis_pause_s
        pause_redis(self._settings, seconds)
        return f"Redis paused for {seconds:g} s"

    def _resend(self) -> str:
        return f"sent {resend(self._settings.kafka, RESENT_EVENTS)} events a second time"


def kill_stream(settings: Settings) -> int:
    """SIGKILL the stream job of this home's stack, which the supervisor restarts; its process id.

    Raises NotRunning if no stack runs from this home, or the job does not run.
    """
    record = StackRecord.read(settings.home)
    if record is None or not StackRecord.is_fresh(settings.home):
        raise NotRunning(
            "no stack runs from this home: only `afterclick up` restarts the stream job"
        )
    part = record.part("stream")
    if part is None or part.pid is None:
        raise NotRunning(_NO_JOB)
    try:
        os.kill(part.pid, signal.SIGKILL)
    except ProcessLookupError:
        raise NotRunning(_NO_JOB) from None
    return part.pid


def pause_redis(settings: Settings, seconds: float) -> None:
    """Block every Redis command for `seconds`. Raises Unavailable."""
    client: Redis = Redis.from_url(settings.redis.url, socket_timeout=TIMEOUT_S)
    try:
        client.client_pause(int(seconds * 1000), all=True)
    except RedisError as error:
        raise Unavailable(f"Redis does not answer: {error}") from None
    finally:
        client.close()


def resend(kafka: KafkaSettings, count: int) -> int:
    """Produce the newest feedback records again, unchanged and so with the same event ids; their
    number.

    Raises Unavailable if Kafka does not accept them.
    """
    try:
        messages = _newest(kafka, count)
        producer = Producer({"bootstrap.servers": kafka.bootstrap, "enable.idempotence": True})
        for message in messages:
            partition = message.partition()
            assert partition is not None
            producer.produce(kafka.topics.feedback, message.value(), message.key(), partition)
        if producer.flush(TIMEOUT_S):
            raise Unavailable("Kafka does not accept events")
    except KafkaException as error:
        raise Unavailable(f"Kafka does not answer: {error.args[0]}") from None
    return len(messages)


def _newest(kafka: KafkaSettings, count: int) -> list[Message]:
    """About `count` of the newest feedback records, an equal share of each partition."""
    consumer = Consumer(
        {
            "bootstrap.servers": kafka.bootstrap,
            "group.id": "afterclick-resend",
            "enable.auto.commit": False,
        }
    )
    messages: list[Message] = []
    try:
        for number in range(kafka.partitions):
            partition = TopicPartition(kafka.topics.feedback, number)
            first, end = consumer.get_watermark_offsets(partition, timeout=TIMEOUT_S)
            share = min(-(-count // kafka.partitions), end - first)
            if share > 0:
                consumer.assign([TopicPartition(kafka.topics.feedback, number, end - share)])
                batch = consumer.consume(share, timeout=TIMEOUT_S)
                messages += [m for m in batch if not m.error()]
    finally:
        consumer.close()
    return messages
