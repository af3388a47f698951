"""What is on the interaction topics: as records, applied to the state, archived as Parquet."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import redis

from afterclick.io.kafka_log import KafkaLog
from afterclick.settings import Settings
from afterclick.state import TopicPartition
from streaming.apply import Applier, ApplyConfig
from streaming.connection import Connection, NodeConnection
from streaming.forgotten_users import ForgottenUsers
from streaming.positions import applied_offsets
from streaming.records import Record
from streaming.worker import decode_batches


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
    for name, records in logs.items():
        list(applier.apply(*name, records[applied[name] + 1 :]))


def archive_log(settings: Settings) -> None:
    """Write the Parquet log of everything on the topics, as the archive query does."""
    server = settings.redis
    forgotten = ForgottenUsers(server.url, server.cluster, server.keys)
    folder = Path(settings.archive) / "log_day=2026-01-01"
    folder.mkdir(parents=True, exist_ok=True)
    for (topic, partition), records in partition_logs(settings):
        columns = {
            "key": [record.key for record in records],
            "value": pa.array([record.value for record in records], pa.binary()),
            "topic": [topic] * len(records),
            "partition": [partition] * len(records),
            "offset": [record.offset for record in records],
            "timestamp": [int(record.log_ms * 1000) for record in records],
        }
        batches = list(decode_batches([pa.RecordBatch.from_pydict(columns)], forgotten))
        if batches:
            table = pa.Table.from_batches(batches)
            pq.write_table(table, folder / f"{topic}-{partition}.parquet")
