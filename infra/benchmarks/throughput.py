"""`afterclick bench ingest`: how many events a second go from Kafka through Spark into Redis, exactly.

Starts its own Kafka and Valkey, fills the log, lets the stream job apply it in micro-batches, and proves the
result. Beside it a naive writer: the same events, one command at a time, no protocol at all.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import structlog
from confluent_kafka import Consumer, TopicPartition

from afterclick.errors import BadEvent
from afterclick.events import decode_interaction
from afterclick.io.kafka_log import lag
from infra.benchmarks.stream_stack import Stack, own_stack
from ingest.bench import producer_events_per_s
from streaming.positions import applied_offsets, log_ranges
from streaming.proof.reconcile import reconcile

log = structlog.get_logger()


@dataclass(frozen=True)
class Bench:
    """What to run."""

    events: int = 300_000
    users: int = 100_000
    items: int = 10_000
    naive_events: int = 20_000
    archive_s: float = 5.0


def run(bench: Bench, jars: Path) -> dict[str, Any]:
    """Run it all; the figures."""
    with own_stack(jars, AFTERCLICK_STREAM__ARCHIVE_SECONDS=str(bench.archive_s)) as stack:
        log.info("filling the log", events=bench.events)
        produced = producer_events_per_s(stack.settings, bench.events, bench.users, bench.items)
        figures = _apply_all(stack, bench)
        report = reconcile(stack.settings)
        figures |= {
            "producer_events_per_s": round(produced),
            "reconcile_differences": report.differences,
            "naive_events_per_s": round(_naive(stack, bench.naive_events)),
            "users": report.users,
            "items": report.items,
        }
        figures["redis_bytes_per_user"] = round(figures.pop("redis_bytes") / max(report.users, 1))
        figures["times_naive"] = round(figures["events_per_s"] / figures["naive_events_per_s"], 2)
        return figures


def _apply_all(stack: Stack, bench: Bench) -> dict[str, Any]:
    """Let the job apply the log. The clock starts with the first event applied, not with Spark."""
    spans, keys = log_ranges(stack.settings.kafka), stack.settings.redis.keys
    with stack.client() as client:
        memory, server_cpu = _memory(client), _server_cpu(client)

        def left() -> int:
            return lag(spans, applied_offsets(client, keys, spans))

        stack.job.start()
        stack.wait(lambda: left() < bench.events, "the first event to be applied", 180)
        started, first, job_cpu = time.monotonic(), left(), stack.job.cpu_s()
        stack.wait(lambda: left() == 0, "the stream to catch up", 900)
        seconds = time.monotonic() - started
        cpu = stack.job.cpu_s() - job_cpu + _server_cpu(client) - server_cpu
        stack.job.stop()
        used = _memory(client) - memory
    log.info("applied", events=first, seconds=round(seconds, 1))
    return {
        "events": bench.events,
        "measured_events": first,
        "seconds": round(seconds, 2),
        "events_per_s": round(first / seconds),
        "cpu_s_per_million": round(cpu / first * 1e6, 1),
        "redis_bytes": used,
        "redis_bytes_per_event": round(used / bench.events),
        "load_average": [round(value, 1) for value in psutil.getloadavg()],
    }


def _naive(stack: Stack, most: int) -> float:
    """Events per second of a consumer that sends Redis one command per event and waits for each answer."""
    kafka = stack.settings.kafka
    consumer = Consumer(
        {"bootstrap.servers": kafka.bootstrap, "group.id": "naive", "auto.offset.reset": "earliest"}
    )
    consumer.assign(
        [TopicPartition(*place, 0) for place, span in log_ranges(kafka).items() if span.end]
    )
    done, started = 0, time.monotonic()
    with stack.client() as client:
        while done < most:
            for message in consumer.consume(500, 5.0):
                try:
                    data = decode_interaction(message.value()).data
                except BadEvent:
                    continue
                client.hincrby("naive:counts", data.item_id, 1)
                done += 1
    consumer.close()
    return done / (time.monotonic() - started)


def _memory(client: Any) -> int:
    return int(client.info("memory")["used_memory"])


def _server_cpu(client: Any) -> float:
    used = client.info("cpu")
    return float(used["used_cpu_user"] + used["used_cpu_sys"])
