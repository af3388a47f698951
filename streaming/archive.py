"""The archive query: every valid event, exactly once, in the Parquet log.

reads   topic  reviews, feedback
        redis  forgotten, {u:<user>}:forgotten
writes  parquet  <archive>/log_day=<yyyy-mm-dd>/*.parquet
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyspark.sql import SparkSession
from pyspark.sql import functions as F
from pyspark.sql.streaming.query import StreamingQuery

from afterclick.errors import BadEvent
from afterclick.events import decode_interaction
from afterclick.settings import Settings
from streaming.apply import Record
from streaming.forgotten import Forgotten
from streaming.kafka_source import frame, runs

COLUMNS = (
    "topic string, partition int, offset long, log_time timestamp, event_id string, event_time timestamp, "
    "user_id string, item_id string, action string, rating double, text string, impression_id string, "
    "session_id string"
)
_TIME = pa.timestamp("us", tz="UTC")
_SCHEMA = pa.schema(
    [
        ("topic", pa.string()),
        ("partition", pa.int32()),
        ("offset", pa.int64()),
        ("log_time", _TIME),
        ("event_id", pa.string()),
        ("event_time", _TIME),
        *((name, pa.string()) for name in ("user_id", "item_id", "action")),
        ("rating", pa.float64()),
        *((name, pa.string()) for name in ("text", "impression_id", "session_id")),
    ]
)
_TIME_OF, _USER = _SCHEMA.get_field_index("event_time"), _SCHEMA.get_field_index("user_id")


def start(spark: SparkSession, settings: Settings, checkpoint: Path) -> StreamingQuery:
    """Start the query where its checkpoint stands; without one, at the beginning of the topics."""
    stream = settings.stream
    source = frame(spark, settings.kafka, None, 2 * stream.batch_events, stream.fence)
    redis = settings.redis
    decode = partial(decode_batches, forgotten=Forgotten(redis.url, redis.cluster, redis.keys))
    rows = source.mapInArrow(decode, COLUMNS).coalesce(1)
    return (
        rows.withColumn("log_day", F.date_format("log_time", "yyyy-MM-dd"))
        .writeStream.format("parquet")
        .queryName("archive")
        .option("path", settings.archive)
        .option("checkpointLocation", str(checkpoint))
        .partitionBy("log_day")
        .trigger(processingTime=f"{stream.archive_seconds} seconds")
        .start()
    )


def decode_batches(
    batches: Iterable[pa.RecordBatch], forgotten: Forgotten | None = None
) -> Iterator[pa.RecordBatch]:
    """The valid events of Kafka rows as archive rows, but for forgotten ones. Runs in a Spark worker."""
    for topic, partition, records in runs(batches):
        rows = [row for record in records if (row := _row(topic, partition, record))]
        until = forgotten.among(row[_USER] for row in rows) if forgotten else {}
        if until:
            rows = [row for row in rows if row[_TIME_OF] > 1000 * until.get(row[_USER], -math.inf)]
        if rows:
            columns = zip(*rows, strict=True)
            arrays = [
                _array(column, field.type) for column, field in zip(columns, _SCHEMA, strict=True)
            ]
            yield pa.RecordBatch.from_arrays(arrays, schema=_SCHEMA)


def _array(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    """Times come as microseconds: Arrow takes 50 µs to read one datetime with a time zone."""
    return pa.array(values, pa.int64()).cast(kind) if kind == _TIME else pa.array(values, kind)


def _row(topic: str, partition: int, record: Record) -> tuple[Any, ...] | None:
    """One archive row; None for a record that is no valid event (the live query dead-letters it)."""
    try:
        event = decode_interaction(record.value)
    except BadEvent:
        return None
    data = event.data
    place = (topic, partition, record.offset, int(record.log_ms * 1000))
    event_us = round(event.time.timestamp() * 1e6)
    what = (
        event.id,
        event_us,
        data.user_id,
        data.item_id,
        str(data.action),
        data.rating,
        data.text,
    )
    return (*place, *what, data.impression_id, data.session_id)
