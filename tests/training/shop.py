"""Small synthetic shops with obvious right answers."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import write_deltalake

from afterclick.events import Item, ItemEvent, encode, new_id, now
from afterclick.settings import KafkaSettings, Settings
from streaming.archive_table import ARCHIVE_SCHEMA, create_archive
from training import workspace
from training.etl import EtlReport
from training.event_log import ACTIONS, EventLog
from training.interactions import Interactions

DAY_MS = 86_400_000
START = datetime(2026, 1, 1, tzinfo=UTC)
ARRIVED = START + timedelta(days=400)
"""When the rows of a log reached it."""


def interactions(
    pairs: list[tuple[int, int]], users: int, items: int, days: int = 1
) -> Interactions:
    """The pairs (user, item) as interactions of weight 1, `days` apart."""
    user, item = (np.array([p[side] for p in pairs], np.int32) for side in (0, 1))
    times = int(START.timestamp() * 1000) + np.arange(len(pairs), dtype=np.int64) * days * DAY_MS
    return Interactions(
        np.array([f"u{i}" for i in range(users)]),
        np.array([f"i{i}" for i in range(items)]),
        user,
        item,
        times,
        np.ones(len(pairs), np.float32),
    )


def checkerboard(size: int = 40, missing: int = 2) -> tuple[Interactions, list[tuple[int, int]]]:
    """Even users have the even items, odd users the odd ones; `missing` of each are held out.

    Returns the rest, and what was held out.
    """
    random = np.random.default_rng(7)
    kept, held = [], []
    for user in range(size):
        own = [i for i in range(size) if i % 2 == user % 2]
        out = set(random.choice(own, missing, replace=False).tolist())
        kept += [(user, i) for i in own if i not in out]
        held += [(user, i) for i in out]
    random.shuffle(kept)
    return interactions([(int(u), int(i)) for u, i in kept], size, size), held


def drifting_events(
    seed: int = 3, users: int = 300, items: int = 60, days: int = 120
) -> list[dict[str, Any]]:
    """Events of a shop with two tastes: every user buys within their own half of the catalogue."""
    random = np.random.default_rng(seed)
    popularity = 1.0 / np.arange(1, items // 2 + 1) ** 0.8
    popularity /= popularity.sum()
    events = []
    for user in range(users):
        count = int(random.integers(4, 14))
        mine = random.choice(items // 2, min(count, items // 2), replace=False, p=popularity)
        for item in mine.tolist():
            day = float(random.uniform(0, days))
            events.append(event(f"u{user}", f"i{2 * item + user % 2}", day))
    return events


def event(user_id: str, item_id: str, day: float = 0.0, **changes: Any) -> dict[str, Any]:
    """One row of the log, without its position."""
    row = {
        "event_id": new_id(),
        "event_time": START + timedelta(days=day),
        "user_id": user_id,
        "item_id": item_id,
        "action": "review",
        "source": "dataset/test",
    }
    return {**row, **changes}


def write_log(
    archive: str, rows: list[dict[str, Any]], partitions: int = 2, log_day: str = "2026-01-01"
) -> None:
    """Append rows to the archive in one commit, as the archive query does."""
    table = create_archive(archive).table
    first = table.count()
    placed = [
        {
            **row,
            "topic": "reviews",
            "partition": n % partitions,
            "offset": n // partitions,
            "log_time": ARRIVED,
            "log_day": log_day,
        }
        for n, row in enumerate(rows, start=first)
    ]
    write_deltalake(table, pa.Table.from_pylist(placed, schema=ARCHIVE_SCHEMA), mode="append")


def publish_items(kafka: KafkaSettings, items: list[Item]) -> None:
    """Put items on the catalogue's topic."""
    from confluent_kafka import Producer

    producer = Producer({"bootstrap.servers": kafka.bootstrap})
    for item in items:
        made = ItemEvent(id=new_id(), source="/test", time=now(), subject=item.item_id, data=item)
        producer.produce(kafka.topics.items, encode(made), item.item_id.encode())
    assert producer.flush(30) == 0


def write_tables(
    settings: Settings, rows: Interactions, titles: dict[str, str] | None = None
) -> None:
    """Write the tables of an ETL run as the latest version, without Spark."""
    with workspace.new_version(settings.home / "etl") as (_, folder):
        _write(folder / "events", _columns(EventLog.of(rows)))
        for kind, ids in (("user", rows.user_ids), ("item", rows.item_ids)):
            _write(folder / f"{kind}s", {f"{kind}_index": np.arange(len(ids)), f"{kind}_id": ids})
        known = titles or {}
        catalogue = {
            "item_id": list(known),
            "title": list(known.values()),
            "categories": [[] for _ in known],
        }
        _write(folder / "catalogue", catalogue)
        n = len(rows)
        report = EtlReport(
            rows_in=n,
            dropped={},
            rows_out=n,
            not_pairs={},
            pairs=n,
            listed=0,
            placed=0,
            users=len(rows.user_ids),
            items=len(rows.item_ids),
            core_k=1,
            core_dropped={},
            core_rows=n,
            core_users=len(rows.user_ids),
            core_items=len(rows.item_ids),
            core_rounds=1,
            catalogue=len(known),
            newest_ms=int(rows.time_ms.max()) if n else 0,
            positions={"reviews/0": n - 1},
        )
        (folder / "report.json").write_text(report.model_dump_json())


def _columns(log: EventLog) -> dict[str, Any]:
    """The columns of the table of events."""
    return {
        "user_index": log.user,
        "item_index": log.item,
        "time_ms": log.time_ms,
        "trusted_ms": log.trusted_ms,
        "action": [str(ACTIONS[code]) for code in log.action],
        "stars": log.stars,
        "weight": log.weight,
        "propensity": log.propensity,
        "position": log.position,
    }


def _write(folder: Path, columns: dict[str, Any]) -> None:
    folder.mkdir()
    pq.write_table(
        pa.table({k: pa.array(list(v)) for k, v in columns.items()}), folder / "part-0.parquet"
    )


def every_pair(users: int, items: int) -> list[tuple[int, int]]:
    """Every user has every item."""
    return [(user, item) for user in range(users) for item in range(items)]
