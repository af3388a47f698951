"""Follow a Kafka topic in a thread, from where the caller says, without a consumer group.

reads   any topic, all its partitions

The thread waits for the broker and the topic to appear, and goes on after a broker's outage.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import structlog
from confluent_kafka import (
    OFFSET_BEGINNING,
    OFFSET_END,
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    TopicPartition,
)

log = structlog.get_logger()
Handler = Callable[[Sequence[Message]], None]
Start = Callable[[Mapping[int, int]], Mapping[int, int]]


def from_beginning(ends: Mapping[int, int]) -> Mapping[int, int]:
    """Start at the first record of each partition."""
    return dict.fromkeys(ends, OFFSET_BEGINNING)


def from_end(ends: Mapping[int, int]) -> Mapping[int, int]:
    """Start at the records that come after those counted in `ends`."""
    return ends


@dataclass
class TopicReader:
    """Calls `handle` in its own thread with batches of records, in order within each partition.

    `start` gets the end offset of each partition, read before anything else, and answers with the offsets
    to begin at. `caught_up` is set once everything that stood in the topic at the start was handled.
    """

    bootstrap: str
    topic: str
    handle: Handler
    start_at: Start = from_beginning
    idle: Callable[[], None] = field(default=lambda: None)
    poll_s: float = 0.2
    caught_up: threading.Event = field(default_factory=threading.Event)
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to read; returns at once."""
        self._thread = threading.Thread(target=self._run, name=f"read-{self.topic}", daemon=True)
        self._thread.start()

    def stop(self, timeout_s: float = 3.0) -> None:
        """Stop and wait for the thread."""
        self._stop.set()
        if self._thread:
            self._thread.join(timeout_s)

    def _run(self) -> None:
        while not self._stop.is_set():
            consumer = Consumer(self._config())
            try:
                self._follow(consumer)
            except KafkaException as error:
                log.warning("reading stopped; trying again", topic=self.topic, error=str(error))
            except Exception:
                log.exception("reading failed; trying again", topic=self.topic)
            finally:
                consumer.close()
            self._stop.wait(0.5)

    def _config(self) -> dict[str, object]:
        return {
            "bootstrap.servers": self.bootstrap,
            "group.id": "afterclick-serving",  # required by the library; offsets are never committed
            "enable.auto.commit": False,
            "enable.partition.eof": False,
            "auto.offset.reset": "earliest",
            "fetch.wait.max.ms": 200,
            "reconnect.backoff.max.ms": 1000,
            "topic.metadata.refresh.interval.ms": 10_000,
            "log_level": 0,
        }

    def _follow(self, consumer: Consumer) -> None:
        ends = self._wait_for_topic(consumer)
        if ends is None:
            return
        starts = self.start_at(ends)
        consumer.assign([TopicPartition(self.topic, p, o) for p, o in starts.items()])
        behind = {p: end for p, end in ends.items() if _remains(starts[p], end)}
        while not self._stop.is_set():
            batch = self._poll(consumer)
            if batch:
                self.handle(batch)
            else:
                self.idle()
            if not self.caught_up.is_set():
                self._check_caught_up(consumer, behind)

    def _poll(self, consumer: Consumer) -> list[Message]:
        first = consumer.poll(self.poll_s)
        if first is None:
            return []
        messages = [first, *consumer.consume(1000, 0)]
        for message in messages:
            error = message.error()
            if error is not None and error.code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
                raise KafkaException(error)
        return [m for m in messages if m.error() is None]

    def _check_caught_up(self, consumer: Consumer, behind: dict[int, int]) -> None:
        for at in consumer.position([TopicPartition(self.topic, p) for p in behind]):
            if at.offset >= behind[at.partition]:
                del behind[at.partition]
        if not behind:
            self.caught_up.set()

    def _wait_for_topic(self, consumer: Consumer) -> dict[int, int] | None:
        """The end offset of each partition, once the topic is there; None when told to stop."""
        while not self._stop.is_set():
            try:
                found = consumer.list_topics(self.topic, timeout=2.0).topics[self.topic]
                if found.error is None and found.partitions:
                    return {p: self._end(consumer, p) for p in found.partitions}
            except KafkaException:
                pass  # the broker is away: that is what this loop waits for
            self._stop.wait(0.5)
        return None

    def _end(self, consumer: Consumer, partition: int) -> int:
        _, end = consumer.get_watermark_offsets(TopicPartition(self.topic, partition), timeout=2.0)
        return int(end)


def _remains(start: int, end: int) -> bool:
    if start in (OFFSET_END, end):
        return False
    return end > 0
