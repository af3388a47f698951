"""What runs in Spark's Python workers: apply a batch, apply a row, send outputs.

reads   redis  what streaming.apply reads; from the row applier also :announced
writes  redis  what streaming.apply writes
        topic  <topic>.dlq; from the row applier also state-changes

`RowApplier` sends its outputs itself and returns null. Spark's own sink is of no use to it: between
two rows of a partition Spark waits for the next one and does not read the worker's answers, so the
outputs would stay in the socket for as long as the partition is quiet.

Run as `python -m streaming.worker`, the module is Spark's Python daemon.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from itertools import groupby
from typing import Any
from zipimport import zipimporter

import pyarrow as pa
import structlog
from confluent_kafka import KafkaError, KafkaException, Message

from afterclick.io.kafka_clients import create_producer
from afterclick.io.kafka_log import KafkaLog, OffsetRange
from afterclick.settings import KafkaSettings
from afterclick.state import TopicPartition
from afterclick.topics import MAX_RECORD_BYTES
from streaming.apply import Applier, ApplyConfig
from streaming.connection import connect
from streaming.records import Output, Record

log = structlog.get_logger()

SOURCE_COLUMNS = ("key", "value", "topic", "partition", "offset", "timestamp")
OUTPUT_COLUMNS = (
    "topic string, key binary, value binary, partition int, "
    "headers array<struct<key: string, value: binary>>"
)
_HEADERS = pa.list_(pa.struct([("key", pa.string()), ("value", pa.binary())]))
_OUTPUT_SCHEMA = pa.schema(
    [
        ("topic", pa.string()),
        ("key", pa.binary()),
        ("value", pa.binary()),
        ("partition", pa.int32()),
        ("headers", _HEADERS),
    ]
)
_TIME = pa.timestamp("us", tz="UTC")
_DLQ_TIMEOUT_S = 30.0
_GC_ALLOCATIONS = 50_000


def log_holds_records(
    kafka: KafkaSettings, partition: TopicPartition, offsets: OffsetRange
) -> bool:
    """Whether the partition holds a record at any of these offsets. Raises Unavailable."""
    with KafkaLog(kafka) as kafka_log:
        return any(True for _ in kafka_log.read({partition: offsets}))


def by_partition(batches: Iterable[pa.RecordBatch]) -> Iterator[tuple[str, int, list[Record]]]:
    """The records of Arrow batches (`SOURCE_COLUMNS`), in order, grouped by topic and partition."""
    for batch in batches:
        columns = {name: batch.column(name).to_pylist() for name in SOURCE_COLUMNS}
        log_ms = (us / 1000 for us in columns["timestamp"])
        records = map(Record, columns["offset"], columns["key"], columns["value"], log_ms)
        partitions = zip(columns["topic"], columns["partition"], strict=True)
        rows = zip(partitions, records, strict=True)
        for (topic, number), group in groupby(rows, key=lambda row: row[0]):
            yield topic, number, [record for _, record in group]


def apply_batches(
    config: ApplyConfig, kafka: KafkaSettings, batches: Iterable[pa.RecordBatch]
) -> Iterator[pa.RecordBatch]:
    """Micro-batch: apply one Kafka partition's rows in offset order; returns `OUTPUT_COLUMNS`."""
    connection = connect(config.url, config.cluster)
    log_holds = partial(log_holds_records, kafka)
    applier = Applier(config, connection, sender(kafka).send_to_dlq, log_holds)
    for topic, partition, records in by_partition(batches):
        yield _outputs_to_arrow(list(applier.apply(topic, partition, records)))


def _outputs_to_arrow(outputs: list[Output]) -> pa.RecordBatch:
    headers = [
        [{"key": name, "value": value} for name, value in output.headers] or None
        for output in outputs
    ]
    columns: list[list[Any]] = [
        [output.topic for output in outputs],
        [output.key for output in outputs],
        [output.value for output in outputs],
        [output.partition for output in outputs],
        headers,
    ]
    return record_batch(columns, _OUTPUT_SCHEMA)


def record_batch(columns: Sequence[Sequence[Any]], schema: pa.Schema) -> pa.RecordBatch:
    """A batch of columns.

    Times are microseconds: Arrow takes 50 µs to convert one datetime with a time zone.
    """
    arrays = [
        pa.array(column, pa.int64()).cast(kind.type)
        if kind.type == _TIME
        else pa.array(column, kind.type)
        for column, kind in zip(columns, schema, strict=True)
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


@dataclass
class RowApplier:
    """Real-time: applies one row. One instance per Spark task; connects with the first row.

    It first skips what the query before it, which still runs, has finished since this one was
    planned: to apply that once more would take the processor from the rows that wait.
    """

    config: ApplyConfig
    kafka: KafkaSettings
    applier: Applier | None = None
    sender: Sender | None = None
    _finished: int | None = field(default=-1, init=False)
    """Offset up to which rows are applied and published; None: this task has reached it."""

    def __call__(
        self,
        key: bytes | None,
        value: bytes | None,
        topic: str,
        partition: int,
        offset: int,
        log_us: int,
    ) -> None:
        if self.applier is None or self.sender is None:
            self.sender = sender(self.kafka)
            connection = connect(self.config.url, self.config.cluster)
            log_holds = partial(log_holds_records, self.kafka)
            self.applier = Applier(self.config, connection, self.sender.send_to_dlq, log_holds)
        if self._finished is not None and self.config.faults.fence:
            if offset > self._finished:
                self._finished = self._read_finished(self.applier, topic, partition)
            if offset <= self._finished:
                return
            self._finished = None
        record = Record(offset, _bytes(key), _bytes(value), log_us / 1000)
        for output in self.applier.apply(topic, partition, [record]):
            self.sender.send(output, partial(self._delivered, offset))

    def _read_finished(self, applier: Applier, topic: str, partition: int) -> int:
        keys = self.config.keys
        names = (keys.applied_offset(topic, partition), keys.published_offset(topic, partition))
        (values,) = applier.connection.call([("MGET", *names)])
        return min(-1 if value is None else int(value) for value in values)

    def _delivered(self, offset: int) -> None:
        if self.applier is not None:
            self.applier.published_offset = offset  # written to Redis with the next row


class Sender:
    """Sends outputs in order and without lingering. The next call raises a failed delivery."""

    def __init__(self, kafka: KafkaSettings) -> None:
        self._error: KafkaError | None = None
        self._producer = create_producer(
            kafka,
            {
                "enable.idempotence": True,
                "linger.ms": 0,
                "message.max.bytes": MAX_RECORD_BYTES,
                "socket.nagle.disable": True,
                "log_level": 2,
            },
        )

    def send(self, output: Output, delivered: Callable[[], None] | None = None) -> None:
        """Send an output; a later call runs `delivered` once it is acknowledged.

        Raises KafkaException.
        """
        partition: Any = {} if output.partition is None else {"partition": output.partition}
        report = partial(self._on_delivery, output, delivered)
        try:
            self._producer.produce(
                output.topic,
                key=output.key,
                value=output.value,
                headers=list(output.headers),
                on_delivery=report,
                **partition,
            )
        except KafkaException as error:
            if error.args[0].code() != KafkaError.MSG_SIZE_TOO_LARGE:
                raise
            report(error.args[0], None)
        self._producer.poll(0)
        self._raise_error()

    def send_to_dlq(self, dead_letters: Sequence[Output]) -> None:
        """Send dead letters and wait for their acknowledgement. Raises KafkaException."""
        for dead_letter in dead_letters:
            self.send(dead_letter)
        if dead_letters and self._producer.flush(_DLQ_TIMEOUT_S):
            raise KafkaException(
                KafkaError(KafkaError._TIMED_OUT, "a dead letter could not be delivered")
            )
        self._raise_error()

    def _raise_error(self) -> None:
        error, self._error = self._error, None  # the next task starts without it
        if error is not None:
            raise KafkaException(error)

    def _on_delivery(
        self,
        output: Output,
        delivered: Callable[[], None] | None,
        error: KafkaError | None,
        _: Message | None,
    ) -> None:
        """A record that the topic refuses as too large is left out: the next ones must follow.

        Readers of `state-changes` notice the gap, and the log still has the rejected record.
        """
        if error is not None and error.code() == KafkaError.MSG_SIZE_TOO_LARGE:
            size = len(output.value or b"")
            log.error("too large for its topic, left out", topic=output.topic, bytes=size)
        else:
            self._error = error or self._error
        if delivered is not None and self._error is None:
            delivered()


@cache
def sender(kafka: KafkaSettings) -> Sender:
    """The process's sender: a worker outlives its tasks, and so do undelivered outputs."""
    return Sender(kafka)


def _bytes(value: bytes | None) -> bytes | None:
    return None if value is None else bytes(value)  # Spark passes bytearrays


def preload() -> None:
    """Import what every worker needs, so that they share it instead of importing it each.

    PyArrow imports pandas with its first array: about a second of CPU and 41 MiB per worker.
    """
    import pyspark.sql.functions
    import pyspark.worker  # noqa: F401

    import streaming.worker  # noqa: F401 (the module that tasks refer to; this one is __main__)

    pa.array([])


def drop_archives() -> None:
    """Search no zip archive for modules any more.

    Spark lists archives of its own Python package. Every task discards what is known of the path,
    and Python then reads the directory of each archive again: 0.1 s of CPU per task.
    """
    cache = sys.path_importer_cache
    archives = {path for path, finder in cache.items() if isinstance(finder, zipimporter)}
    for path in archives:
        del cache[path]
    sys.path[:] = [path for path in sys.path if path not in archives]


def run_daemon() -> None:
    """Spark's Python daemon with the workers' imports done: forks start at once and share memory.

    The imported objects are excluded from garbage collection: Spark collects after each task, which
    took a third of a worker's time.
    """
    from pyspark.daemon import manager

    preload()
    drop_archives()
    gc.freeze()
    gc.set_threshold(_GC_ALLOCATIONS)
    manager()


if __name__ == "__main__":
    run_daemon()
