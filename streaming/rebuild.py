"""Make the state anew from the Parquet log, beside the live one, and swap it in. The stream goes on there.

reads   parquet  <archive>/log_day=*/*.parquet
writes  redis    forgotten, {u:<user>}:*, {p:<topic>:<partition>}:*
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.dataset as ds
import redis

from afterclick.errors import StateConflict
from afterclick.events import Interaction, encode, interaction_event
from afterclick.redis_keys import Keys
from afterclick.settings import Settings
from streaming import forgotten, lease
from streaming.apply import Applier, Plan, Record
from streaming.connection import NodeConnection, load_functions
from streaming.job import client_of, function_library
from streaming.positions import Place, places

_DATA = ("user_id", "item_id", "action", "rating", "text", "impression_id", "session_id")
_BLOCK = 5000


@dataclass(frozen=True)
class Rebuilt:
    """What a rebuild found in the log, and the positions the state stands at now."""

    events: int
    positions: dict[str, int]


def rebuild(settings: Settings) -> Rebuilt:
    """Make the state anew. No stream job may run meanwhile.

    Raises StateLocked where one does, and StateConflict where there is no log to make it from.
    """
    with closing(client_of(settings)) as client:
        load_functions(client, function_library())
        with lease.held(client, settings.redis.keys.lease, settings.stream.lease_s):
            log = ds.dataset(files_of(settings.archive), partitioning="hive")
            beside = Keys(f"{settings.redis.prefix}rebuilding:")
            _remove(client, beside, "u")
            _remove(client, beside, "p")
            client.delete(beside.forgotten_users)
            forgotten.restore(client, beside, settings.kafka)
            plan = replace(Plan.of(settings, 1), keys=beside)
            applier = Applier(plan, NodeConnection(settings.redis.url))
            events = sum(_apply(applier, log, place) for place in places(settings.kafka))
            swap(client, beside, settings.redis.keys)
            at = {
                place: client.get(settings.redis.keys.applied_offset(*place))
                for place in places(settings.kafka)
            }
    found = {f"{topic}/{n}": int(value) for (topic, n), value in at.items() if value is not None}
    return Rebuilt(events, found)


def files_of(folder: str) -> list[str]:
    """The files of the log that are complete: where Spark's sink keeps a list, those on it.

    Raises StateConflict where there are none.
    """
    archive = Path(folder)
    commits = sorted((archive / "_spark_metadata").glob("[0-9]*"))
    if commits:
        lines = (line for commit in commits for line in commit.read_text().splitlines()[1:])
        files = sorted({json.loads(line)["path"].removeprefix("file://") for line in lines})
    else:
        files = sorted(str(path) for path in archive.glob("log_day=*/*.parquet"))
    if not files:
        raise StateConflict(f"there is no log in {archive} to make the state from")
    return files


def _apply(applier: Applier, log: Any, place: Place) -> int:
    """Apply one partition's part of the log; the number of its events."""
    topic, partition = place
    chosen = (pc.field("topic") == topic) & (pc.field("partition") == partition)
    table = log.to_table(filter=chosen).sort_by("offset")
    events, following = 0, 0
    for batch in table.to_batches(max_chunksize=_BLOCK):
        records = list(_records(batch.to_pylist(), following))
        if records:
            following = records[-1].offset + 1
            for _ in applier.apply(topic, partition, records):
                pass
        events += len(batch)
    return events


def _records(rows: list[dict[str, Any]], following: int) -> Iterator[Record]:
    """The rows as the records they were, nothing in the place of dead letters; each offset once."""
    for row in rows:
        yield from (Record(missing, None, None, 0.0) for missing in range(following, row["offset"]))
        if row["offset"] >= following:
            event = interaction_event(
                Interaction(**{name: row[name] for name in _DATA}),
                event_id=row["event_id"],
                time=row["event_time"],
                source="rebuild",
            )
            yield Record(row["offset"], None, encode(event), row["log_time"].timestamp() * 1000)
        following = max(following, row["offset"] + 1)


def swap(client: redis.Redis, new: Keys, old: Keys) -> None:
    """Put the state under `new` in the place of the one under `old`, which goes.

    Killed at any moment, what is there is exact: what one user or partition has moves in one transaction, and
    until all users have moved no partition has a position: the next stream begins at the start of the log.
    """
    _remove(client, old, "p")
    _remove(client, old, "u")
    client.unlink(old.forgotten_users)
    for kind in "up":
        for keys in _groups(client, new, kind):
            with client.pipeline() as moved:
                for key in keys:
                    moved.rename(key, old.prefix.encode() + key.removeprefix(new.prefix.encode()))
                moved.execute()
    if client.exists(new.forgotten_users):
        client.rename(new.forgotten_users, old.forgotten_users)


def _remove(client: redis.Redis, keys: Keys, kind: str) -> None:
    for group in _groups(client, keys, kind):
        client.delete(*group)


def _groups(client: redis.Redis, keys: Keys, kind: str) -> Iterable[list[bytes]]:
    """The keys of each user (kind u) or partition (p)."""
    prefix = "".join(f"\\{c}" if c in "*?[]\\" else c for c in keys.prefix)
    groups: dict[bytes, list[bytes]] = {}
    for key in client.scan_iter(match=f"{prefix}{{{kind}:*", count=5000):
        groups.setdefault(key.rpartition(b"}")[0], []).append(key)
    return groups.values()
