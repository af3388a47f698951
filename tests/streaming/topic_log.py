"""What is on the interaction topics: as records, applied to the state, archived."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import redis

from afterclick.io.kafka_log import KafkaLog
from afterclick.settings import Settings
from afterclick.state import TopicPartition
from streaming.apply import Applier, ApplyConfig
from streaming.archive_table import ArchiveAppender, create_archive
from streaming.connection import Connection, NodeConnection
from streaming.forgotten_users import ForgottenUsers
from streaming.positions import applied_offsets
from streaming.records import Record
from streaming.weights import require_weights


def partition_logs(settings: Settings) -> Iterator[tuple[TopicPartition, list[Record]]]:
    """The records of each partition that has any, in offset order."""
    with KafkaLog(settings.kafka) as log:
        for name, held in log.ranges(*settings.kafka.topics.interactions).items():
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
    """Archive what is on the topics and not archived yet, as the archive query does."""
    server = settings.redis
    forgotten = ForgottenUsers(server.url, server.cluster, server.keys)
    create_archive(settings.archive)
    ahead_ms = settings.stream.ahead_s * 1000
    append = ArchiveAppender(settings.archive, forgotten, max_ahead_ms=ahead_ms)
    for (topic, partition), records in partition_logs(settings):
        columns = {
            "key": [record.key for record in records],
            "value": pa.array([record.value for record in records], pa.binary()),
            "topic": [topic] * len(records),
            "partition": [partition] * len(records),
            "offset": [record.offset for record in records],
            "timestamp": [int(record.log_ms * 1000) for record in records],
        }
        list(append([pa.RecordBatch.from_pydict(columns)]))
