"""The live query, real-time trigger: a row at a time, milliseconds after it was produced.

reads   topic  reviews, feedback
writes  redis, topic  what streaming.row writes

Spark's Real-Time Mode keeps one long-running task per Kafka partition. Its interval is not a latency: it is
how long a batch lasts before offsets are checkpointed, and at each such boundary every task ends and starts
anew, a second or two in which nothing is applied. Our positions are in Redis, so the checkpoint is of no use:
the interval is longer than a query is ever kept, and the job hands over to a new one (queries.RealTime).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pyspark.sql import SparkSession
from pyspark.sql import functions as F
from pyspark.sql.streaming.query import StreamingQuery

from afterclick.settings import Settings
from streaming.apply import Plan
from streaming.kafka_source import COLUMNS, Offsets, frame
from streaming.live import to_kafka
from streaming.row import RowApplier

SPARK = {
    # a row never waits for the next one to fill a buffer
    "spark.buffer.size": "1",
    "spark.sql.execution.python.udf.buffer.size": "1",
    "spark.sql.execution.pandas.udf.buffer.size": "65536",
    "spark.executorEnv.PYTHONWARNINGS": "ignore:line buffering",
    "spark.sql.execution.python.udf.maxRecordsPerBatch": "1",
    "spark.sql.execution.pythonUDF.arrow.enabled": "false",
    # Python functions are not on the list of what this mode supports
    "spark.sql.streaming.realTimeMode.allowlistCheck": "false",
}
"""Spark settings that this trigger needs. The grouped queries have buffers of their own."""


def start(
    spark: SparkSession, settings: Settings, plan: Plan, offsets: Offsets, checkpoint: Path
) -> StreamingQuery:
    """Start a query from `offsets`. Its sink stays empty: the workers send what there is to send."""
    source = frame(spark, settings.kafka, offsets, None)
    apply = F.udf(
        RowApplier(plan, settings.kafka.bootstrap), "string", useArrow=False
    ).asNondeterministic()
    applied = source.select(apply(*COLUMNS).alias("value")).where("value is not null")
    interval = f"{2 * settings.stream.handover_s:.0f} seconds"
    writer: Any = to_kafka(applied, settings, checkpoint)  # its overloads do not know realTime yet
    writer = writer.option("topic", plan.state_changes)
    query: StreamingQuery = writer.trigger(realTime=interval).start()
    return query


def tasks(spark: SparkSession, query: StreamingQuery) -> int:
    """How many tasks of a query are at work now."""
    tracker = spark.sparkContext.statusTracker()
    jobs = [tracker.getJobInfo(job) for job in tracker.getJobIdsForGroup(query.runId)]
    stages = [tracker.getStageInfo(stage) for job in jobs if job for stage in job.stageIds]
    return sum(stage.numActiveTasks for stage in stages if stage)
