"""Turn the event archive into the tables that models are fitted on.

reads   parquet  the log, incrementally (training.log_reader)
        topic    items: the catalogue; impressions: where lists showed the items
writes  parquet  <home>/etl/<version>/events     one row per event: user_index, item_index, time_ms,
                                                 trusted_ms, action, stars, weight, propensity,
                                                 position
                 <home>/etl/<version>/reactions  one row per event on an item of a known list:
                                                 impression_id, user_index, item_id, time_ms, weight
                 <home>/etl/<version>/users      user_index, user_id
                 <home>/etl/<version>/items      item_index, item_id
                 <home>/etl/<version>/catalogue  item_id, title, categories, brand
        json     <home>/etl/<version>/report.json

Events are kept as they happened, undone ones too: training.event_log says what they mean as of a
moment. An event that names no list (organic) has position −1 and propensity NaN; one whose list is
not known, or did not contain the item, position −1 and propensity 1. Indices follow the order of
the ids. A version appears whole, by one rename. Each row of the log is either in the table or
counted as dropped, by reason.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import structlog
from pydantic import BaseModel, ConfigDict
from pyspark.sql import Column, DataFrame, SparkSession, Window
from pyspark.sql import functions as f

from afterclick.errors import BadDataset, BadEvent
from afterclick.events import Action, Item, ItemEvent, decode
from afterclick.io.kafka_log import read_compacted
from afterclick.settings import KafkaSettings, Settings
from training import event_log, log_reader, shown_lists, workspace
from training.event_log import EventLog
from training.interactions import Interactions, k_core

log = structlog.get_logger()
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
    """Events in the table."""
    users: int
    items: int
    not_pairs: dict[str, int]
    """Events that are no first contact of a user and an item, by reason."""
    pairs: int
    listed: int
    """Events that name a list they came from."""
    placed: int
    """Of these, the events whose place in the list is known."""
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
    rows_read: int = 0
    rows_reused: int = 0
    """Rows whose events were taken from the previous run."""
    whole: str | None = None
    """Why the whole archive was read; None after an incremental read."""

    def balanced(self) -> bool:
        """Whether every row, event and pair is accounted for."""
        return (
            self.rows_in == self.rows_read + self.rows_reused
            and self.rows_in == self.rows_out + sum(self.dropped.values())
            and self.rows_out == self.pairs + sum(self.not_pairs.values())
            and self.pairs == self.core_rows + sum(self.core_dropped.values())
        )

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
            raise BadDataset(f"the archive in {settings.archive} is empty: ingest events first")
        progress("numbering users and items")
        _write_events(spark, settings, reading.events, folder)
        catalogue = _write_catalogue(settings.kafka, folder / "catalogue")
        report = _report(settings, reading, event_log.load(folder), catalogue)
        progress(f"{report.core_k}-core: {report.core_rows:,} of {report.pairs:,} interactions")
        (folder / "report.json").write_text(report.model_dump_json(indent=1))
    return version, report


def _summary(reading: log_reader.LogReading) -> str:
    read = f"{reading.rows_read:,} rows read"
    if reading.whole is not None:
        return f"{read}: the whole archive, because {reading.whole}"
    return f"{read}, {reading.rows_reused:,} reused from the previous run"


def _write_events(spark: SparkSession, settings: Settings, rows: DataFrame, folder: Path) -> None:
    """Write the events with indices for ids, and the tables of users and items."""
    previous = log_reader.previous_version(settings.home / "etl")
    shown_lists.read(settings.kafka, previous, folder)
    placed = shown_lists.place(spark, rows, previous, folder)
    users = _write_ids(rows, "user", folder / "users")
    items = _write_ids(rows, "item", folder / "items")
    organic, unknown = f.col("impression_id").isNull(), f.lit(1.0)
    propensity = f.when(organic, f.lit(float("nan"))).otherwise(f.coalesce("propensity", unknown))
    columns = {
        "stars": f.coalesce(_stars(), f.lit(0)).cast("byte"),
        "weight": _weight(settings).cast("float"),
        "propensity": propensity.cast("float"),
        "position": f.coalesce("position", f.lit(-1)).cast("short"),
    }
    named = [column.alias(name) for name, column in columns.items()]
    events = placed.join(users, "user_id").join(f.broadcast(items), "item_id")
    _write_reactions(events.withColumn("weight", columns["weight"]), folder / "reactions")
    events = events.select("user_index", "item_index", "time_ms", "trusted_ms", "action", *named)
    events.write.parquet(str(folder / "events"))


def _write_reactions(events: DataFrame, folder: Path) -> None:
    """Write the events on items of known lists that have a weight and were not undone."""
    pair = ["user_index", "item_index"]
    undo = events.where(f.col("action") == str(Action.UNDO))
    undone = undo.groupBy(*pair).agg(f.max("time_ms").alias("undone_ms"))
    placed = events.where(f.col("position").isNotNull() & (f.col("weight") != 0.0))
    kept = placed.join(undone, pair, "left")
    kept = kept.where(f.coalesce(f.col("time_ms") > f.col("undone_ms"), f.lit(True)))
    columns = ("impression_id", "user_index", "item_id", "time_ms", "weight")
    kept.select(*columns).coalesce(1).write.parquet(str(folder))


def _weight(settings: Settings) -> Column:
    """The weight of each row, by action and stars."""
    signals = settings.stream.signals
    actions = f.create_map(*[f.lit(x) for a, w in signals.actions.items() for x in (str(a), w)])
    stars = f.create_map(*[f.lit(x) for pair in signals.stars.items() for x in pair])
    return f.coalesce(stars[_stars()], actions[f.col("action")], f.lit(0.0))


def _stars() -> Column:
    """As `signals.stars_of`; null for no review and without a rating."""
    whole = f.floor(f.col("rating") + 0.5).cast("int")
    stars = f.least(f.greatest(whole, f.lit(1)), f.lit(5))
    rated = (f.col("action") == str(Action.REVIEW)) & f.col("rating").isNotNull()
    return f.when(rated, stars)


def _write_ids(rows: DataFrame, kind: str, folder: Path) -> DataFrame:
    """Write the table of users or items, numbered in the order of their ids."""
    index = f.row_number().over(Window.orderBy(f"{kind}_id")) - 1
    ids = rows.select(f"{kind}_id").distinct().withColumn(f"{kind}_index", index)
    ids.coalesce(1).write.parquet(str(folder))
    return rows.sparkSession.read.parquet(str(folder))


def _report(
    settings: Settings, reading: log_reader.LogReading, events: EventLog, catalogue: int
) -> EtlReport:
    """The account of the run. Raises BadDataset without interactions."""
    pairs = events.pairs()
    not_pairs, dropped = _not_pairs(events, len(pairs)), _dropped(reading, len(events))
    if not len(pairs):
        reasons = [f"{name}: {n:,}" for name, n in (dropped | not_pairs).items() if n]
        raise BadDataset(
            f"no interactions in the archive in {settings.archive} "
            f"({', '.join(reasons)}): ingest more events"
        )
    return EtlReport(
        rows_in=reading.state.rows,
        dropped=dropped,
        rows_out=len(events),
        users=len(events.user_ids),
        items=len(events.item_ids),
        not_pairs=not_pairs,
        pairs=len(pairs),
        listed=int(np.count_nonzero(~np.isnan(events.propensity))),
        placed=int(np.count_nonzero(events.position >= 0)),
        catalogue=catalogue,
        newest_ms=int(events.time_ms[-1]),
        positions=reading.state.positions,
        rows_read=reading.rows_read,
        rows_reused=reading.rows_reused,
        whole=reading.whole,
        **_core(pairs, settings.training.core),
    )


def _dropped(reading: log_reader.LogReading, events: int) -> dict[str, int]:
    """Rows of the log that are not in the table, by reason."""
    state = reading.state
    return {
        "incomplete": state.rows - state.complete,
        "dated_ahead": state.complete - state.valid,
        "duplicate_event": state.valid - reading.copied - events,
        "copied_to_user": reading.copied,
    }


def _not_pairs(events: EventLog, pairs: int) -> dict[str, int]:
    """Events that are no first contact, by reason."""
    positive = events.weight > 0
    effective = int(np.count_nonzero(positive & ~events.undone()))
    outweighed = int(np.count_nonzero(positive & events.outweighed()))
    return {
        "not_positive": int(np.count_nonzero(~positive)),
        "undone": int(np.count_nonzero(positive)) - effective,
        "outweighed": outweighed,
        "repeated_pair": effective - outweighed - pairs,
    }


def _core(pairs: Interactions, k: int) -> dict[str, Any]:
    """The account of the k-core."""
    core = k_core(pairs.user, pairs.item, k)
    inside = pairs.where(core.inside)
    return {
        "core_k": k,
        "core_dropped": {"user_below": core.user_below, "item_below": core.item_below},
        "core_rounds": core.rounds,
        "core_rows": len(inside),
        "core_users": int(np.count_nonzero(inside.user_counts())),
        "core_items": int(np.count_nonzero(inside.item_counts())),
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
