"""Read the Parquet log incrementally: only files that the previous ETL run has not read.

reads   parquet  the log (settings.archive); <home>/etl/<previous version>/log
        json     <home>/etl/<previous version>/state.json
        topic    forgotten: users whose events are left out
writes  parquet  <home>/etl/<version>/log         the first valid row of each user and event_id
        json     <home>/etl/<version>/state.json

As in the stream, an event dated further ahead of its arrival than `stream.ahead_s` is invalid, and
event times are rounded to milliseconds.

The previous events are reused only if each of their files has the same size and modification time,
the same users are forgotten and `stream.ahead_s` is the same; otherwise the whole log is read.
Files are listed before they are read, so that a file that changes in between counts as changed in
the next run.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import reduce
from operator import and_
from pathlib import Path
from urllib.parse import unquote

from pydantic import BaseModel, ConfigDict, ValidationError
from pyspark.errors import AnalysisException
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as f

from afterclick.errors import BadDataset
from afterclick.events import DATASET_SOURCE, IMPORT_SOURCE
from afterclick.io.kafka_log import read_compacted
from afterclick.settings import KafkaSettings, Settings
from afterclick.state import decode_forgotten
from training import workspace

_REQUIRED = ("event_id", "user_id", "item_id", "event_time", "action")
_COLUMNS = ("topic", "partition", "offset", "log_time", *_REQUIRED, "impression_id", "source")
_ROW = (
    *("topic", "partition", "offset", "item_id", "time_ms", "action", "impression_id"),
    "trusted_ms",
)
"""Columns in the order by which the first row of an event is chosen."""
_EVENTS, _STATE = "log", "state.json"
Files = dict[str, tuple[int, int]]
"""log_day=…/name → (size in bytes, modification time in ms)"""
Forgotten = dict[str, int]
"""user_id → event time in ms up to which the user's events are left out"""


class EtlState(BaseModel):
    """What the table `log` was made from."""

    model_config = ConfigDict(frozen=True)

    archive: str
    files: Files
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
    files_read: int
    rows_read: int
    files_reused: int
    rows_reused: int
    whole: str | None
    """Why the whole log was read; None after an incremental read."""


class _NotReusable(Exception):
    """Why the previous events cannot be reused."""


def read(spark: SparkSession, settings: Settings, folder: Path, full: bool) -> LogReading:
    """Read the log into `folder`/log; the whole log if `full`.

    Raises BadDataset without a usable log, Unavailable without Kafka.
    """
    log = _open(spark, settings.archive)
    files = _list_files(spark, settings.archive)
    forgotten = forgotten_users(settings.kafka)
    empty = EtlState(
        archive=settings.archive,
        files={},
        forgotten=hashlib.sha256(repr(sorted(forgotten.items())).encode()).hexdigest(),
        ahead_s=settings.stream.ahead_s,
        rows=0,
        complete=0,
        valid=0,
        positions={},
    )
    try:
        before, events = _reuse(spark, settings.home / "etl", empty, files, full)
        whole = None
    except _NotReusable as reason:
        before, events, whole = empty, None, str(reason)
    added = sorted(files.keys() - before.files.keys())
    new = _without(_rows(spark, settings, log, added), forgotten)
    counts, positions = _count(new)
    _write_events(new, events, folder)
    state = before.model_copy(
        update={
            "files": files,
            **{name: getattr(before, name) + count for name, count in counts.items()},
            "positions": _highest(before.positions, positions),
        }
    )
    (folder / _STATE).write_text(state.model_dump_json())
    return LogReading(
        events=spark.read.parquet(str(folder / _EVENTS)),
        state=state,
        files_read=len(added),
        rows_read=counts["rows"],
        files_reused=len(before.files),
        rows_reused=before.rows,
        whole=whole,
    )


def forgotten_users(kafka: KafkaSettings) -> Forgotten:
    """The forgotten users of now. Raises Unavailable."""
    records = read_compacted(kafka, kafka.topics.forgotten)
    return dict(decode_forgotten(key, value) for key, value in records.items())


def previous_version(root: Path) -> Path | None:
    """The folder of the latest version; None without one."""
    try:
        return workspace.latest(root, "pipeline etl")[1]
    except workspace.MissingStep:
        return None


def _open(spark: SparkSession, archive: str) -> DataFrame:
    try:
        log = spark.read.parquet(archive)
    except AnalysisException:
        raise BadDataset(
            f"no Parquet log in {archive}: start `afterclick stream`, then ingest events"
        ) from None
    missing = set(_COLUMNS) - set(log.columns)
    if missing:
        raise BadDataset(f"the log in {archive} lacks the columns {', '.join(sorted(missing))}")
    return log


def _list_files(spark: SparkSession, archive: str) -> Files:
    """The complete files of the log.

    Spark takes the names from the sink's own list if there is one, size and time from the files.
    """
    files = spark.read.format("binaryFile").option("pathGlobFilter", "*.parquet").load(archive)
    rows = files.select("path", "length", f.unix_millis("modificationTime")).collect()
    return {_name(path): (int(size), int(changed_ms)) for path, size, changed_ms in rows}


def _name(uri: str) -> str:
    """The last two parts of a URI: log_day=…/file."""
    return "/".join(unquote(uri).split("/")[-2:])


def _reuse(
    spark: SparkSession, root: Path, empty: EtlState, files: Files, full: bool
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
        raise _NotReusable(f"the previous run read another log, {state.archive}")
    if state.forgotten != empty.forgotten:
        raise _NotReusable("the list of forgotten users has changed")
    if state.ahead_s != empty.ahead_s:
        raise _NotReusable("the setting stream.ahead_s has changed")
    changed = [name for name, version in state.files.items() if files.get(name) != version]
    if changed:
        raise _NotReusable(f"{len(changed)} files of the previous run have changed or are gone")
    events = spark.read.parquet(f"{folder}/{_EVENTS}")
    if not set(_ROW) <= set(events.columns):
        raise _NotReusable("the previous run is of an earlier version")
    return state, events


def _rows(spark: SparkSession, settings: Settings, log: DataFrame, names: list[str]) -> DataFrame:
    """The rows of these files, with `time_ms`, `complete` and `valid`."""
    paths = [f"{settings.archive}/{name}" for name in names]
    rows = spark.createDataFrame([], log.schema)
    if paths:
        rows = spark.read.schema(log.schema).option("basePath", settings.archive).parquet(*paths)
    time_ms, arrived_ms = _milliseconds("event_time"), _milliseconds("log_time")
    from_past = f.col("source").rlike(f"^({DATASET_SOURCE}|{IMPORT_SOURCE})")  # event.trusted_ms
    trusted_ms = f.when(from_past, f.col("time_ms")).otherwise(arrived_ms)
    rows = rows.select(*_COLUMNS).withColumn("time_ms", time_ms)
    rows = rows.withColumn("trusted_ms", trusted_ms)
    complete = reduce(and_, (f.col(name).isNotNull() for name in _REQUIRED))
    in_time = f.col("time_ms") <= arrived_ms + settings.stream.ahead_s * 1000
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
    first.select("user_id", "event_id", "row.*").write.parquet(str(folder / _EVENTS))
