"""Read the Parquet log incrementally: only files that the previous ETL run has not read.

reads   parquet  the log (settings.archive); <home>/etl/<previous version>/events
        json     <home>/etl/<previous version>/state.json
        topic    forgotten: users whose events are left out
writes  parquet  <home>/etl/<version>/events      the first row of each event_id
        json     <home>/etl/<version>/state.json

The previous events are reused only if each of their files has the same size and modification time
and the same users are forgotten; otherwise the whole log is read. Files are listed before they are
read, so that a file that changes in between counts as changed in the next run.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from pydantic import BaseModel, ConfigDict, ValidationError
from pyspark.errors import AnalysisException
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as f

from afterclick.errors import BadDataset
from afterclick.io.kafka_log import read_compacted
from afterclick.settings import KafkaSettings, Settings
from afterclick.state import decode_forgotten
from training import workspace

_REQUIRED = ("event_id", "user_id", "item_id", "event_time", "action")
_COLUMNS = ("topic", "partition", "offset", *_REQUIRED)
_ROW = ("topic", "partition", "offset", "user_id", "item_id", "event_time", "action")
"""Columns in the order by which the first row of an event_id is chosen."""
_EVENTS, _STATE = "events", "state.json"
Files = dict[str, tuple[int, int]]
"""log_day=…/name → (size in bytes, modification time in ms)"""
Forgotten = dict[str, int]
"""user_id → event time in ms up to which the user's events are left out"""


class EtlState(BaseModel):
    """What `events` was made from."""

    model_config = ConfigDict(frozen=True)

    archive: str
    files: Files
    forgotten: str
    """hash of the forgotten users"""
    rows: int
    complete: int
    positions: dict[str, int]
    """topic/partition → highest offset"""


@dataclass(frozen=True)
class LogReading:
    """One row per event_id, and the account of the read."""

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
    """Read the log into `folder`/events; the whole log if `full`.

    Raises BadDataset without a usable log, Unavailable without Kafka.
    """
    log = _open(spark, settings.archive)
    files = _list_files(spark, settings.archive)
    forgotten = forgotten_users(settings.kafka)
    empty = EtlState(
        archive=settings.archive,
        files={},
        forgotten=hashlib.sha256(repr(sorted(forgotten.items())).encode()).hexdigest(),
        rows=0,
        complete=0,
        positions={},
    )
    try:
        before, events = _reuse(spark, settings.home / "etl", empty, files, full)
        whole = None
    except _NotReusable as reason:
        before, events, whole = empty, None, str(reason)
    added = sorted(files.keys() - before.files.keys())
    new = _without(_rows(spark, settings.archive, log, added), forgotten)
    rows, complete, positions = _count(new)
    _write_events(new, events, folder)
    state = before.model_copy(
        update={
            "files": files,
            "rows": before.rows + rows,
            "complete": before.complete + complete,
            "positions": _highest(before.positions, positions),
        }
    )
    (folder / _STATE).write_text(state.model_dump_json())
    return LogReading(
        events=spark.read.parquet(str(folder / _EVENTS)),
        state=state,
        files_read=len(added),
        rows_read=rows,
        files_reused=len(before.files),
        rows_reused=before.rows,
        whole=whole,
    )


def forgotten_users(kafka: KafkaSettings) -> Forgotten:
    """The forgotten users of now. Raises Unavailable."""
    records = read_compacted(kafka, kafka.topics.forgotten)
    return dict(decode_forgotten(key, value) for key, value in records.items())


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
    try:
        folder = workspace.latest(root, "pipeline etl")[1]
        state = EtlState.model_validate_json((folder / _STATE).read_text())
    except (workspace.MissingStep, OSError, ValidationError):
        raise _NotReusable("there is no usable earlier run") from None
    if state.archive != empty.archive:
        raise _NotReusable(f"the previous run read another log, {state.archive}")
    if state.forgotten != empty.forgotten:
        raise _NotReusable("the list of forgotten users has changed")
    changed = [name for name, version in state.files.items() if files.get(name) != version]
    if changed:
        raise _NotReusable(f"{len(changed)} files of the previous run have changed or are gone")
    return state, spark.read.parquet(str(folder / _EVENTS))


def _rows(spark: SparkSession, archive: str, log: DataFrame, names: list[str]) -> DataFrame:
    paths = [f"{archive}/{name}" for name in names]
    rows = spark.createDataFrame([], log.schema)
    if paths:
        rows = spark.read.schema(log.schema).option("basePath", archive).parquet(*paths)
    return rows.select(*_COLUMNS).withColumn("event_time", f.col("event_time").cast("timestamp"))


def _without(rows: DataFrame, forgotten: Forgotten) -> DataFrame:
    """Drop the events of forgotten users up to their time."""
    if not forgotten:
        return rows
    users = rows.sparkSession.createDataFrame(
        list(forgotten.items()), "user_id string, until_ms long"
    )
    covered = (rows.user_id == users.user_id) & (f.unix_millis(rows.event_time) <= users.until_ms)
    return rows.join(f.broadcast(users), covered, "left_anti")


def _count(rows: DataFrame) -> tuple[int, int, dict[str, int]]:
    """Rows, complete rows, and the highest offset of each topic/partition."""
    complete = f.count_if(_is_complete())
    partitions = (
        rows.groupBy("topic", "partition").agg(f.max("offset"), f.count("*"), complete).collect()
    )
    positions = {f"{p[0]}/{p[1]}": int(p[2]) for p in partitions}
    return sum(p[3] for p in partitions), sum(p[4] for p in partitions), positions


def _highest(before: dict[str, int], new: dict[str, int]) -> dict[str, int]:
    return {name: max(before.get(name, -1), new.get(name, -1)) for name in before | new}


def _is_complete() -> Column:
    complete = f.lit(True)
    for name in _REQUIRED:
        complete = complete & f.col(name).isNotNull()
    return complete


def _write_events(new: DataFrame, events: DataFrame | None, folder: Path) -> None:
    """Write the first row of each event_id, of the new rows and the previous events."""
    rows = new.where(_is_complete())
    if events is not None:
        rows = rows.unionByName(events)
    first = rows.groupBy("event_id").agg(f.min(f.struct(*_ROW)).alias("row"))
    first.select("event_id", "row.*").write.parquet(str(folder / _EVENTS))
