"""`afterclick bench ingest`: events per second from Kafka through Spark into Redis, with an exact
result.

Starts its own Kafka and Valkey, fills the log, lets the stream job apply it in micro-batches and
reconciles the state. For comparison a naive writer: the same events, one command at a time, without
the protocol.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import structlog

from afterclick.errors import BadEvent
from afterclick.events import decode_interaction
from afterclick.io.kafka_log import KafkaLog, lag
from afterclick.settings import Settings
from infra.benchmarks.harness import Benchmark, Figures, Stack, load_average, own_stack
from ingest.replay import ReplayOptions, replay
from ingest.rows import SCHEMA
from ingest.sorting import SortedDataset, SortManifest, write_run
from streaming.positions import applied_offsets, log_ranges
from streaming.proof.reconcile import reconcile

log = structlog.get_logger()


@dataclass(frozen=True)
class ThroughputBenchmark(Benchmark):
    events: int = 300_000
    users: int = 100_000
    items: int = 10_000
    naive_events: int = 20_000
    archive_s: float = 5.0

    def run(self, settings: Settings) -> Figures:
        env = {"AFTERCLICK_STREAM__ARCHIVE_SECONDS": str(self.archive_s)}
        with own_stack(settings, env) as stack:
            log.info("filling the log", events=self.events)
            produced = producer_events_per_s(stack.settings, self.events, self.users, self.items)
            figures = self._apply_all(stack)
            report = reconcile(stack.settings)
            figures |= {
                "producer_events_per_s": round(produced),
                "reconcile_differences": report.differences,
                "naive_events_per_s": round(_naive(stack, self.naive_events)),
                "users": report.users,
                "items": report.items,
            }
            bytes_per_user = figures.pop("redis_bytes") / max(report.users, 1)
            figures["redis_bytes_per_user"] = round(bytes_per_user)
            ratio = figures["events_per_s"] / figures["naive_events_per_s"]
            figures["times_naive"] = round(ratio, 2)
            return figures

    def _apply_all(self, stack: Stack) -> Figures:
        """Apply the log. The clock starts with the first event: Spark's start is excluded."""
        ranges, keys = log_ranges(stack.settings.kafka), stack.settings.redis.keys
        with stack.client() as client:
            memory_before, server_cpu_before = _memory(client), _server_cpu(client)

            def pending() -> int:
                return lag(ranges, applied_offsets(client, keys, ranges))

            stack.job.start()
            stack.wait(lambda: pending() < self.events, "the first event to be applied", 180)
            started, events, job_cpu_before = time.monotonic(), pending(), stack.job.cpu_s()
            stack.wait(lambda: pending() == 0, "the stream to catch up", 900)
            seconds = time.monotonic() - started
            job_cpu = stack.job.cpu_s() - job_cpu_before
            cpu = job_cpu + _server_cpu(client) - server_cpu_before
            stack.job.stop()
            used = _memory(client) - memory_before
        log.info("applied", events=events, seconds=round(seconds, 1))
        return {
            "events": self.events,
            "measured_events": events,
            "seconds": round(seconds, 2),
            "events_per_s": round(events / seconds),
            "cpu_s_per_million": round(cpu / events * 1e6, 1),
            "redis_bytes": used,
            "redis_bytes_per_event": round(used / self.events),
            "load_average": load_average(),
        }


def _naive(stack: Stack, max_events: int) -> float:
    """Events per second of a consumer that waits for one Redis command per event."""
    with KafkaLog(stack.settings.kafka) as kafka_log, stack.client() as client:
        records = kafka_log.read(log_ranges(stack.settings.kafka))
        written, started = 0, time.monotonic()
        for record in islice(records, max_events):
            try:
                data = decode_interaction(record.value()).data
            except BadEvent:
                continue
            client.hincrby("naive:counts", data.item_id, 1)
            written += 1
        return written / (time.monotonic() - started)


def _memory(client: Any) -> int:
    return int(client.info("memory")["used_memory"])


def _server_cpu(client: Any) -> float:
    used = client.info("cpu")
    return float(used["used_cpu_user"] + used["used_cpu_sys"])


def producer_events_per_s(
    settings: Settings, events: int, users: int = 50_000, items: int = 10_000
) -> float:
    """Events per second of a whole replay at `max`: read, encode, send, acknowledge.

    Writes synthetic events, generated beforehand, to the existing reviews topic of `settings`.
    """
    with tempfile.TemporaryDirectory(prefix="afterclick-bench-") as name:
        data = synthetic(Path(name), events, users, items)
        replay_settings = settings.model_copy(update={"home": Path(name) / "home"})
        return replay(data, replay_settings, ReplayOptions()).events_per_s


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
