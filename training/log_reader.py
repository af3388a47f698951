"""Read the event archive incrementally: only events after those of the previous ETL run.

reads   delta    the archive (settings.archive)
        parquet  <home>/etl/<previous version>/log
        json     <home>/etl/<previous version>/state.json
        topic    forgotten: users whose events are left out
writes  parquet  <home>/etl/<version>/log         the first valid row of each user and event_id;
                                                  `copied_from`: the session of a copied event
        json     <home>/etl/<version>/state.json

As in the stream, an event dated further ahead of its arrival than `stream.ahead_s` is invalid, and
event times are rounded to milliseconds.

The archive grows in the order of the offsets, so new events are those after the highest offset of
each partition. The previous events are reused only if the archive is the same table and has lost no
days to retention, the same users are forgotten and `stream.ahead_s` is the same; otherwise the
whole archive is read.
"""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass
from functools import reduce
from operator import and_
from pathlib import Path

import pyarrow.parquet as pq
import stamina
from pydantic import BaseModel, ConfigDict, ValidationError
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as f

from afterclick.errors import BadDataset
from afterclick.events import DATASET_SOURCE, IMPORT_SOURCE, SESSION, SESSION_SOURCE
from afterclick.io.event_archive import EventArchive, MissingArchive
from afterclick.io.forgotten import read_forgotten
from afterclick.settings import Settings
from training import workspace
from training.logged_lists import EVENTS

_REQUIRED = ("event_id", "user_id", "item_id", "event_time", "action")
_COLUMNS = (
    *("topic", "partition", "offset", "log_time", *_REQUIRED, "impression_id", "session_id"),
    *("source", "rating"),
)
_ROW = (
    *("topic", "partition", "offset", "item_id", "time_ms", "action", "impression_id"),
    *("trusted_ms", "rating", "copied_from"),
)
"""Columns in the order by which the first row of an event is chosen."""
_SCHEMA = (
    "topic string, partition int, offset long, log_time timestamp, event_id string, "
    "user_id string, item_id string, event_time timestamp, action string, impression_id string, "
    "session_id string, source string, rating double"
)
_STATE, _DOWNLOAD = "state.json", "archived"
_ATTEMPTS = 5
_MISSING_FILE = ("PATH_NOT_FOUND", "FAILED_READ_FILE.FILE_NOT_EXIST")
"""Conditions of Spark's errors."""
Forgotten = dict[str, int]
"""user_id → event time in ms up to which the user's events are left out"""


class EtlState(BaseModel):
    """What the table `log` was made from."""

    model_config = ConfigDict(frozen=True)

    archive: str
    """id of the Delta table"""
    deleted_day: int
    """the newest day that retention had deleted"""
    forgotten: str
    """hash of the forgotten users"""
    ahead_s: float
    rows: int
    complete: int
    valid: int
    """Complete rows that are not dated too far ahead."""
    positions: dict[str, int]
    """topic/partition → highest offset"""


@dataclass(frozen=True)
class LogReading:
    """One row per event, and the account of the read."""

    events: DataFrame
    state: EtlState
    rows_read: int
    rows_reused: int
    copied: int
    """Events of sessions that are left out, because the session's user has copies of them."""
    whole: str | None
    """Why the whole archive was read; None after an incremental read."""


class _NotReusable(Exception):
    """Why the previous events cannot be reused."""


def read(spark: SparkSession, settings: Settings, folder: Path, full: bool) -> LogReading:
    """Read the archive into `folder`/log; the whole archive if `full`.

    Reads again if an erasure replaced files meanwhile. Raises BadDataset without a usable archive,
    StateConflict if an earlier version wrote it, Unavailable without Kafka or the archive's
    storage.
    """
    retry = stamina.RetryingCaller(_ATTEMPTS, timeout=None)
    return retry(is_replaced_file, _read, spark, settings, folder, full)


def is_replaced_file(error: Exception) -> bool:
    """Whether Spark misses a file that the archive had when it was opened."""
    return any(f"[{reason}]" in str(error) for reason in _MISSING_FILE)


def _read(spark: SparkSession, settings: Settings, folder: Path, full: bool) -> LogReading:
    archive = _open(settings.archive)
    forgotten = read_forgotten(settings.kafka)
    empty = EtlState(
        archive=archive.id,
        deleted_day=archive.deleted_day,
        forgotten=hashlib.sha256(repr(sorted(forgotten.items())).encode()).hexdigest(),
        ahead_s=settings.stream.ahead_s,
        rows=0,
        complete=0,
        valid=0,
        positions={},
    )
    try:
        before, events = _reuse(spark, settings.home / "etl", empty, full)
        whole = None
    except _NotReusable as reason:
        before, events, whole = empty, None, str(reason)
    archived = _after(_archived(spark, archive, folder / _DOWNLOAD), before.positions)
    new = _without(_valid(archived, settings.stream.ahead_s), forgotten)
    counts, positions = _count(new)
    _write_events(new, events, folder)
    shutil.rmtree(folder / _DOWNLOAD, ignore_errors=True)
    state = before.model_copy(
        update={
            **{name: getattr(before, name) + count for name, count in counts.items()},
            "positions": _highest(before.positions, positions),
        }
    )
    (folder / _STATE).write_text(state.model_dump_json())
    known = spark.read.parquet(str(folder / EVENTS))
    kept = _without_copied(known)
    return LogReading(
        events=kept,
        copied=0 if kept is known else known.count() - kept.count(),
        state=state,
        rows_read=counts["rows"],
        rows_reused=before.rows,
        whole=whole,
    )


def previous_version(root: Path) -> Path | None:
    """The folder of the latest version; None without one."""
    try:
        return workspace.latest(root, "pipeline etl")[1]
    except workspace.MissingStep:
        return None


def _open(uri: str) -> EventArchive:
    try:
        archive = EventArchive.open(uri)
    except MissingArchive as error:
        raise BadDataset(str(error)) from None
    missing = set(_COLUMNS) - set(archive.columns)
    if missing:
        raise BadDataset(f"the archive in {uri} lacks the columns {', '.join(sorted(missing))}")
    return archive


def _archived(spark: SparkSession, archive: EventArchive, download: Path) -> DataFrame:
    """The rows of the archive; one in an object store is downloaded, Spark has no client for it."""
    paths, columns = archive.files(), list(_COLUMNS)
    if "://" in archive.uri and paths:
        download.mkdir(exist_ok=True)
        schema = archive.read("false", columns).schema
        with pq.ParquetWriter(download / "0.parquet", schema) as file:
            for batch in archive.scan(columns=columns):
                file.write_batch(batch)
        paths = [str(download)]
    if not paths:
        return spark.createDataFrame([], _SCHEMA)
    return spark.read.schema(_SCHEMA).parquet(*paths)


def _after(rows: DataFrame, positions: dict[str, int]) -> DataFrame:
    """The rows after these offsets."""
    if not positions:
        return rows
    known = f.create_map(*[f.lit(x) for pair in positions.items() for x in pair])
    partition = f.concat_ws("/", "topic", "partition")
    after = f.coalesce(known[partition], f.lit(-1))
    return rows.where(f.col("offset") > after)


def _reuse(
    spark: SparkSession, root: Path, empty: EtlState, full: bool
) -> tuple[EtlState, DataFrame]:
    """State and events of the previous run. Raises _NotReusable with the reason."""
    if full:
        raise _NotReusable("it was asked for")
    folder = previous_version(root)
    try:
        state = EtlState.model_validate_json((folder / _STATE).read_text() if folder else "")
    except (OSError, ValidationError):
        raise _NotReusable("there is no usable earlier run") from None
    if state.archive != empty.archive:
        raise _NotReusable("the previous run read another archive")
    if state.deleted_day != empty.deleted_day:
        raise _NotReusable("retention has deleted days of the archive")
    if state.forgotten != empty.forgotten:
        raise _NotReusable("the list of forgotten users has changed")
    if state.ahead_s != empty.ahead_s:
        raise _NotReusable("the setting stream.ahead_s has changed")
    events = spark.read.parquet(f"{folder}/{EVENTS}")
    if not set(_ROW) <= set(events.columns):
        raise _NotReusable("the previous run is of an earlier version")
    return state, events


def _valid(rows: DataFrame, ahead_s: float) -> DataFrame:
    """The rows with `time_ms`, `trusted_ms`, `copied_from`, `complete` and `valid`."""
    time_ms, arrived_ms = _milliseconds("event_time"), _milliseconds("log_time")
    from_past = f.col("source").rlike(f"^({DATASET_SOURCE}|{IMPORT_SOURCE})")  # event.trusted_ms
    trusted_ms = f.when(from_past, f.col("time_ms")).otherwise(arrived_ms)
    rows = rows.select(*_COLUMNS).withColumn("time_ms", time_ms)
    rows = rows.withColumn("trusted_ms", trusted_ms)
    is_copy = f.col("source") == SESSION_SOURCE  # event.is_copy
    session = f.when(is_copy, f.concat(f.lit(SESSION), "session_id"))
    rows = rows.withColumn("copied_from", session)
    complete = reduce(and_, (f.col(name).isNotNull() for name in _REQUIRED))
    in_time = f.col("time_ms") <= arrived_ms + ahead_s * 1000
    rows = rows.withColumn("complete", complete)
    return rows.withColumn("valid", f.col("complete") & in_time)


def _milliseconds(name: str) -> Column:
    """As `event.time_ms`, which rounds half to even."""
    seconds = f.unix_micros(f.col(name).cast("timestamp")) / 1e6
    return f.rint(seconds * 1000).cast("long")


def _without(rows: DataFrame, forgotten: Forgotten) -> DataFrame:
    """Drop the events of forgotten users up to their time."""
    if not forgotten:
        return rows
    users = rows.sparkSession.createDataFrame(
        list(forgotten.items()), "user_id string, until_ms long"
    )
    covered = (rows.user_id == users.user_id) & (rows.time_ms <= users.until_ms)
    return rows.join(f.broadcast(users), covered, "left_anti")


def _without_copied(events: DataFrame) -> DataFrame:
    """The events without those of sessions that were copied; the copies get their impressions."""
    key = ["item_id", "action", "time_ms"]
    copies = events.where(f.col("copied_from").isNotNull())
    if copies.isEmpty():
        return events
    copied = copies.select(f.col("copied_from").alias("user_id"), *key).distinct()
    of_lists = events.where(f.col("impression_id").isNotNull())
    of_lists = of_lists.withColumn("copied_from", f.col("user_id"))
    listed = of_lists.groupBy("copied_from", *key).agg(f.min("impression_id").alias("listed"))
    kept = events.join(copied, ["user_id", *key], "left_anti")
    kept = kept.join(listed, ["copied_from", *key], "left")
    impression = f.coalesce("impression_id", "listed")
    return kept.withColumn("impression_id", impression).select(*events.columns)


def _count(rows: DataFrame) -> tuple[dict[str, int], dict[str, int]]:
    """Rows, complete and valid ones, and the highest offset of each topic/partition."""
    counted = {
        "rows": f.count("*"),
        "complete": f.count_if("complete"),
        "valid": f.count_if("valid"),
    }
    columns = [column.alias(name) for name, column in counted.items()]
    grouped = rows.groupBy("topic", "partition").agg(f.max("offset").alias("last"), *columns)
    found = grouped.collect()
    positions = {f"{p.topic}/{p.partition}": int(p.last) for p in found}
    return {name: sum(int(p[name]) for p in found) for name in counted}, positions


def _highest(before: dict[str, int], new: dict[str, int]) -> dict[str, int]:
    return {name: max(before.get(name, -1), new.get(name, -1)) for name in before | new}


def _write_events(new: DataFrame, events: DataFrame | None, folder: Path) -> None:
    """Write the first row of each event, of the new rows and the previous events.

    An event is known by its user and event_id, as in the stream.
    """
    rows = new.where("valid").select("user_id", "event_id", *_ROW)
    if events is not None:
        rows = rows.unionByName(events)
    first = rows.groupBy("user_id", "event_id").agg(f.min(f.struct(*_ROW)).alias("row"))
    first.select("user_id", "event_id", "row.*").write.mode("overwrite").parquet(
        str(folder / EVENTS)
    )
