"""Rows are erased from the Parquet log, and Spark still reads what its sink has written."""

from __future__ import annotations

from pathlib import Path

import pytest
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from afterclick.errors import BadInput
from streaming.proof.archive_log import erase

pytestmark = pytest.mark.spark


@pytest.fixture
def log(spark: SparkSession, tmp_path: Path) -> Path:
    """A log of 100 rows of ten users on two days, written by Spark's streaming sink."""
    rows = spark.range(100).select(
        F.concat(F.lit("user-"), F.col("id") % 10).alias("user_id"),
        F.timestamp_millis(F.col("id") * 1000).alias("event_time"),
        F.lit("a text that is long enough to matter").alias("text"),
        F.when(F.col("id") < 50, "2026-01-01").otherwise("2026-01-02").alias("log_day"),
    )
    source, log = tmp_path / "source", tmp_path / "log"
    rows.write.parquet(str(source))
    query = (
        spark.readStream.schema(rows.schema)
        .parquet(str(source))
        .writeStream.format("parquet")
        .option("path", str(log))
        .option("checkpointLocation", str(tmp_path / "checkpoint"))
        .partitionBy("log_day")
        .trigger(availableNow=True)
        .start()
    )
    query.awaitTermination(60)
    return log


def test_spark_reads_a_log_without_the_user(spark: SparkSession, log: Path) -> None:
    assert spark.read.parquet(str(log)).count() == 100
    assert erase(str(log), "user-3", 60_000) == 6
    left = spark.read.parquet(str(log))
    assert left.count() == 94
    assert [row.event_time.timestamp() for row in left.where("user_id = 'user-3'").collect()] == [
        63,
        73,
        83,
        93,
    ]
    first = left.where("user_id = 'user-4'").first()
    assert first is not None
    assert first.asDict().keys() == {
        "user_id",
        "event_time",
        "text",
        "log_day",
    }
    assert erase(str(log), "user-3", 60_000) == 0
    assert not list(log.rglob("*.erasing"))


def test_a_renamed_log_is_cleaned_too(spark: SparkSession, log: Path) -> None:
    renamed = log.rename(log.with_name("log.1700000000"))
    assert erase(str(log), "user-3", 10**12) == 10
    files = [str(path) for path in renamed.rglob("*.parquet")]
    assert spark.read.parquet(*files).where("user_id = 'user-3'").count() == 0


def test_a_log_on_remote_storage_is_rejected() -> None:
    with pytest.raises(BadInput, match="s3a://bucket/log"):
        erase("s3a://bucket/log", "alice", 0)
