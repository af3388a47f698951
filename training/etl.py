"""Turn the Parquet log into the tables that models are fitted on: in Spark, but for the k-core, in memory.

reads   parquet  the log, by training.increment: what came since the last run
        topic    items, by training.catalogue
writes  parquet  <home>/etl/<version>/events        one row per event id, for the next run
                 <home>/etl/<version>/interactions  user_index, item_index, time_ms, weight, core
                 <home>/etl/<version>/users         user_index, user_id, reviews
                 <home>/etl/<version>/items         item_index, item_id, reviews, popularity, first_seen_ms
                 <home>/etl/<version>/catalogue     item_id, title, categories
        json     <home>/etl/<version>/report.json

A version appears whole, by one rename. Every row of the log is accounted for: in = out + dropped by reason.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict
from pyspark.sql import Column, DataFrame, SparkSession, Window
from pyspark.sql import functions as f

from afterclick.errors import BadDataset
from afterclick.events import Action
from afterclick.settings import Settings
from training import catalogue, increment, workspace
from training.core import Core, k_core

MONTH_MS = 30 * 86_400_000.0
_PART = "part-0.parquet"
Progress = Callable[[str], None]


class Report(BaseModel):
    """The account of one ETL run."""

    model_config = ConfigDict(frozen=True)

    rows_in: int
    dropped: dict[str, int]
    rows_out: int
    users: int
    items: int
    core_k: int
    core_dropped: dict[str, int]
    core_rows: int
    core_users: int
    core_items: int
    core_rounds: int
    catalogue: int
    newest_ms: int
    positions: dict[str, int]
    """topic/partition → highest offset that was read"""
    files_read: int = 0
    rows_read: int = 0
    files_reused: int = 0
    """Files of the log that an earlier run had read: their rows were taken from its tables."""
    rows_reused: int = 0
    whole: str | None = None
    """Why all of the log was read; None where only new files were."""

    def balanced(self) -> bool:
        """Whether every row is accounted for, in both filters."""
        read = self.rows_in == self.rows_read + self.rows_reused
        whole = self.rows_in == self.rows_out + sum(self.dropped.values())
        return read and whole and self.rows_out == self.core_rows + sum(self.core_dropped.values())


def run(
    spark: SparkSession,
    settings: Settings,
    progress: Progress = lambda _: None,
    *,
    full: bool = False,
) -> tuple[str, Report]:
    """Run the ETL, over new files of the log alone unless `full`; returns the new version and its report.

    Raises BadDataset without a usable log.
    """
    with workspace.new_version(settings.home / "etl") as (version, folder):
        progress("reading the log")
        reading = increment.read(spark, settings, folder, full)
        progress(_account(reading))
        rows_in, complete = reading.kept.rows, reading.kept.complete
        if not rows_in:
            raise BadDataset(f"the Parquet log in {settings.archive} is empty: ingest events first")
        weights = {str(a): w for a, w in settings.stream.weights.items() if w > 0}
        pairs, left = _pairs(reading.events, weights)
        progress("numbering users and items")
        rows = _number(pairs, folder).toArrow()
        core = k_core(
            rows["user_index"].to_numpy(), rows["item_index"].to_numpy(), settings.training.core
        )
        kept = np.count_nonzero(core.inside)
        progress(
            f"{settings.training.core}-core: {kept:,} of {len(rows):,} interactions, {core.rounds} rounds"
        )
        _write_interactions(rows, core, folder / "interactions")
        report = Report(
            rows_in=rows_in,
            dropped=_differences([rows_in, complete, *left]),
            core_k=settings.training.core,
            core_dropped={"user_below": core.user_below, "item_below": core.item_below},
            core_rounds=core.rounds,
            catalogue=catalogue.write(settings.kafka, folder / "catalogue"),
            positions=reading.kept.positions,
            files_read=reading.files_read,
            rows_read=reading.rows_read,
            files_reused=reading.files_reused,
            rows_reused=reading.rows_reused,
            whole=reading.whole,
            **_totals(rows, core),
        )
        (folder / "report.json").write_text(report.model_dump_json(indent=1))
        spark.catalog.clearCache()
    return version, report


def read_report(folder: Path) -> Report:
    """The report of an earlier run."""
    return Report.model_validate_json((folder / "report.json").read_text())


def _account(reading: increment.LogReading) -> str:
    read = f"{reading.rows_read:,} rows read from {reading.files_read:,} files"
    if reading.whole is not None:
        return f"{read}: all of the log, as {reading.whole}"
    return f"{read}, {reading.rows_reused:,} rows of {reading.files_reused:,} files kept from the last run"


def _pairs(events: DataFrame, weights: dict[str, float]) -> tuple[DataFrame, list[int]]:
    """One row per user and item: the first time, the heaviest action, of what was not undone later.

    Also how many rows were left after each filter: events, positive events, standing events, pairs.
    """
    weight = f.create_map(*[f.lit(x) for pair in weights.items() for x in pair])[f.col("action")]
    events = events.withColumn("weight", weight.cast("float")).persist()
    counts = events.agg(f.count("*"), f.count("weight")).first()
    assert counts is not None
    positive = _standing(events.where(f.col("weight").isNotNull()), events)
    grouped = positive.groupBy("user_id", "item_id")
    pairs = grouped.agg(
        f.min(f.unix_millis("event_time")).alias("time_ms"),
        f.max("weight").alias("weight"),
        f.count("*").alias("events"),
    ).persist()
    kept = pairs.agg(f.count("*"), f.sum("events")).first()
    assert kept is not None
    return pairs.drop("events"), [int(counts[0]), int(counts[1]), int(kept[1] or 0), int(kept[0])]


def _standing(positive: DataFrame, events: DataFrame) -> DataFrame:
    """What no undo of the same user and item, at the same time or later, takes back."""
    undos = events.where(f.col("action") == str(Action.UNDO)).groupBy("user_id", "item_id")
    undone = undos.agg(f.max("event_time").alias("undone"))
    stands = f.col("undone").isNull() | (f.col("event_time") > f.col("undone"))
    return positive.join(undone, ["user_id", "item_id"], "left").where(stands).drop("undone")


def _differences(left: list[int]) -> dict[str, int]:
    reasons = ("incomplete", "duplicate_event", "not_positive", "undone", "repeated_pair")
    return {r: a - b for r, a, b in zip(reasons, left[:-1], left[1:], strict=True)}


def _number(pairs: DataFrame, folder: Path) -> DataFrame:
    """Give users and items their index, by descending count, and write the tables of both."""
    newest = pairs.agg(f.max("time_ms")).first()
    assert newest is not None
    recency = f.pow(f.lit(2.0), (f.col("time_ms") - f.lit(newest[0])) / f.lit(MONTH_MS))
    reviews = f.count("*").alias("reviews")
    users = _table(pairs, "user", [reviews], folder / "users")
    facts = [reviews, f.sum(recency).alias("popularity"), f.min("time_ms").alias("first_seen_ms")]
    items = _table(pairs, "item", facts, folder / "items")
    rows = pairs.join(users, "user_id").join(f.broadcast(items), "item_id")
    return rows.select("user_index", "item_index", "time_ms", "weight")


def _table(pairs: DataFrame, kind: str, facts: list[Column], folder: Path) -> DataFrame:
    """Write the table of users or items, one row each; returns id and index."""
    key = f"{kind}_id"
    order = Window.orderBy(f.col("reviews").desc(), key)
    index = (f.row_number().over(order) - 1).alias(f"{kind}_index")
    pairs.groupBy(key).agg(*facts).select(index, "*").coalesce(1).write.parquet(str(folder))
    return pairs.sparkSession.read.parquet(str(folder)).select(key, f"{kind}_index")


def _write_interactions(rows: pa.Table, core: Core, folder: Path) -> None:
    """Write the rows, with the column `core`, in the order of users and items."""
    folder.mkdir()
    rows = rows.append_column("core", pa.array(core.inside))
    pq.write_table(
        rows.sort_by([("user_index", "ascending"), ("item_index", "ascending")]), folder / _PART
    )


def _totals(rows: pa.Table, core: Core) -> dict[str, int]:
    inside = rows.filter(pa.array(core.inside))
    return {
        "rows_out": len(rows),
        "users": pc.count_distinct(rows["user_index"]).as_py(),
        "items": pc.count_distinct(rows["item_index"]).as_py(),
        "core_rows": len(inside),
        "core_users": pc.count_distinct(inside["user_index"]).as_py(),
        "core_items": pc.count_distinct(inside["item_index"]).as_py(),
        "newest_ms": pc.max(rows["time_ms"]).as_py(),
    }
