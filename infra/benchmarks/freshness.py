"""`afterclick bench freshness`: from `POST /feedback` to the changed list, through the whole of it.

Starts its own Kafka, Valkey, stream job and API. Clients watch their lists over WebSockets, and send feedback
at a fixed rate whatever the answers do. First under the real-time trigger, then under micro-batches.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import numpy as np
import orjson
import psutil
import structlog
from confluent_kafka import Consumer, TopicPartition
from websockets.asyncio.client import connect

from afterclick.events import new_id
from afterclick.state import StateChange
from infra.benchmarks.load import Pool, get, json_body, post
from infra.benchmarks.servers import running_api
from infra.benchmarks.stream_stack import Stack, own_stack
from infra.embedded.ports import LOOPBACK
from ingest.bench import producer_events_per_s

log = structlog.get_logger()

QUANTILES = {"p50": 50.0, "p95": 95.0, "p99": 99.0, "p999": 99.9, "max": 100.0}
ITEMS = 500
WARM_UP_S = 180.0
CONNECTIONS = 64
BOUNDARY_S = 5.0
"""Events this close to a boundary are left out of the figures without boundaries."""


@dataclass(frozen=True)
class Bench:
    """What to run."""

    rate: float = 200.0
    seconds: float = 300.0
    users: int = 100
    boundaries: int = 2
    micro_batch_s: float = 40.0
    gets_per_s: float = 10.0
    chart: Path | None = None


@dataclass
class Sent:
    """One event on its way: moments in seconds since the epoch."""

    event_id: str
    at: float
    pushed: float | None = None
    got: float | None = None


@dataclass
class Phase:
    """What one run under one trigger found."""

    sent: dict[str, Sent] = field(default_factory=dict)
    waiting: dict[str, deque[Sent]] = field(default_factory=dict)
    changes: dict[str, StateChange] = field(default_factory=dict)
    boundaries: list[float] = field(default_factory=list)
    errors: int = 0

    def push_ms(self, away_from_boundaries: bool = False) -> list[float]:
        return [
            (one.pushed - one.at) * 1000
            for one in self.sent.values()
            if one.pushed is not None and not (away_from_boundaries and self._near(one.at))
        ]

    def get_ms(self) -> list[float]:
        return [(one.got - one.at) * 1000 for one in self.sent.values() if one.got is not None]

    def stages_ms(self) -> dict[str, dict[str, float]]:
        """How long each stage took, where an event has gone through them all."""
        rows = [
            (
                change.log_ms - one.at * 1000,
                change.read_ms - change.log_ms,
                change.applied_ms - change.read_ms,
                one.pushed * 1000 - change.applied_ms,
            )
            for one in self.sent.values()
            if one.pushed is not None and (change := self.changes.get(one.event_id))
        ]
        names = ("produced_to_log", "log_to_read", "read_to_applied", "applied_to_pushed")
        columns = np.array(rows).reshape(-1, len(names)).T
        return {
            name: quantiles(column.tolist(), ("p50", "p99"))
            for name, column in zip(names, columns, strict=True)
        }

    def _near(self, moment: float) -> bool:
        return any(abs(moment - boundary) < BOUNDARY_S for boundary in self.boundaries)


def quantiles(values: list[float], names: tuple[str, ...] = tuple(QUANTILES)) -> dict[str, float]:
    """The named quantiles, rounded to hundredths; NaN where there are no values."""
    return {
        name: round(float(np.percentile(values, QUANTILES[name])), 2) if values else float("nan")
        for name in names
    }


def run(bench: Bench, jars: Path) -> dict[str, Any]:
    """Run it all; the figures."""
    handover = str(max(bench.seconds / (bench.boundaries + 1), 5.0))
    with (
        own_stack(jars, AFTERCLICK_STREAM__HANDOVER_S=handover) as stack,
        running_api(stack.settings) as (port, _),
    ):
        producer_events_per_s(stack.settings, 5000, 1000, ITEMS)
        live = _phase(stack, bench, port, "real-time", bench.seconds)
        micro = _phase(stack, bench, port, "micro-batch", bench.micro_batch_s)
        figures: dict[str, Any] = {
            "rate": bench.rate,
            "seconds": bench.seconds,
            "events": len(live.sent),
            "seen": len(live.push_ms()),
            "errors": live.errors,
            "boundaries": len(live.boundaries),
            "push_ms": quantiles(live.push_ms()),
            "push_ms_without_boundaries": quantiles(live.push_ms(away_from_boundaries=True)),
            "get_ms": quantiles(live.get_ms()),
            "stages_ms": live.stages_ms(),
            "micro_batch_push_ms": quantiles(micro.push_ms()),
            "load_average": [round(value, 1) for value in psutil.getloadavg()],
        }
        p50 = figures["push_ms"]["p50"], figures["micro_batch_push_ms"]["p50"]
        figures["times_micro_batch_p50"] = round(p50[1] / p50[0], 1)
        if bench.chart:
            draw(live, bench.chart)
        return figures


def _phase(stack: Stack, bench: Bench, port: int, trigger: str, seconds: float) -> Phase:
    stack.job.start(AFTERCLICK_STREAM__TRIGGER=trigger)
    stack.wait_caught_up()
    phase = Phase()
    stop = threading.Event()
    threads = [
        threading.Thread(target=_watch_boundaries, args=(stack, phase, stop)),
        threading.Thread(target=_read_changes, args=(stack, phase, stop)),
    ]
    for thread in threads:
        thread.start()
    try:
        asyncio.run(_drive(bench, port, phase, seconds))
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        stack.job.stop()
    log.info("measured", trigger=trigger, events=len(phase.sent), **quantiles(phase.push_ms()))
    return phase


async def _drive(bench: Bench, port: int, phase: Phase, seconds: float) -> None:
    """Watch every user's list, then send feedback at the rate; wait a little for the last pushes."""
    users = [f"watcher-{n}" for n in range(bench.users)]
    with closing(Pool(LOOPBACK, port, CONNECTIONS)) as client:
        watchers = [asyncio.create_task(_watch(port, user, phase)) for user in users]
        await asyncio.sleep(2)
        await _warm_up(client, users, phase)
        phase.sent.clear()
        phase.waiting.clear()
        requests: set[asyncio.Task[None]] = set()
        every = max(round(bench.rate / bench.gets_per_s), 1)
        started = time.time()
        for n in range(int(bench.rate * seconds)):
            await asyncio.sleep(max(started + n / bench.rate - time.time(), 0))
            user = users[n % len(users)]
            task = asyncio.create_task(
                _send(client, phase, user, f"B{n % ITEMS:09}", n % every == 0)
            )
            requests.add(task)
            task.add_done_callback(requests.discard)
        await asyncio.gather(*requests, return_exceptions=True)
        await asyncio.sleep(5)
        for watcher in watchers:
            watcher.cancel()
        await asyncio.gather(*watchers, return_exceptions=True)


async def _warm_up(client: Pool, users: list[str], phase: Phase) -> None:
    """Every user once, until all is pushed; twice. The first events of a new query find everything cold."""
    for _ in range(2):
        await asyncio.gather(*(_send(client, phase, user, "B000000001", False) for user in users))
        async with asyncio.timeout(WARM_UP_S):
            while any(phase.waiting.values()):
                await asyncio.sleep(0.1)


async def _send(client: Pool, phase: Phase, user: str, item: str, then_get: bool) -> None:
    one = Sent(new_id(), time.time())
    phase.sent[one.event_id] = one
    phase.waiting.setdefault(user, deque()).append(one)
    body = {"user_id": user, "item_id": item, "action": "click", "event_id": one.event_id}
    try:
        async with asyncio.timeout(10):
            answer = await client.call(post("/feedback", LOOPBACK, orjson.dumps(body)))
            position = json_body(answer, 202)["position"]
            if then_get:
                query = urlencode({"user_id": user, "after": position})
                got = json_body(await client.call(get(f"/recommendations?{query}", LOOPBACK)), 200)
                if got.get("fresh", True):
                    one.got = time.time()
    except (OSError, TimeoutError):
        phase.errors += 1


async def _watch(port: int, user: str, phase: Phase) -> None:
    """A push shows its cause and everything the user did before it."""
    async with connect(
        f"ws://{LOOPBACK}:{port}/ws/recommendations?user_id={user}", max_size=None
    ) as socket:
        async for message in socket:
            now = time.time()
            cause = orjson.loads(message).get("cause") or {}
            waiting = phase.waiting.get(user, deque())
            if any(one.event_id == cause.get("event_id") for one in waiting):
                while waiting:
                    one = waiting.popleft()
                    one.pushed = now
                    if one.event_id == cause["event_id"]:
                        break


def _watch_boundaries(stack: Stack, phase: Phase, stop: threading.Event) -> None:
    before = stack.job.printed().count("took over")
    while not stop.wait(0.2):
        now = stack.job.printed().count("took over")
        phase.boundaries += [time.time()] * (now - before)
        before = now


def _read_changes(stack: Stack, phase: Phase, stop: threading.Event) -> None:
    kafka = stack.settings.kafka
    consumer = Consumer({"bootstrap.servers": kafka.bootstrap, "group.id": "bench"})
    topic = kafka.topics.state_changes
    ends = {
        n: consumer.get_watermark_offsets(TopicPartition(topic, n))[1]
        for n in range(kafka.partitions)
    }
    consumer.assign([TopicPartition(topic, n, end) for n, end in ends.items()])
    while not stop.is_set():
        for message in consumer.consume(500, 0.2):
            if message.error() is None:
                change = StateChange.decode(message.value() or b"")
                phase.changes.setdefault(change.event_id, change)
    consumer.close()


def draw(phase: Phase, path: Path) -> None:
    """A picture of push latency, second by second, with the boundaries."""
    from matplotlib.figure import Figure

    sent = sorted(
        (one for one in phase.sent.values() if one.pushed is not None), key=lambda one: one.at
    )
    start = sent[0].at
    seconds = np.array([int(one.at - start) for one in sent])
    values = np.array([(one.pushed or 0) - one.at for one in sent]) * 1000
    figure = Figure(figsize=(10, 4), layout="constrained")
    axes = figure.subplots()
    for name, q in (("p50", 50), ("p99", 99), ("max", 100)):
        by_second = [float(np.percentile(values[seconds == s], q)) for s in np.unique(seconds)]
        axes.plot(np.unique(seconds), by_second, label=name, linewidth=1)
    for n, boundary in enumerate(phase.boundaries):
        axes.axvline(boundary - start, color="grey", linestyle=":", label=None if n else "boundary")
    axes.set(yscale="log", xlabel="seconds", ylabel="POST /feedback to pushed list, ms")
    axes.legend()
    figure.savefig(path, dpi=110)
