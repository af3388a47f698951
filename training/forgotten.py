"""Leave forgotten users out of the log, whoever may have brought their rows back.

reads   topic  forgotten
"""

from __future__ import annotations

from pyspark.sql import DataFrame
from pyspark.sql import functions as f

from afterclick.settings import KafkaSettings
from afterclick.state import decode_forgotten
from training import compacted

Until = dict[str, int]
"""user_id → event time ms up to which the user is forgotten"""


def newest(kafka: KafkaSettings) -> Until:
    """Who is forgotten now. Raises Unavailable."""
    records = compacted.newest(kafka, kafka.topics.forgotten)
    return dict(decode_forgotten(key, value) for key, value in records.items())


def without(log: DataFrame, until: Until) -> DataFrame:
    """The rows of the log (user_id, event_time, …) that no forgetting covers."""
    if not until:
        return log
    users = log.sparkSession.createDataFrame(list(until.items()), "user_id string, until_ms long")
    covered = (log.user_id == users.user_id) & (f.unix_millis(log.event_time) <= users.until_ms)
    return log.join(f.broadcast(users), covered, "left_anti")
