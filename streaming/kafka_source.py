"""The Kafka topics as streaming frames, and their rows as records.

reads   topic  whatever is asked for
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import groupby

import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from afterclick.settings import KafkaSettings
from streaming.apply import Record

COLUMNS = ("key", "value", "topic", "partition", "offset", "timestamp")
Offsets = dict[str, dict[int, int]]
"""Topic → partition → offset."""


def frame(
    spark: SparkSession,
    kafka: KafkaSettings,
    start: Offsets | None,
    most: int | None,
    complete: bool = True,
) -> DataFrame:
    """The interaction topics from the offsets `start` (None: the earliest), at most `most` rows a batch.

    The query fails where the log has lost records it should read, unless `complete` is off. `timestamp` is in
    microseconds since the epoch.
    """
    reader = (
        spark.readStream.format("kafka")
        .option("kafka.bootstrap.servers", kafka.bootstrap)
        .option("subscribe", ",".join(kafka.topics.interactions))
        .option("startingOffsets", json.dumps(start) if start else "earliest")
        .option("failOnDataLoss", complete)
    )
    if most is not None:
        reader = reader.option("maxOffsetsPerTrigger", most)
    microseconds = F.unix_micros("timestamp").alias("timestamp")
    return reader.load().select(*COLUMNS[:-1], microseconds)


def runs(batches: Iterable[pa.RecordBatch]) -> Iterator[tuple[str, int, list[Record]]]:
    """The records of Arrow batches, in order, as runs of one topic and partition."""
    for batch in batches:
        columns = {name: batch.column(name) for name in COLUMNS}
        log_us = columns["timestamp"].to_pylist()
        records = map(
            Record,
            columns["offset"].to_pylist(),
            columns["key"].to_pylist(),
            columns["value"].to_pylist(),
            (us / 1000 for us in log_us),
        )
        places = zip(columns["topic"].to_pylist(), columns["partition"].to_pylist(), strict=True)
        for (topic, partition), run in groupby(
            zip(places, records, strict=True), key=lambda row: row[0]
        ):
            yield topic, partition, [record for _, record in run]
