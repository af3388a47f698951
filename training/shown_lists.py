"""The lists that users were shown: place and propensity of each item, read incrementally.

reads   topic    impressions
        parquet  <home>/etl/<previous version>/impressions, shown
        json     <home>/etl/<previous version>/impressions.json
writes  parquet  <home>/etl/<version>/impressions  impression_id, item_id, position,
                                                   propensity, page, device, shown_today; a
                                                   file for each run
                 <home>/etl/<version>/shown        the rows of the lists that events name
        json     <home>/etl/<version>/impressions.json  partition → next offset

`shown_today` counts the lists of the day before with which the user was shown the item: the new
impressions, and those of the day before them, are read for it.

A run keeps only new impressions and links the files of earlier runs, for as long as the topic keeps
their records: an event may name an older list. `shown` keeps for good the lists that events name.
User ids are not kept.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as f

from afterclick.events import VISITOR, Context, ImpressionEvent, new_id
from afterclick.io.kafka_log import KafkaLog, OffsetRange, OffsetRanges
from afterclick.settings import KafkaSettings
from afterclick.shown_items import ShownItems
from afterclick.topics import IMPRESSIONS_MS
from afterclick.trends import DAY_MS
from training.logged_lists import valid_impression

if TYPE_CHECKING:
    from confluent_kafka import Message

_LISTS, _SHOWN, _OFFSETS = "impressions", "shown", "impressions.json"
_KEY = ["impression_id", "item_id"]
_SHOWN_COLUMNS = ("position", "propensity", "page", "device", "shown_today")
_COLUMNS = (
    "impression_id string, item_id string, position short, propensity float, page string, "
    "device string, shown_today short"
)
_SCHEMA = pa.schema(
    {
        "impression_id": pa.string(),
        "item_id": pa.string(),
        "position": pa.int16(),
        "propensity": pa.float32(),
        "page": pa.string(),
        "device": pa.string(),
        "shown_today": pa.int16(),
    }
)
_Row = tuple[str, str, int, float, str | None, str | None, int]
_NO_CONTEXT = Context()
_BATCH = 100_000
"""Rows in memory at a time."""
_MAX_COUNTED = 200_000
"""Lists of the last day by which items are counted, the newest."""


def read(kafka: KafkaSettings, previous: Path | None, folder: Path) -> int:
    """Link the lists that the version `previous` has read and add the new ones of the topic.

    Returns the number of new lists. Raises Unavailable without Kafka.
    """
    lists = folder / _LISTS
    lists.mkdir()
    with KafkaLog(kafka) as topic:
        ranges = _new_ranges(topic, kafka.topics.impressions, _read_offsets(previous))
        n, newest_ms = _write(topic.read(_with_day_before(topic, ranges, previous)), ranges, lists)
    offsets = {str(partition.partition): span.end for partition, span in ranges.items()}
    (folder / _OFFSETS).write_text(json.dumps(offsets))
    if previous is not None:
        _link(previous / _LISTS, lists, newest_ms)
    return n


def _with_day_before(topic: KafkaLog, ranges: OffsetRanges, previous: Path | None) -> OffsetRanges:
    """The ranges with the records of the day before the newest one of the previous run."""
    ages = _ages(previous / _LISTS) if previous is not None else {}
    if not ages:
        return ranges
    since = datetime.fromtimestamp((max(ages.values()) - DAY_MS) / 1000, UTC)
    starts = topic.starts(ranges, since)
    return {p: OffsetRange(min(span.begin, starts[p]), span.end) for p, span in ranges.items()}


def _ages(lists: Path) -> dict[Path, int]:
    """The files of earlier runs, with the time of their newest record in ms."""
    return {path: int(path.stem.partition("-")[0]) for path in lists.glob("*.parquet")}


def _link(previous: Path, lists: Path, newest_ms: int) -> None:
    """Link the files of earlier runs that the topic may still hold."""
    ages = _ages(previous)
    newest_ms = max([newest_ms, *ages.values()])
    for path, ms in ages.items():
        if ms >= newest_ms - IMPRESSIONS_MS:
            os.link(path, lists / path.name)


def place(spark: SparkSession, events: DataFrame, previous: Path | None, folder: Path) -> DataFrame:
    """The events with `position` and `propensity`, null where their list is not known.

    Writes `folder`/shown.
    """
    paths = [str(path) for path in (folder / _LISTS).glob("*.parquet")]
    if previous is not None and (previous / _SHOWN).is_dir():
        paths.append(str(previous / _SHOWN))
    lists = spark.read.schema(_COLUMNS).parquet(*paths) if paths else _nothing(spark)
    named = lists.join(events.select("impression_id").distinct(), "impression_id", "left_semi")
    first = f.min(f.struct(*_SHOWN_COLUMNS)).alias("row")
    named.groupBy(*_KEY).agg(first).select(*_KEY, "row.*").write.parquet(str(folder / _SHOWN))
    return events.join(spark.read.parquet(str(folder / _SHOWN)), _KEY, "left")


def _nothing(spark: SparkSession) -> DataFrame:
    return spark.createDataFrame([], _COLUMNS)


def _new_ranges(topic: KafkaLog, name: str, offsets: dict[str, int]) -> OffsetRanges:
    """What the topic holds from these offsets on; nothing where it does not exist."""
    found = topic.ranges(name) if topic.exists(name) else {}
    return {p: _after(span, offsets.get(str(p.partition), 0)) for p, span in found.items()}


def _after(span: OffsetRange, offset: int) -> OffsetRange:
    """The range from an offset on; the whole one if it ends before: the topic is a new one."""
    return span if offset > span.end else OffsetRange(max(offset, span.begin), span.end)


def _read_offsets(previous: Path | None) -> dict[str, int]:
    path = previous / _OFFSETS if previous else None
    return json.loads(path.read_text()) if path and path.is_file() else {}


def _write(records: Iterable[Message], new: OffsetRanges, lists: Path) -> tuple[int, int]:
    """Write the lists of the records in the ranges `new` as one file; returns their number and the
    newest record's time in ms (0 without records). Earlier records only count."""
    staging, n, newest_ms = lists / "new.parquet", 0, 0
    begins = {partition.partition: span.begin for partition, span in new.items()}
    shown_items = ShownItems(_MAX_COUNTED)
    rows: list[_Row] = []
    with pq.ParquetWriter(staging, _SCHEMA) as writer:
        for record in records:
            event = valid_impression(record.value())
            is_new = (record.offset() or 0) >= begins[record.partition() or 0]
            if is_new:
                newest_ms = max(newest_ms, record.timestamp()[1])
            if event is None:
                continue
            if is_new:
                n += 1
                rows += _rows(event, shown_items)
            if event.data.user_id != VISITOR:
                ids = [item.item_id for item in event.data.items]
                shown_items.put(event.data.user_id, ids, event.time_ms)
            if len(rows) >= _BATCH:
                writer.write_table(_table(rows))
                rows.clear()
        writer.write_table(_table(rows))
    if n:
        staging.rename(lists / f"{newest_ms}-{new_id()}.parquet")
    else:
        staging.unlink()
    return n, newest_ms


def _rows(event: ImpressionEvent, shown_items: ShownItems) -> Iterator[_Row]:
    """The rows of a list, given the lists before it."""
    shown = event.data
    context, counts = shown.context or _NO_CONTEXT, shown_items.counts(shown.user_id, event.time_ms)
    for place, item in enumerate(shown.items):
        where = (place, item.propensity, context.page, context.device)
        yield shown.impression_id, item.item_id, *where, counts.get(item.item_id, 0)


def _table(rows: list[_Row]) -> pa.Table:
    columns = list(zip(*rows, strict=True)) or [()] * len(_SCHEMA)
    return pa.table(
        [pa.array(c, kind.type) for c, kind in zip(columns, _SCHEMA, strict=True)], _SCHEMA
    )
