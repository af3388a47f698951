"""The Spark session of the stream job: small, in UTC, with the Kafka connector, workers of this Python."""

from __future__ import annotations

import os
import sys

from pyspark.sql import SparkSession

from afterclick.settings import Settings


def build(settings: Settings, **more: str) -> SparkSession:
    """A new session; `more` are Spark settings with dots written as two underscores.

    Spark itself logs next to nothing: the job says why a query failed.
    """
    os.environ["PYSPARK_PYTHON"] = os.environ["PYSPARK_DRIVER_PYTHON"] = sys.executable
    config = {
        "spark.driver.memory": settings.stream.memory,
        "spark.driver.extraJavaOptions": "-XX:+UseSerialGC -Xss512k",
        "spark.driver.host": "127.0.0.1",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.jars": settings.spark_jars,
        "spark.log.level": "FATAL",
        "spark.python.worker.reuse": "true",
        "spark.scheduler.mode": "FAIR",
        "spark.sql.adaptive.enabled": "false",
        "spark.sql.execution.arrow.maxRecordsPerBatch": "5000",
        "spark.sql.session.timeZone": "UTC",
        "spark.sql.shuffle.partitions": "1",
        "spark.sql.streaming.minBatchesToRetain": "10",
        "spark.sql.warehouse.dir": str(settings.home.absolute() / "warehouse"),
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
    }
    config |= {key.replace("__", "."): value for key, value in more.items()}
    builder = SparkSession.builder.appName("afterclick-stream").master(settings.stream.master)
    for key, value in config.items():
        builder = builder.config(key, value)
    spark: SparkSession = builder.getOrCreate()
    return spark
