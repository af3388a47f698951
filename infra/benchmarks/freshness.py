"""`afterclick bench freshness`: from `POST /feedback` to the changed list, through every stage.

Starts its own Kafka, Valkey, stream job and API. Clients watch their lists over WebSockets and send
feedback at a fixed rate, independent of the responses: first under the real-time trigger, then in
micro-batches.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlencode

import numpy as np
import orjson
import structlog
from confluent_kafka import TopicPartition as KafkaPartition
from websockets.asyncio.client import connect

from afterclick.events import new_id
from afterclick.io.kafka_clients import create_consumer
from afterclick.io.kafka_log import KafkaLog
from afterclick.io.redis_clients import create_redis
from afterclick.settings import Settings
from afterclick.state import StateChange
from infra.benchmarks.harness import (
    PERCENTILES,
    Benchmark,
    Figures,
    Stack,
    load_average,
    own_stack,
    percentiles,
    running_api,
)
from infra.benchmarks.load import ConnectionPool, get, json_body, post
from infra.benchmarks.throughput import producer_events_per_s
from infra.embedded.server import LOOPBACK

log = structlog.get_logger()

QUANTILES = PERCENTILES | {"max": 100.0}
STAGE_QUANTILES = {"p50": 50.0, "p99": 99.0}
STAGES = ("produced_to_log", "log_to_read", "read_to_applied", "applied_to_pushed")
ITEMS = 500
WARM_UP_S = 180.0
CONNECTIONS = 64
BOUNDARY_S = 5.0
"""Events this close to a hand-over are excluded from `push_ms_without_boundaries`."""


@dataclass
class SentEvent:
    """An event and when its list arrived; epoch seconds."""

    event_id: str
    sent: float
    pushed: float | None = None
    got: float | None = None


@dataclass
class Phase:
    """The events of a run under one trigger."""

    events: dict[str, SentEvent] = field(default_factory=dict)
    waiting: dict[str, deque[SentEvent]] = field(default_factory=dict)
    """By user, oldest first: events without a push."""
    changes: dict[str, StateChange] = field(default_factory=dict)
    boundaries: list[float] = field(default_factory=list)
    """Hand-overs from query to query, epoch seconds."""
    errors: int = 0

    def push_ms(self, without_boundaries: bool = False) -> list[float]:
        return [
            (event.pushed - event.sent) * 1000
            for event in self.events.values()
            if event.pushed is not None
            and not (without_boundaries and self._near_boundary(event.sent))
        ]

    def get_ms(self) -> list[float]:
        events = self.events.values()
        return [(event.got - event.sent) * 1000 for event in events if event.got is not None]

    def stages_ms(self) -> dict[str, dict[str, float]]:
        """Duration of each stage, of the events that passed all of them."""
        rows = [
            (
                change.log_ms - event.sent * 1000,
                change.read_ms - change.log_ms,
                change.applied_ms - change.read_ms,
                event.pushed * 1000 - change.applied_ms,
            )
            for event in self.events.values()
            if event.pushed is not None and (change := self.changes.get(event.event_id))
        ]
        columns = np.array(rows).reshape(-1, len(STAGES)).T
        return {
            name: percentiles(column.tolist(), STAGE_QUANTILES)
            for name, column in zip(STAGES, columns, strict=True)
        }

    def _near_boundary(self, moment: float) -> bool:
        return any(abs(moment - boundary) < BOUNDARY_S for boundary in self.boundaries)


@dataclass(frozen=True)
class FreshnessBenchmark(Benchmark):
    rate: float = 200.0
    """Events per second."""
    seconds: float = 300.0
    users: int = 100
    boundaries: int = 2
    """Hand-overs during the real-time run."""
    micro_batch_s: float = 40.0
    gets_per_s: float = 10.0
    chart: Path | None = None
    """PNG to draw the run into."""

    def run(self, settings: Settings) -> Figures:
        handover = str(max(self.seconds / (self.boundaries + 1), 5.0))
        with (
            own_stack(settings, {"AFTERCLICK_STREAM__HANDOVER_S": handover}) as stack,
            running_api(stack.settings) as api,
        ):
            producer_events_per_s(stack.settings, 5000, 1000, ITEMS)
            real_time = self._phase(stack, api.port, "real-time", self.seconds)
            micro_batch = self._phase(stack, api.port, "micro-batch", self.micro_batch_s)
        if self.chart:
            draw(real_time, self.chart)
        return self._figures(real_time, micro_batch)

    def _figures(self, real_time: Phase, micro_batch: Phase) -> Figures:
        push_ms = percentiles(real_time.push_ms(), QUANTILES)
        micro_batch_ms = percentiles(micro_batch.push_ms(), QUANTILES)
        without = percentiles(real_time.push_ms(without_boundaries=True), QUANTILES)
        return {
            "rate": self.rate,
            "seconds": self.seconds,
            "events": len(real_time.events),
            "seen": len(real_time.push_ms()),
            "errors": real_time.errors,
            "boundaries": len(real_time.boundaries),
            "push_ms": push_ms,
            "push_ms_without_boundaries": without,
            "get_ms": percentiles(real_time.get_ms(), QUANTILES),
            "stages_ms": real_time.stages_ms(),
            "micro_batch_push_ms": micro_batch_ms,
            "load_average": load_average(),
            "times_micro_batch_p50": round(micro_batch_ms["p50"] / push_ms["p50"], 1),
        }

    def _phase(self, stack: Stack, port: int, trigger: str, seconds: float) -> Phase:
        stack.job.start(AFTERCLICK_STREAM__TRIGGER=trigger)
        stack.wait_caught_up()
        phase, stop = Phase(), threading.Event()
        threads = [
            threading.Thread(target=watch, args=(stack, phase, stop))
            for watch in (_watch_boundaries, _read_changes)
        ]
        for thread in threads:
            thread.start()
        try:
            asyncio.run(self._drive(port, phase, seconds))
        finally:
            stop.set()
            for thread in threads:
                thread.join()
            stack.job.stop()
        measured = percentiles(phase.push_ms(), QUANTILES)
        log.info("measured", trigger=trigger, events=len(phase.events), **measured)
        return phase

    async def _drive(self, port: int, phase: Phase, seconds: float) -> None:
        """Watch every user's list and send feedback at the rate; waits 5 s for the last pushes."""
        users = [f"watcher-{n}" for n in range(self.users)]
        with closing(ConnectionPool(port, CONNECTIONS)) as client:
            watchers = [asyncio.create_task(_watch_list(port, user, phase)) for user in users]
            await asyncio.sleep(2)
            await _warm_up(client, users, phase)
            phase.events.clear()
            phase.waiting.clear()
            requests: set[asyncio.Task[None]] = set()
            get_every = max(round(self.rate / self.gets_per_s), 1)
            started = time.time()
            for n in range(int(self.rate * seconds)):
                await asyncio.sleep(max(started + n / self.rate - time.time(), 0))
                user, item = users[n % len(users)], f"B{n % ITEMS:09}"
                send = _send(client, phase, user, item, then_get=n % get_every == 0)
                task = asyncio.create_task(send)
                requests.add(task)
                task.add_done_callback(requests.discard)
            await asyncio.gather(*requests, return_exceptions=True)
            await asyncio.sleep(5)
            for watcher in watchers:
                watcher.cancel()
            await asyncio.gather(*watchers, return_exceptions=True)


async def _warm_up(client: ConnectionPool, users: list[str], phase: Phase) -> None:
    """One event per user, until all lists are pushed; twice."""
    for _ in range(2):
        sends = (_send(client, phase, user, "B000000001", then_get=False) for user in users)
        await asyncio.gather(*sends)
        async with asyncio.timeout(WARM_UP_S):
            while any(phase.waiting.values()):
                await asyncio.sleep(0.1)


async def _send(
    client: ConnectionPool, phase: Phase, user: str, item: str, *, then_get: bool
) -> None:
    event = SentEvent(new_id(), time.time())
    phase.events[event.event_id] = event
    phase.waiting.setdefault(user, deque()).append(event)
    body = {"user_id": user, "item_id": item, "action": "click", "event_id": event.event_id}
    try:
        async with asyncio.timeout(10):
            response = await client.call(post("/feedback", body))
            position = json_body(response, 202)["position"]
            if then_get:
                query = urlencode({"user_id": user, "after": position})
                shown = json_body(await client.call(get(f"/recommendations?{query}")), 200)
                if shown.get("fresh", True):
                    event.got = time.time()
    except (OSError, TimeoutError):
        phase.errors += 1


async def _watch_list(port: int, user: str, phase: Phase) -> None:
    """A push covers the event that caused it and the user's events before."""
    url = f"ws://{LOOPBACK}:{port}/ws/recommendations?user_id={user}"
    async with connect(url, max_size=None) as socket:
        async for message in socket:
            now = time.time()
            cause = orjson.loads(message).get("cause") or {}
            waiting = phase.waiting.get(user, deque())
            if any(event.event_id == cause.get("event_id") for event in waiting):
                while waiting:
                    event = waiting.popleft()
                    event.pushed = now
                    if event.event_id == cause["event_id"]:
                        break


def _watch_boundaries(stack: Stack, phase: Phase, stop: threading.Event) -> None:
    """Record the changes of the key `boundary`; a real-time job writes it at hand-overs only."""
    key = stack.settings.redis.keys.last_batch_at
    with create_redis(stack.settings.redis, decode_responses=True) as client:
        last = client.get(key)
        while not stop.wait(0.2):
            current = client.get(key)
            if current != last:
                phase.boundaries.append(float(str(current)))
            last = current


def _read_changes(stack: Stack, phase: Phase, stop: threading.Event) -> None:
    kafka = stack.settings.kafka
    with KafkaLog(kafka) as kafka_log:
        ranges = kafka_log.ranges(kafka.topics.state_changes)
    consumer = create_consumer(kafka, {"group.id": "bench"})
    consumer.assign([KafkaPartition(*name, held.end) for name, held in ranges.items()])
    while not stop.is_set():
        for message in consumer.consume(500, 0.2):
            if message.error() is None:
                change = StateChange.decode(message.value() or b"")
                phase.changes.setdefault(change.event_id, change)
    consumer.close()


def draw(phase: Phase, path: Path) -> None:
    """Plot push latency per second, with the hand-overs."""
    from matplotlib.figure import Figure

    pushed = sorted(
        (event.sent, event.pushed) for event in phase.events.values() if event.pushed is not None
    )
    sent, arrived = np.array(pushed).T
    seconds, values = (sent - sent[0]).astype(int), (arrived - sent) * 1000
    figure = Figure(figsize=(10, 4), layout="constrained")
    axes = figure.subplots()
    for name, q in (("p50", 50), ("p99", 99), ("max", 100)):
        by_second = [float(np.percentile(values[seconds == s], q)) for s in np.unique(seconds)]
        axes.plot(np.unique(seconds), by_second, label=name, linewidth=1)
    for n, boundary in enumerate(phase.boundaries):
        label = None if n else "hand-over"
        axes.axvline(boundary - sent[0], color="grey", linestyle=":", label=label)
    axes.set(yscale="log", xlabel="seconds", ylabel="POST /feedback to pushed list, ms")
    axes.legend()
    figure.savefig(path, dpi=110)
