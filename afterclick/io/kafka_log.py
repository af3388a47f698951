"""Offsets and records of Kafka topics, read without a consumer group.

reads   topic  any
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Self

import stamina

from afterclick.errors import Unavailable
from afterclick.io.kafka_clients import ConnectionErrors, create_admin, create_consumer
from afterclick.settings import KafkaSettings
from afterclick.state import TopicPartition

if TYPE_CHECKING:
    from confluent_kafka import Consumer, Message

TIMEOUT_S = 10.0
_BATCH = 1000
_OPTIONS = {
    "group.id": "afterclick",  # required by the library; the group is never joined
    "enable.auto.commit": False,
    "enable.partition.eof": True,
    "auto.offset.reset": "earliest",
}


@dataclass(frozen=True, slots=True)
class OffsetRange:
    """Offsets of one partition from `begin` up to, but not including, `end`."""

    begin: int
    end: int

    def __len__(self) -> int:
        return max(0, self.end - self.begin)

    def newest(self, n: int) -> OffsetRange:
        """The last `n` offsets of the range."""
        return OffsetRange(max(self.begin, self.end - n), self.end)


OffsetRanges = dict[TopicPartition, OffsetRange]


class KafkaLog:
    """Reads topics over one connection, opened on first use and again after an error.

    Threads may share it; they wait for one another. Every method raises Unavailable where Kafka
    does not answer within `timeout_s`.
    """

    def __init__(self, kafka: KafkaSettings, timeout_s: float = TIMEOUT_S) -> None:
        self._kafka, self._timeout_s = kafka, timeout_s
        self._lock = threading.RLock()
        self._consumer: Consumer | None = None
        self._errors = ConnectionErrors(kafka)

    def exists(self, topic: str) -> bool:
        """Whether the topic exists."""
        with self._connected() as consumer:
            return bool(_partition_numbers(consumer, topic, self._timeout_s))

    def partitions(self, *topics: str) -> list[TopicPartition]:
        """Every partition of the topics. Raises Unavailable for a topic that does not exist."""
        found: list[TopicPartition] = []
        with self._connected() as consumer:
            for topic in topics:
                numbers = _partition_numbers(consumer, topic, self._timeout_s)
                if not numbers:
                    raise Unavailable(
                        f"topic {topic} does not exist; `afterclick up` or `ingest` creates it"
                    )
                found += [TopicPartition(topic, number) for number in numbers]
        return found

    def topic_ids(self, *topics: str) -> dict[str, str]:
        """The id that Kafka gave each topic when it was created."""
        from confluent_kafka import TopicCollection

        with self._connected():
            admin = create_admin(self._kafka)  # while it exists, its futures may be awaited
            found = admin.describe_topics(
                TopicCollection(list(topics)), request_timeout=self._timeout_s
            )
            return {topic: str(future.result().topic_id) for topic, future in found.items()}

    def ranges(self, *topics: str) -> OffsetRanges:
        """The offsets that each partition of the topics holds now."""
        with self._connected() as consumer:
            return {
                partition: OffsetRange(*_watermarks(consumer, partition, self._timeout_s))
                for partition in self.partitions(*topics)
            }

    def starts(self, ranges: OffsetRanges, since: datetime) -> dict[TopicPartition, int]:
        """The first offset of each range that was written at or after `since`, else its end."""
        from confluent_kafka import TopicPartition as Moment

        since_ms = round(since.timestamp() * 1000)
        with self._connected() as consumer:
            found = consumer.offsets_for_times(
                [Moment(*partition, since_ms) for partition in ranges], timeout=self._timeout_s
            )
        offsets = {TopicPartition(at.topic, at.partition): at.offset for at in found}
        return {
            partition: offsets[partition] if offsets[partition] >= 0 else span.end
            for partition, span in ranges.items()
        }

    def read(self, ranges: Mapping[TopicPartition, OffsetRange]) -> Iterator[Message]:
        """The records of these ranges, in order within each partition."""
        from confluent_kafka import TopicPartition as Start

        ends = {partition: span.end for partition, span in ranges.items() if len(span)}
        with self._connected() as consumer:
            consumer.assign([Start(*partition, ranges[partition].begin) for partition in ends])
            try:
                yield from self._until(consumer, ends)
            finally:
                if self._consumer is consumer:  # not closed in between
                    consumer.unassign()

    def last(self, topic: str, n: int) -> list[Message]:
        """Up to `n` of the newest records, the same share of each partition, newest first."""
        ranges = self.ranges(topic)
        share = -(-n // len(ranges))
        records = list(self.read({p: span.newest(share) for p, span in ranges.items()}))
        return sorted(records, key=lambda record: -record.timestamp()[1])[:n]

    def close(self) -> None:
        """Close the connection; the next call opens another."""
        with self._lock:
            consumer, self._consumer = self._consumer, None
            if consumer is not None:
                consumer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _until(self, consumer: Consumer, ends: dict[TopicPartition, int]) -> Iterator[Message]:
        """The assigned records below `ends`; ends are removed as they are reached."""
        from confluent_kafka import KafkaError, KafkaException

        while ends:
            first = consumer.poll(self._timeout_s)
            if first is None:
                names, server = ", ".join(map(str, ends)), self._kafka.bootstrap
                raise Unavailable(
                    f"Kafka at {server} sent no record of {names} in {self._timeout_s:g} s"
                )
            for message in (first, *consumer.consume(_BATCH, 0)):
                partition = TopicPartition(message.topic() or "", message.partition() or 0)
                error = message.error()
                if error is not None and error.code() == KafkaError._PARTITION_EOF:
                    ends.pop(partition, None)
                    continue
                if error is not None:
                    raise KafkaException(error)
                offset, end = message.offset() or 0, ends.get(partition, 0)
                if offset + 1 >= end:
                    ends.pop(partition, None)
                if offset < end:
                    yield message

    @contextmanager
    def _connected(self) -> Iterator[Consumer]:
        from confluent_kafka import KafkaException

        with self._lock:
            if self._consumer is None:
                self._errors = ConnectionErrors(self._kafka)
                self._consumer = create_consumer(self._kafka, _OPTIONS, self._errors)
            try:
                yield self._consumer
            except KafkaException as error:
                if self._consumer is not None:
                    self._consumer.poll(0)  # reports why it is not connected
                self.close()
                reason = self._errors.refusal or _reason(error)
                raise Unavailable(f"Kafka at {self._kafka.bootstrap}: {reason}") from None
            except Unavailable:
                self.close()
                raise


def read_compacted(kafka: KafkaSettings, topic: str, timeout_s: float = 30.0) -> dict[bytes, bytes]:
    """Key → value of the newest record of each key, in the order of the records; deleted keys are
    left out.

    A topic that does not exist is empty. Raises Unavailable.
    """
    records: dict[bytes, bytes] = {}
    with KafkaLog(kafka, timeout_s) as log:
        if not log.exists(topic):
            return records
        for message in log.read(log.ranges(topic)):
            key, value = message.key() or b"", message.value()
            records.pop(key, None)
            if value is not None:
                records[key] = value
    return records


def read_compacted_keys(kafka: KafkaSettings, topic: str, timeout_s: float = 30.0) -> set[bytes]:
    """The keys of `read_compacted`, without the memory for its values."""
    keys: set[bytes] = set()
    with KafkaLog(kafka, timeout_s) as log:
        if not log.exists(topic):
            return keys
        for message in log.read(log.ranges(topic)):
            change = keys.discard if message.value() is None else keys.add
            change(message.key() or b"")
    return keys


def lag(ranges: Mapping[TopicPartition, OffsetRange], applied: Mapping[TopicPartition, int]) -> int:
    """Records after the last applied offset of each partition (−1: none is applied)."""
    return sum(
        max(0, span.end - max(applied.get(partition, -1) + 1, span.begin))
        for partition, span in ranges.items()
    )


def _partition_numbers(consumer: Consumer, topic: str, timeout_s: float) -> list[int]:
    """Partitions of a topic; empty where it does not exist."""
    metadata = consumer.list_topics(topic, timeout=timeout_s).topics[topic]
    return [] if metadata.error is not None else sorted(metadata.partitions)


def _watermarks(consumer: Consumer, partition: TopicPartition, timeout_s: float) -> tuple[int, int]:
    """First and next offset. Retries while the partition's leader is being elected."""
    from confluent_kafka import TopicPartition as Partition

    retry = stamina.RetryingCaller(None, timeout=timeout_s, wait_max=0.5, wait_jitter=0.1)
    low, high = retry(
        _no_leader, consumer.get_watermark_offsets, Partition(*partition), timeout=timeout_s
    )
    return int(low), int(high)


def _no_leader(error: Exception) -> bool:
    from confluent_kafka import KafkaError, KafkaException

    election = (KafkaError.NOT_LEADER_FOR_PARTITION, KafkaError.LEADER_NOT_AVAILABLE)
    return isinstance(error, KafkaException) and error.args[0].code() in election


def _reason(error: Exception) -> str:
    first = error.args[0] if error.args else error
    return str(first.str()) if hasattr(first, "str") else str(first)
