"""The dataflow: three streaming queries over the topics of events.

micro-batch  read_topics → apply_batches (a partition's rows at a time) → Kafka sink
real-time    read_topics → RowApplier (a row at a time)                 → sent by the worker
archive      read_topics → ArchiveTask (all rows of a batch)                → Delta tables, Redis

reads   topic    reviews, feedback; the archive query also impressions
        redis    forgotten, {u:<user>}:forgotten
writes  redis    what streaming.apply and streaming.exposures write
        topic    state-changes, <topic>.dlq
        delta    <archive>, <archive>-impressions: what streaming.archive_table writes
"""

from __future__ import annotations

import json
import os
import re
import sys
from functools import partial
from pathlib import Path
from typing import Any

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.streaming.query import StreamingQuery
from pyspark.sql.streaming.readwriter import DataStreamWriter

from afterclick.errors import BadInput
from afterclick.io.files import PRIVATE
from afterclick.io.kafka_clients import spark_options
from afterclick.settings import Settings
from afterclick.topics import MAX_RECORD_BYTES
from streaming.apply import ApplyConfig
from streaming.archive_task import ArchiveTask
from streaming.exposures import ExposureConfig
from streaming.positions import Offsets
from streaming.worker import (
    OUTPUT_COLUMNS,
    SOURCE_COLUMNS,
    RowApplier,
    apply_batches,
)

_REAL_TIME_CONFIG = {
    # a row never waits for the next one to fill a buffer
    "spark.buffer.size": "1",
    "spark.sql.execution.python.udf.buffer.size": "1",
    "spark.sql.execution.pandas.udf.buffer.size": "65536",
    "spark.executorEnv.PYTHONWARNINGS": "ignore:line buffering",
    "spark.sql.execution.python.udf.maxRecordsPerBatch": "1",
    "spark.sql.execution.pythonUDF.arrow.enabled": "false",
    # Python functions are not on this mode's list of supported operators
    "spark.sql.streaming.realTimeMode.allowlistCheck": "false",
}


def read_topics(
    spark: SparkSession, settings: Settings, start: Offsets | None, max_rows: int | None
) -> DataFrame:
    """The topics of `start` from these offsets (None: the interaction topics from the earliest
    ones), `max_rows` per batch.

    `timestamp` is in microseconds since the epoch. The query fails if the log has lost records that
    it should read.
    """
    kafka = settings.kafka
    reader = (
        spark.readStream.format("kafka")
        .options(**spark_options(kafka))
        .option("subscribe", ",".join(start or kafka.topics.interactions))
        .option("startingOffsets", json.dumps(start) if start else "earliest")
        .option("kafka.isolation.level", "read_committed")
        .option("failOnDataLoss", settings.stream.fence)
    )
    if max_rows is not None:
        reader = reader.option("maxOffsetsPerTrigger", max_rows)
    microseconds = F.unix_micros("timestamp").alias("timestamp")
    return reader.load().select(*SOURCE_COLUMNS[:-1], microseconds)


def start_micro_batch(
    spark: SparkSession,
    settings: Settings,
    config: ApplyConfig,
    offsets: Offsets | None,
    checkpoint: Path,
) -> StreamingQuery:
    """Start from `offsets`, unless the folder holds a checkpoint. For backlog and throughput."""
    source = read_topics(spark, settings, offsets, settings.stream.batch_events)
    apply = partial(apply_batches, config, settings.kafka)
    applied = source.mapInArrow(apply, OUTPUT_COLUMNS)
    writer = _kafka_sink(applied, settings, checkpoint).queryName("stream")
    return writer.trigger(processingTime="0 seconds").start()


def start_real_time(
    spark: SparkSession,
    settings: Settings,
    config: ApplyConfig,
    offsets: Offsets,
    checkpoint: Path,
) -> StreamingQuery:
    """Start from `offsets`: one row at a time, milliseconds after it was produced.

    Spark's Real-Time Mode keeps one long-running task per Kafka partition. Its interval is not a
    latency but the length of a batch: at each boundary offsets are checkpointed and every task
    restarts, which stops the flow for a second or two. Offsets are in Redis here, so the interval
    exceeds the life of a query and `handover.RealTime` replaces the query instead. The sink stays
    empty: the workers send the outputs.
    """
    source = read_topics(spark, settings, offsets, None)
    row_applier = RowApplier(config, settings.kafka)
    apply = F.udf(row_applier, "string", useArrow=False).asNondeterministic()
    applied = source.select(apply(*SOURCE_COLUMNS).alias("value")).where("value is not null")
    interval = f"{2 * settings.stream.handover_s:.0f} seconds"
    writer: Any = _kafka_sink(applied, settings, checkpoint)  # its overloads lack realTime
    writer = writer.option("topic", config.state_changes)
    query: StreamingQuery = writer.trigger(realTime=interval).start()
    return query


def start_archive(
    spark: SparkSession,
    settings: Settings,
    exposures: ExposureConfig,
    offsets: Offsets,
    checkpoint: Path,
) -> StreamingQuery:
    """Archive every valid event from `offsets` on and count the lists shown, exactly once.

    One task appends a batch and stores its offsets with it; Spark's own sink stays empty, and its
    checkpoint decides nothing.
    """
    stream = settings.stream
    source = read_topics(spark, settings, offsets, 2 * stream.batch_events)
    append = ArchiveTask(settings, exposures)
    return (
        source.coalesce(1)
        .mapInArrow(append, "appended long")
        .writeStream.format("noop")
        .queryName("archive")
        .option("checkpointLocation", str(checkpoint))
        .trigger(processingTime=f"{stream.archive_seconds} seconds")
        .start()
    )


def _kafka_sink(outputs: DataFrame, settings: Settings, checkpoint: Path) -> DataStreamWriter:
    return (
        outputs.writeStream.format("kafka")
        .options(**spark_options(settings.kafka))
        .option("kafka.compression.type", "lz4")
        .option("kafka.max.request.size", MAX_RECORD_BYTES)
        .option("checkpointLocation", str(checkpoint))
        .outputMode("update")
    )


def active_tasks(spark: SparkSession, query: StreamingQuery) -> int:
    """Number of running tasks of a query."""
    tracker = spark.sparkContext.statusTracker()
    jobs = [tracker.getJobInfo(job) for job in tracker.getJobIdsForGroup(query.runId)]
    stages = [tracker.getStageInfo(stage) for job in jobs if job for stage in job.stageIds]
    return sum(stage.numActiveTasks for stage in stages if stage)


def build_session(settings: Settings, partitions: int) -> SparkSession:
    """The job's Spark session, with a local master's task slots sized for the number of
    `partitions`.

    Raises BadInput if the configured local master has too few slots: a query would wait for one
    forever. Spark logs fatal errors only; the job logs why a query failed.
    """
    real_time = settings.stream.trigger == "real-time"
    # a real-time task occupies its slot, and during a hand-over there are two per partition
    slots = 3 * partitions + 2 if real_time else 4
    os.environ["PYSPARK_PYTHON"] = os.environ["PYSPARK_DRIVER_PYTHON"] = sys.executable
    # of the JVM: by default malloc keeps freed memory in up to eight arenas per core
    os.environ.setdefault("MALLOC_ARENA_MAX", "2")
    # C1 only: on few cores, C2 costs more than it saves (10 % of 300,000 events, 5 % of 700,000)
    config = {
        "spark.driver.memory": settings.stream.memory,
        "spark.driver.extraJavaOptions": "-XX:+UseSerialGC -XX:TieredStopAtLevel=1 -Xss512k",
        "spark.driver.host": "127.0.0.1",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.jars": settings.spark_jars,
        "spark.log.level": "FATAL",
        "spark.python.daemon.module": "streaming.worker",
        "spark.python.worker.reuse": "true",
        "spark.scheduler.mode": "FAIR",
        "spark.sql.adaptive.enabled": "false",
        "spark.sql.execution.arrow.maxRecordsPerBatch": "5000",
        "spark.sql.session.timeZone": "UTC",
        "spark.sql.shuffle.partitions": "1",
        "spark.sql.ui.retainedExecutions": "10",
        "spark.sql.streaming.minBatchesToRetain": "10",
        "spark.sql.streaming.stopTimeout": "30s",
        "spark.hadoop.fs.permissions.umask-mode": f"{PRIVATE:03o}",
        "spark.sql.warehouse.dir": str(settings.home.absolute() / "warehouse"),
        "spark.ui.enabled": "false",
        # Spark keeps finished jobs for its pages also without them: of 1,000 jobs by default
        "spark.ui.retainedJobs": "20",
        "spark.ui.retainedStages": "20",
        "spark.ui.retainedTasks": "500",
        # at once, not with the next heartbeat: a hand-over waits for the number of running tasks
        "spark.ui.liveUpdate.period": "0",
        "spark.ui.showConsoleProgress": "false",
        **(_REAL_TIME_CONFIG if real_time else {}),
    }
    builder = SparkSession.builder.appName("afterclick-stream").master(_master(settings, slots))
    for key, value in config.items():
        builder = builder.config(key, value)
    spark: SparkSession = builder.getOrCreate()
    return spark


def _master(settings: Settings, slots: int) -> str:
    master = f"local[{slots}]" if settings.stream.master == "local[*]" else settings.stream.master
    local = re.fullmatch(r"local(?:\[(\d+)])?", master)
    if local and int(local[1] or 1) < slots:
        raise BadInput(
            f"stream.master {master} has too few task slots: the {settings.stream.trigger} trigger "
            f"needs {slots} with this number of partitions; use local[*] or local[{slots}]"
        )
    return master
