"""What is on the interaction topics: as records, applied to the state, archived."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import redis

from afterclick.io.kafka_log import KafkaLog
from afterclick.settings import Settings
from afterclick.state import TopicPartition
from streaming.apply import Applier, ApplyConfig
from streaming.archive_table import IMPRESSIONS, create_archive
from streaming.archive_task import ArchiveTask
from streaming.connection import Connection, NodeConnection, load_functions
from streaming.exposures import ExposureConfig
from streaming.positions import applied_offsets
from streaming.records import Record
from streaming.weights import require_weights


def partition_logs(
    settings: Settings, *topics: str
) -> Iterator[tuple[TopicPartition, list[Record]]]:
    """The records of each partition that has any, in offset order; default: of interactions."""
    with KafkaLog(settings.kafka) as log:
        for name, held in log.ranges(*(topics or settings.kafka.topics.interactions)).items():
            records = [
                Record(
                    message.offset() or 0,
                    message.key(),
                    message.value(),
                    float(message.timestamp()[1]),
                )
                for message in log.read({name: held})
            ]
            if records:
                yield name, records


def apply_log(settings: Settings, connection: Connection | None = None) -> None:
    """Apply what the state has not applied yet, as the stream does."""
    applier = Applier(ApplyConfig.of(settings, 2), connection or NodeConnection(settings.redis.url))
    logs = dict(partition_logs(settings))
    with redis.Redis.from_url(settings.redis.url) as client:
        applied = applied_offsets(client, settings.redis.keys, logs)
        require_weights(client, settings.redis.keys, settings.stream.signals, logs)
    for name, records in logs.items():
        new = [record for record in records if record.offset > applied[name]]
        list(applier.apply(*name, new))


def archive_log(settings: Settings) -> None:
    """Archive and count what is on the topics and not archived yet, as the archive query does."""
    with redis.Redis.from_url(settings.redis.url) as client:
        load_functions(client)
    create_archive(settings.archive)
    create_archive(settings.impression_archive, kind=IMPRESSIONS)
    task = ArchiveTask(settings, ExposureConfig.of(settings))
    for (topic, partition), records in partition_logs(settings, *settings.kafka.topics.logged):
        columns = {
            "key": [record.key for record in records],
            "value": pa.array([record.value for record in records], pa.binary()),
            "topic": [topic] * len(records),
            "partition": [partition] * len(records),
            "offset": [record.offset for record in records],
            "timestamp": [int(record.log_ms * 1000) for record in records],
        }
        list(task([pa.RecordBatch.from_pydict(columns)]))
