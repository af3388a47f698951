"""Read Kafka topics without a consumer group: follow one in a thread, and count dead letters.

reads   topic  any, all its partitions; <topic>.dlq

Waits for the broker and the topic to appear, and continues after a broker outage. Partitions that
are added to the topic are read within seconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from threading import Event, Thread
from typing import Any

import structlog
from confluent_kafka import (
    OFFSET_BEGINNING,
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    TopicPartition,
)

from afterclick.io.background import Heartbeat
from afterclick.io.kafka_clients import create_consumer
from afterclick.io.kafka_log import KafkaLog
from afterclick.settings import KafkaSettings
from afterclick.topics import dlq

log = structlog.get_logger()
POLL_S = 0.2
METADATA_S = 2.0
RETRY_S = 0.5
MAX_BATCH = 1000
PARTITIONS_S = 10.0
"""How often the topic is asked for added partitions."""
_OPTIONS = {
    "group.id": "afterclick-serving",  # required by the library; never committed
    "enable.auto.commit": False,
    "enable.partition.eof": False,
    "auto.offset.reset": "earliest",
    "fetch.wait.max.ms": 200,
    "reconnect.backoff.max.ms": 1000,
    "topic.metadata.refresh.interval.ms": 10_000,
}


def from_beginning(ends: Mapping[int, int]) -> Mapping[int, int]:
    """Start at the first record of each partition."""
    return dict.fromkeys(ends, OFFSET_BEGINNING)


@dataclass
class TopicReader:
    """Calls `handle` in its own thread with batches of records, in order within each partition.

    `start_offsets` maps the end offset of each partition, read before anything else, to the offset
    to start at. `caught_up` is set once all records that the topic held at the start are handled.
    """

    kafka: KafkaSettings
    topic: str
    handle: Callable[[Sequence[Message]], None]
    start_offsets: Callable[[Mapping[int, int]], Mapping[int, int]] = from_beginning
    idle: Callable[[], None] = lambda: None
    """Called when a poll returns no records."""
    name: str = ""
    """Of thread and heartbeat; default: by the topic."""
    caught_up: Event = field(default_factory=Event)
    heartbeat: Heartbeat = field(init=False)
    _stop: Event = field(default_factory=Event)
    _thread: Thread | None = None

    def __post_init__(self) -> None:
        self.name = self.name or f"read-{self.topic}"
        self.heartbeat = Heartbeat(self.name)

    def start(self) -> None:
        self.heartbeat.beat()
        self._thread = Thread(target=self._run, name=self.name, daemon=True)
        self._thread.start()

    def stop(self, timeout_s: float = 3.0) -> None:
        """Stop and wait for the thread."""
        self._stop.set()
        if self._thread:
            self._thread.join(timeout_s)

    def _run(self) -> None:
        while not self._stop.is_set():
            consumer = create_consumer(self.kafka, _OPTIONS)
            try:
                self._follow(consumer)
            except KafkaException as error:
                log.warning("reading failed; trying again", topic=self.topic, error=str(error))
            except Exception:
                log.exception("reading failed; trying again", topic=self.topic)
            finally:
                consumer.close()
            self._stop.wait(RETRY_S)
        self.heartbeat.beat(None)

    def _follow(self, consumer: Consumer) -> None:
        ends = self._wait_for_topic(consumer)
        if ends is None:
            return
        starts = self.start_offsets(ends)
        consumer.assign([TopicPartition(self.topic, p, offset) for p, offset in starts.items()])
        behind = {p: end for p, end in ends.items() if end > 0 and starts[p] != end}
        check_at = time.monotonic() + PARTITIONS_S
        while not self._stop.is_set():
            self.heartbeat.beat()
            batch = self._poll(consumer)
            if batch:
                self.handle(batch)
            else:
                self.idle()
            if not self.caught_up.is_set():
                self._check_caught_up(consumer, behind)
            if time.monotonic() > check_at:
                check_at = time.monotonic() + PARTITIONS_S
                if self._has_partitions_besides(ends, consumer):
                    return  # and follow all of them

    def _poll(self, consumer: Consumer) -> list[Message]:
        first = consumer.poll(POLL_S)
        if first is None:
            return []
        messages = [first, *consumer.consume(MAX_BATCH, 0)]
        for message in messages:
            error = message.error()
            if error is not None and error.code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
                raise KafkaException(error)
        return [message for message in messages if message.error() is None]

    def _check_caught_up(self, consumer: Consumer, behind: dict[int, int]) -> None:
        for position in consumer.position([TopicPartition(self.topic, p) for p in behind]):
            if position.offset >= behind[position.partition]:
                del behind[position.partition]
        if not behind:
            self.caught_up.set()

    def _has_partitions_besides(self, known: Mapping[int, int], consumer: Consumer) -> bool:
        added = self._partitions(consumer) - known.keys()
        if added:
            log.info("partitions were added", topic=self.topic, partitions=sorted(added))
        return bool(added)

    def _wait_for_topic(self, consumer: Consumer) -> dict[int, int] | None:
        """The end offset of each partition, once the topic exists; None after `stop`."""
        while not self._stop.is_set():
            self.heartbeat.beat()
            try:
                if partitions := self._partitions(consumer):
                    return {p: self._end(consumer, p) for p in partitions}
            except KafkaException:
                consumer.poll(0)  # logs a refused connection; otherwise keep waiting
            self._stop.wait(RETRY_S)
        return None

    def _partitions(self, consumer: Consumer) -> set[int]:
        """The topic's partitions; empty where it does not exist. Raises KafkaException."""
        metadata = consumer.list_topics(self.topic, timeout=METADATA_S).topics[self.topic]
        return set() if metadata.error is not None else set(metadata.partitions)

    def _end(self, consumer: Consumer, partition: int) -> int:
        topic_partition = TopicPartition(self.topic, partition)
        return int(consumer.get_watermark_offsets(topic_partition, timeout=METADATA_S)[1])


TIMEOUT_S = 5.0
NEWEST = 10
PREVIEW = 200
"""Characters shown of a record."""


class DeadLetterReader:
    """Reads the dead-letter topics. Every method blocks, and raises Unavailable."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._topics = settings.topics.logged
        self._log = KafkaLog(settings, TIMEOUT_S)
        self.close = self._log.close

    def counts(self) -> dict[str, int]:
        """Dead letters per topic of events."""
        return {
            topic: sum(len(offsets) for offsets in self._log.ranges(dlq(topic)).values())
            for topic in self._topics
        }

    def newest(self, n: int = NEWEST) -> list[dict[str, Any]]:
        """Up to `n` per topic, newest first."""
        letters = [letter for topic in self._topics for letter in self._log.last(dlq(topic), n)]
        letters.sort(key=lambda letter: -letter.timestamp()[1])
        return [_row(letter) for letter in letters]


def _row(letter: Message) -> dict[str, Any]:
    return {
        "topic": letter.topic(),
        "offset": letter.offset(),
        "headers": {str(header[0]): _text(header[1]) for header in letter.headers() or ()},
        "value": _text(letter.value())[:PREVIEW],
    }


def _text(raw: bytes | str | None) -> str:
    return raw.decode(errors="replace") if isinstance(raw, bytes) else raw or ""
