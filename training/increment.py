"""Read what the log has gained since the last ETL run; all of it where what that run kept no longer holds.

reads   parquet  the log (settings.archive); <home>/etl/<last version>/events
        json     <home>/etl/<last version>/kept.json
        topic    forgotten, by training.forgotten
writes  parquet  <home>/etl/<version>/events  event_id and the earliest row of it: topic, partition, offset, …
        json     <home>/etl/<version>/kept.json

What is kept holds while each file it came from is in the log with the same size and the same last change, and
the same users are forgotten. Files are looked at before they are read: one that changes meanwhile counts as
changed the next time.
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
from afterclick.settings import Settings
from training import forgotten, workspace

_COLUMNS = (
    "topic",
    "partition",
    "offset",
    "event_id",
    "event_time",
    "user_id",
    "item_id",
    "action",
)
_ROW = ("topic", "partition", "offset", "user_id", "item_id", "event_time", "action")
"""The order that says which row of an event id is the earliest."""
_EVENTS, _KEPT = "events", "kept.json"
Files = dict[str, tuple[int, int]]
"""log_day=…/name → size in bytes, last change in ms"""


class Kept(BaseModel):
    """What stands in `events`, and what it was made of."""

    model_config = ConfigDict(frozen=True)

    archive: str
    files: Files
    forgotten: str
    """hash of who was forgotten"""
    rows: int
    complete: int
    positions: dict[str, int]
    """topic/partition → highest offset"""


@dataclass(frozen=True)
class LogReading:
    """The log as one row per event id, and the account of how that came about."""

    events: DataFrame
    kept: Kept
    files_read: int
    rows_read: int
    files_reused: int
    rows_reused: int
    whole: str | None
    """why all of the log was read; None where only new files were"""


class _Stale(Exception):
    """Why what an earlier run kept cannot be used."""


def read(spark: SparkSession, settings: Settings, folder: Path, full: bool) -> LogReading:
    """Read the log, all of it where `full`, and write `events` into `folder`.

    Raises BadDataset without a usable log, Unavailable without Kafka.
    """
    log = _open(spark, settings.archive)
    files = _files(spark, settings.archive)
    until = forgotten.newest(settings.kafka)
    digest = hashlib.sha256(repr(sorted(until.items())).encode()).hexdigest()
    nothing = Kept(
        archive=settings.archive, files={}, forgotten=digest, rows=0, complete=0, positions={}
    )
    try:
        before, events = _reuse(spark, settings.home / "etl", nothing, files, full)
        whole = None
    except _Stale as reason:
        before, events, whole = nothing, None, str(reason)
    added = sorted(files.keys() - before.files.keys())
    new = forgotten.without(_rows(spark, settings.archive, log, added), until)
    rows, complete, positions = _survey(new)
    _write(new, events, folder)
    kept = Kept(
        archive=settings.archive,
        files=files,
        forgotten=digest,
        rows=before.rows + rows,
        complete=before.complete + complete,
        positions={
            place: max(before.positions.get(place, -1), positions.get(place, -1))
            for place in before.positions | positions
        },
    )
    (folder / _KEPT).write_text(kept.model_dump_json())
    return LogReading(
        events=spark.read.parquet(str(folder / _EVENTS)),
        kept=kept,
        files_read=len(added),
        rows_read=rows,
        files_reused=len(before.files),
        rows_reused=before.rows,
        whole=whole,
    )


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


def _files(spark: SparkSession, archive: str) -> Files:
    """The complete files of the log as they lie there now.

    Spark takes names from the sink's list where there is one, size and time from the files themselves.
    """
    found = spark.read.format("binaryFile").option("pathGlobFilter", "*.parquet").load(archive)
    rows = found.select("path", "length", f.unix_millis("modificationTime")).collect()
    return {_name(path): (int(size), int(changed_ms)) for path, size, changed_ms in rows}


def _name(path: str) -> str:
    """The last two parts of a URI: log_day=…/file."""
    return "/".join(unquote(path).split("/")[-2:])


def _reuse(
    spark: SparkSession, root: Path, now: Kept, files: Files, full: bool
) -> tuple[Kept, DataFrame]:
    """What the last version kept. Raises _Stale with the reason where it does not hold any more."""
    if full:
        raise _Stale("it was asked for")
    try:
        folder = workspace.latest(root, "pipeline etl")[1]
        kept = Kept.model_validate_json((folder / _KEPT).read_text())
    except (workspace.MissingStep, OSError, ValidationError):
        raise _Stale("there is nothing from an earlier run") from None
    if kept.archive != now.archive:
        raise _Stale(f"the last run read another log, {kept.archive}")
    if kept.forgotten != now.forgotten:
        raise _Stale("other users are forgotten now")
    changed = [name for name, state in kept.files.items() if files.get(name) != state]
    if changed:
        raise _Stale(
            f"of the files that the last run had read {len(changed)} have changed or are gone"
        )
    return kept, spark.read.parquet(str(folder / _EVENTS))


def _rows(spark: SparkSession, archive: str, log: DataFrame, names: list[str]) -> DataFrame:
    paths = [f"{archive}/{name}" for name in names]
    rows = spark.createDataFrame([], log.schema)
    if paths:
        rows = spark.read.schema(log.schema).option("basePath", archive).parquet(*paths)
    return rows.select(*_COLUMNS).withColumn("event_time", f.col("event_time").cast("timestamp"))


def _survey(rows: DataFrame) -> tuple[int, int, dict[str, int]]:
    """Rows, complete rows, and the highest offset of each topic/partition."""
    complete = f.count_if(_complete())
    parts = (
        rows.groupBy("topic", "partition").agg(f.max("offset"), f.count("*"), complete).collect()
    )
    positions = {f"{p[0]}/{p[1]}": int(p[2]) for p in parts}
    return sum(p[3] for p in parts), sum(p[4] for p in parts), positions


def _complete() -> Column:
    whole = f.lit(True)
    for name in ("event_id", "user_id", "item_id", "event_time", "action"):
        whole = whole & f.col(name).isNotNull()
    return whole


def _write(new: DataFrame, events: DataFrame | None, folder: Path) -> None:
    """Write the earliest row of each event id, of the new rows and those kept."""
    rows = new.where(_complete())
    if events is not None:
        rows = rows.unionByName(events)
    first = rows.groupBy("event_id").agg(f.min(f.struct(*_ROW)).alias("row"))
    first.select("event_id", "row.*").write.parquet(str(folder / _EVENTS))
