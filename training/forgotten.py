"""Leave forgotten users out of the log, whoever may have brought their rows back.

reads   topic  forgotten
"""

from __future__ import annotations

from pyspark.sql import DataFrame
from pyspark.sql import functions as f

from afterclick import forgotten
from afterclick.settings import KafkaSettings
from training import compacted


def without(log: DataFrame, kafka: KafkaSettings) -> DataFrame:
    """The rows of the log (user_id, event_time, …) that no forgetting covers. Raises Unavailable."""
    records = compacted.newest(kafka, kafka.topics.forgotten)
    rows = [forgotten.decode(key, value) for key, value in records.items()]
    if not rows:
        return log
    until = log.sparkSession.createDataFrame(rows, "user_id string, until_ms long")
    covered = (log.user_id == until.user_id) & (f.unix_millis(log.event_time) <= until.until_ms)
    return log.join(f.broadcast(until), covered, "left_anti")
