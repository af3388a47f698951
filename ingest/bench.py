"""How many events a second the replay's producer path brings into Kafka.

reads   file   a generated dataset in a temporary folder
writes  topic  reviews, of the settings given
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa

from afterclick.settings import Settings
from ingest.replay import ReplayOptions, replay
from ingest.rows import SCHEMA
from ingest.sorting import SortedDataset, SortManifest, write_run


def producer_events_per_s(
    settings: Settings, events: int, users: int = 50_000, items: int = 10_000
) -> float:
    """Events per second of a whole replay at `max`: read, encode, send, acknowledged by all
    replicas.

    The events are synthetic (made beforehand) and go to the reviews topic of `settings`, which must
    exist.
    """
    with tempfile.TemporaryDirectory(prefix="afterclick-bench-") as name:
        data = synthetic(Path(name), events, users, items)
        own = settings.model_copy(update={"home": Path(name) / "home"})
        return replay(data, own, ReplayOptions()).events_per_s


def synthetic(folder: Path, events: int, users: int, items: int, seed: int = 1) -> SortedDataset:
    """A sorted dataset of random interactions, one per second, with long-tailed popularity."""
    random = np.random.default_rng(seed)
    bought = np.minimum(random.zipf(1.2, events) - 1, items - 1)
    first_ms, last_ms = 1_700_000_000_000, 1_700_000_000_000 + 1000 * (events - 1)
    columns = {
        "user_id": pa.array([f"A{n:013}" for n in random.integers(0, users, events).tolist()]),
        "item_id": pa.array([f"B{n:09}" for n in bought.tolist()]),
        "time_ms": pa.array(np.arange(first_ms, last_ms + 1, 1000)),
        "rating": pa.array(random.integers(1, 6, events).astype(float)),
        "text": pa.nulls(events, pa.string()),
        "action": pa.nulls(events, pa.string()),
    }
    write_run(pa.table(columns, schema=SCHEMA), folder / "run-0000.arrow")
    manifest = SortManifest(
        name="synthetic",
        fingerprint=f"synthetic-{events}-{users}-{items}-{seed}",
        runs=1,
        rows=events,
        good=events,
        bad=0,
        samples=[],
        first_ms=first_ms,
        last_ms=last_ms,
    )
    return SortedDataset(folder, manifest)
