"""The Spark session of the training jobs."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from pyspark.sql import SparkSession

from afterclick.settings import Settings


@contextmanager
def session(settings: Settings) -> Iterator[SparkSession]:
    """A Spark session for the time of a `with`; one that runs already is used and left running."""
    running = SparkSession.getActiveSession()
    if running is not None:
        yield running
        return
    spark = build(settings)
    try:
        yield spark
    finally:
        spark.stop()


def build(settings: Settings) -> SparkSession:
    """A new session: small shuffles, UTC, no web page, Python workers of this interpreter."""
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    config = {
        "spark.driver.memory": settings.training.memory,
        "spark.driver.extraJavaOptions": "-XX:+UseSerialGC",
        "spark.sql.session.timeZone": "UTC",
        "spark.sql.shuffle.partitions": "4",
        "spark.default.parallelism": "4",
        "spark.sql.sources.parallelPartitionDiscovery.parallelism": "4",  # not a task for each of many files
        "spark.sql.execution.arrow.pyspark.enabled": "true",
        "spark.sql.warehouse.dir": str(settings.home.absolute() / "warehouse"),
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.driver.host": "127.0.0.1",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.log.level": "ERROR",
    }
    builder = SparkSession.builder.appName("afterclick-training").master(settings.training.master)
    for key, value in config.items():
        builder = builder.config(key, value)
    spark: SparkSession = builder.getOrCreate()
    return spark
