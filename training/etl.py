"""Turn the Parquet log into the tables that models are fitted on.

reads   parquet  the log, incrementally (training.log_reader)
        topic    items: the catalogue
writes  parquet  <home>/etl/<version>/events        one row per event_id, for the next run
                 <home>/etl/<version>/interactions  user_index, item_index, time_ms, weight, core
                 <home>/etl/<version>/users         user_index, user_id, reviews
                 <home>/etl/<version>/items         item_index, item_id, reviews, popularity,
                                                    first_seen_ms
                 <home>/etl/<version>/catalogue     item_id, title, categories, brand
        json     <home>/etl/<version>/report.json

Spark does all but the k-core, which runs in memory. A version appears whole, by one rename. Each
row of the log is either in the tables or counted as dropped, by reason.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import structlog
from pydantic import BaseModel, ConfigDict
from pyspark.sql import Column, DataFrame, SparkSession, Window
from pyspark.sql import functions as f

from afterclick.errors import BadDataset, BadEvent
from afterclick.events import Action, Item, ItemEvent, decode
from afterclick.io.kafka_log import read_compacted
from afterclick.settings import KafkaSettings, Settings
from training import log_reader, workspace
from training.interactions import KCore, k_core

log = structlog.get_logger()
MONTH_MS = 30 * 86_400_000.0
_PART = "part-0.parquet"
_CATALOGUE = pa.schema(
    {
        "item_id": pa.string(),
        "title": pa.string(),
        "categories": pa.list_(pa.string()),
        "brand": pa.string(),
    }
)
Progress = Callable[[str], None]


class EtlReport(BaseModel):
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
    """topic/partition → highest offset"""
    files_read: int = 0
    rows_read: int = 0
    files_reused: int = 0
    """Log files whose events were taken from the previous run."""
    rows_reused: int = 0
    whole: str | None = None
    """Why the whole log was read; None after an incremental read."""

    def balanced(self) -> bool:
        """Whether every row is accounted for."""
        read = self.rows_in == self.rows_read + self.rows_reused
        kept = self.rows_in == self.rows_out + sum(self.dropped.values())
        core = self.rows_out == self.core_rows + sum(self.core_dropped.values())
        return read and kept and core

    @classmethod
    def read(cls, folder: Path) -> EtlReport:
        """The report of the version in `folder`."""
        return cls.model_validate_json((folder / "report.json").read_text())


def run(
    spark: SparkSession,
    settings: Settings,
    progress: Progress = lambda _: None,
    *,
    full: bool = False,
) -> tuple[str, EtlReport]:
    """Run the ETL, incrementally unless `full`; returns the new version and its report.

    Raises BadDataset without a usable log or without interactions.
    """
    with workspace.new_version(settings.home / "etl") as (version, folder):
        progress("reading the log")
        reading = log_reader.read(spark, settings, folder, full)
        progress(_summary(reading))
        if not reading.state.rows:
            raise BadDataset(f"the Parquet log in {settings.archive} is empty: ingest events first")
        weights = {str(a): w for a, w in settings.stream.weights.items() if w > 0}
        pairs, remaining = _pairs(reading.events, weights)
        if not remaining[-1]:
            reasons = _reasons([reading.state.rows, reading.state.complete, *remaining])
            raise BadDataset(
                f"no interactions in the Parquet log in {settings.archive} ({reasons}): "
                "ingest more events"
            )
        progress("numbering users and items")
        rows = _number(pairs, folder).toArrow()
        k = settings.training.core
        core = k_core(rows["user_index"].to_numpy(), rows["item_index"].to_numpy(), k)
        inside = np.count_nonzero(core.inside)
        progress(f"{k}-core: {inside:,} of {len(rows):,} interactions, {core.rounds} rounds")
        _write_interactions(rows, core, folder / "interactions")
        report = EtlReport(
            rows_in=reading.state.rows,
            dropped=_dropped([reading.state.rows, reading.state.complete, *remaining]),
            core_k=k,
            core_dropped={"user_below": core.user_below, "item_below": core.item_below},
            core_rounds=core.rounds,
            catalogue=_write_catalogue(settings.kafka, folder / "catalogue"),
            positions=reading.state.positions,
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


def _summary(reading: log_reader.LogReading) -> str:
    read = f"{reading.rows_read:,} rows read from {reading.files_read:,} files"
    if reading.whole is not None:
        return f"{read}: the whole log, because {reading.whole}"
    reused = f"{reading.rows_reused:,} rows of {reading.files_reused:,} files"
    return f"{read}, {reused} reused from the previous run"


def _pairs(events: DataFrame, weights: dict[str, float]) -> tuple[DataFrame, list[int]]:
    """One row per user and item: the first time and the largest weight of what was not undone.

    Also the rows that remain after each filter: events, positive events, not undone, pairs.
    """
    weight = f.create_map(*[f.lit(x) for pair in weights.items() for x in pair])[f.col("action")]
    events = events.withColumn("weight", weight.cast("float")).persist()
    counts = events.agg(f.count("*"), f.count("weight")).first()
    assert counts is not None
    positive = _not_undone(events.where(f.col("weight").isNotNull()), events)
    pairs = (
        positive.groupBy("user_id", "item_id")
        .agg(
            f.min(f.unix_millis("event_time")).alias("time_ms"),
            f.max("weight").alias("weight"),
            f.count("*").alias("events"),
        )
        .persist()
    )
    totals = pairs.agg(f.count("*"), f.sum("events")).first()
    assert totals is not None
    remaining = [int(counts[0]), int(counts[1]), int(totals[1] or 0), int(totals[0])]
    return pairs.drop("events"), remaining


def _not_undone(positive: DataFrame, events: DataFrame) -> DataFrame:
    """Drop events that an undo of the same user and item, at the same time or later, retracts."""
    undos = events.where(f.col("action") == str(Action.UNDO)).groupBy("user_id", "item_id")
    newest = undos.agg(f.max("event_time").alias("undone"))
    effective = f.col("undone").isNull() | (f.col("event_time") > f.col("undone"))
    return positive.join(newest, ["user_id", "item_id"], "left").where(effective).drop("undone")


def _dropped(remaining: list[int]) -> dict[str, int]:
    reasons = ("incomplete", "duplicate_event", "not_positive", "undone", "repeated_pair")
    pairs = zip(reasons, remaining[:-1], remaining[1:], strict=True)
    return {reason: before - after for reason, before, after in pairs}


def _reasons(remaining: list[int]) -> str:
    dropped = _dropped(remaining)
    return ", ".join(f"{name}: {count:,}" for name, count in dropped.items() if count)


def _number(pairs: DataFrame, folder: Path) -> DataFrame:
    """Index users and items by descending count and write their tables."""
    newest = pairs.agg(f.max("time_ms")).first()
    assert newest is not None
    recency = f.pow(f.lit(2.0), (f.col("time_ms") - f.lit(newest[0])) / f.lit(MONTH_MS))
    reviews = f.count("*").alias("reviews")
    users = _write_table(pairs, "user", [reviews], folder / "users")
    columns = [reviews, f.sum(recency).alias("popularity"), f.min("time_ms").alias("first_seen_ms")]
    items = _write_table(pairs, "item", columns, folder / "items")
    rows = pairs.join(users, "user_id").join(f.broadcast(items), "item_id")
    return rows.select("user_index", "item_index", "time_ms", "weight")


def _write_table(pairs: DataFrame, kind: str, columns: list[Column], folder: Path) -> DataFrame:
    """Write the table of users or items; returns id and index."""
    key = f"{kind}_id"
    order = Window.orderBy(f.col("reviews").desc(), key)
    index = (f.row_number().over(order) - 1).alias(f"{kind}_index")
    pairs.groupBy(key).agg(*columns).select(index, "*").coalesce(1).write.parquet(str(folder))
    return pairs.sparkSession.read.parquet(str(folder)).select(key, f"{kind}_index")


def _write_interactions(rows: pa.Table, core: KCore, folder: Path) -> None:
    """Write the rows with the column `core`, sorted by user and item."""
    folder.mkdir()
    rows = rows.append_column("core", pa.array(core.inside))
    order = [("user_index", "ascending"), ("item_index", "ascending")]
    pq.write_table(rows.sort_by(order), folder / _PART)


def _totals(rows: pa.Table, core: KCore) -> dict[str, int]:
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


def _write_catalogue(kafka: KafkaSettings, folder: Path) -> int:
    """Write the newest event of each item; returns the number of items."""
    rows = [item.model_dump(include=set(_CATALOGUE.names)) for item in _items(kafka).values()]
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist(rows, schema=_CATALOGUE), folder / _PART)
    return len(rows)


def _items(kafka: KafkaSettings) -> dict[str, Item]:
    """item_id → item. A missing topic is an empty catalogue; malformed events are skipped."""
    items: dict[str, Item] = {}
    for value in read_compacted(kafka, kafka.topics.items).values():
        try:
            event = decode(value)
        except BadEvent as error:
            log.warning("malformed item event", error=str(error))
            continue
        if isinstance(event, ItemEvent):
            items[event.data.item_id] = event.data
    return items
