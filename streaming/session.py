"""The Spark session of the stream job: small, in UTC, with the Kafka connector, workers of this Python."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping

from pyspark.sql import SparkSession

from afterclick.errors import BadInput
from afterclick.settings import Settings


def build(settings: Settings, slots: int, more: Mapping[str, str]) -> SparkSession:
    """A new session with `more` Spark settings. A local master gets `slots` task slots where it names none.

    Raises BadInput where a local master names fewer: some queries would wait for a slot for ever.
    Spark itself logs next to nothing: the job says why a query failed.
    """
    master = f"local[{slots}]" if settings.stream.master == "local[*]" else settings.stream.master
    named = re.fullmatch(r"local(?:\[(\d+)])?", master)
    if named and int(named[1] or 1) < slots:
        raise BadInput(
            f"stream.master is {master}, but the {settings.stream.trigger} trigger needs {slots} task slots "
            "with the partitions that there are: leave it at local[*], or name as many"
        )
    os.environ["PYSPARK_PYTHON"] = os.environ["PYSPARK_DRIVER_PYTHON"] = sys.executable
    # C1 alone: on few cores C2 takes more than its code gives back (a tenth at 300,000 events, a twentieth at
    # 700,000), and takes it from what answers a click
    config = {
        "spark.driver.memory": settings.stream.memory,
        "spark.driver.extraJavaOptions": "-XX:+UseSerialGC -XX:TieredStopAtLevel=1 -Xss512k",
        "spark.driver.host": "127.0.0.1",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.jars": settings.spark_jars,
        "spark.log.level": "FATAL",
        "spark.python.daemon.module": "streaming.worker_daemon",
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
    builder = SparkSession.builder.appName("afterclick-stream").master(master)
    for key, value in (config | dict(more)).items():
        builder = builder.config(key, value)
    spark: SparkSession = builder.getOrCreate()
    return spark
