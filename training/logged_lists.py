"""The lists that users were shown and their reactions to them, read without Spark.

reads   topic    impressions
        parquet  <home>/etl/<version>/log
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds
import structlog

from afterclick.errors import BadEvent
from afterclick.events import Action, ImpressionEvent, decode_impression
from afterclick.io.kafka_log import KafkaLog
from afterclick.settings import KafkaSettings

log = structlog.get_logger()
EVENTS = "log"
"""Folder of the events with their ids, in that of an ETL version."""


def impressions(kafka: KafkaSettings) -> Iterator[ImpressionEvent]:
    """Every list on the topic, each once. Raises Unavailable without Kafka."""
    known: set[str] = set()
    with KafkaLog(kafka) as topic:
        name = kafka.topics.impressions
        for record in topic.read(topic.ranges(name) if topic.exists(name) else {}):
            event = valid_impression(record.value())
            if event is not None and event.data.impression_id not in known:
                known.add(event.data.impression_id)
                yield event


def valid_impression(value: bytes | None) -> ImpressionEvent | None:
    """The impression in a record's value; None, with a warning, for a malformed one."""
    try:
        return decode_impression(value)
    except BadEvent as error:
        log.warning("malformed impression", error=str(error))
        return None


def reactions(
    folder: Path, impression_ids: Collection[str], actions: Collection[Action]
) -> set[tuple[str, str, str]]:
    """(impression_id, user_id, item_id) of each reaction to these lists by one of the actions.

    `folder` is that of an ETL version. What the user has undone does not count.
    """
    rows = ds.dataset(folder / EVENTS)
    named = ds.field("impression_id").isin(list(impression_ids))
    named &= ds.field("action").isin([str(action) for action in actions])
    undo = ds.field("action") == str(Action.UNDO)
    undone: dict[tuple[str, str], int] = {}
    for user, item, time_ms in _values(rows, ("user_id", "item_id", "time_ms"), undo):
        undone[user, item] = max(time_ms, undone.get((user, item), time_ms))
    columns = ("impression_id", "user_id", "item_id", "time_ms")
    return {
        (impression, user, item)
        for impression, user, item, time_ms in _values(rows, columns, named)
        if time_ms > undone.get((user, item), -1)
    }


def _values(
    rows: ds.Dataset, columns: tuple[str, ...], where: ds.Expression
) -> Iterator[tuple[Any, ...]]:
    table = rows.to_table(columns=list(columns), filter=where)
    return zip(*(table[name].to_pylist() for name in columns), strict=True)
