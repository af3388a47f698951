"""The live query, micro-batch trigger: grouped calls, for backlog and throughput.

reads   topic  reviews, feedback
writes  redis  what streaming.apply writes
        topic  state-changes, by Spark's sink; <topic>.dlq, by the workers
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.streaming.query import StreamingQuery
from pyspark.sql.streaming.readwriter import DataStreamWriter

from afterclick.settings import Settings
from streaming.apply import Applier, Output, Plan
from streaming.connection import connect
from streaming.kafka_source import Offsets, frame, runs
from streaming.row import sender

OUTPUT = "topic string, key binary, value binary, partition int, headers array<struct<key: string, value: binary>>"
_HEADERS = pa.list_(pa.struct([("key", pa.string()), ("value", pa.binary())]))
_SCHEMA = pa.schema(
    [
        ("topic", pa.string()),
        ("key", pa.binary()),
        ("value", pa.binary()),
        ("partition", pa.int32()),
        ("headers", _HEADERS),
    ]
)


def start(
    spark: SparkSession, settings: Settings, plan: Plan, offsets: Offsets | None, checkpoint: Path
) -> StreamingQuery:
    """Start the query from `offsets`. Where the checkpoint folder holds a checkpoint, that one decides."""
    source = frame(
        spark, settings.kafka, offsets, settings.stream.batch_events, settings.stream.fence
    )
    applied = source.mapInArrow(partial(apply_batches, plan, settings.kafka.bootstrap), OUTPUT)
    return (
        to_kafka(applied, settings, checkpoint)
        .queryName("live")
        .trigger(processingTime="0 seconds")
        .start()
    )


def to_kafka(outputs: DataFrame, settings: Settings, checkpoint: Path) -> DataStreamWriter:
    """A writer of output rows to the topics they name."""
    return (
        outputs.writeStream.format("kafka")
        .option("kafka.bootstrap.servers", settings.kafka.bootstrap)
        .option("kafka.compression.type", "lz4")
        .option("checkpointLocation", str(checkpoint))
        .outputMode("update")
    )


def apply_batches(
    plan: Plan, bootstrap: str, batches: Iterable[pa.RecordBatch]
) -> Iterator[pa.RecordBatch]:
    """Apply one Kafka partition's rows of a micro-batch, in offset order. Runs in a Spark worker."""
    applier = Applier(plan, connect(plan.url, plan.cluster), sender(bootstrap).bury)
    for topic, partition, records in runs(batches):
        yield to_arrow(applier.apply(topic, partition, records))


def to_arrow(outputs: Iterable[Output]) -> pa.RecordBatch:
    """Output records as Arrow rows for the Kafka sink."""
    rows = list(outputs)
    headers = [
        [{"key": name, "value": value} for name, value in row.headers] if row.headers else None
        for row in rows
    ]
    columns = [
        pa.array([row.topic for row in rows], pa.string()),
        pa.array([row.key for row in rows], pa.binary()),
        pa.array([row.value for row in rows], pa.binary()),
        pa.array([row.partition for row in rows], pa.int32()),
        pa.array(headers, _HEADERS),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=_SCHEMA)
