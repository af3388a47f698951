"""Metrics of one API process: Prometheus, percentiles of the last seconds, event-loop lag."""

from __future__ import annotations

import asyncio
import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from afterclick.arrays import Float64Array, FloatArray
from afterclick.io.connections import ConnectionLimits, Slots
from afterclick.state import StateChange

STAGES = ("log", "queue", "apply", "notify", "total")
"""produced → in the log → read by the stream → in Redis → known here; and their sum.

Only events produced by this API carry the time of production: of others `log` is unknown, and
`total` begins in the log."""
SAMPLE = 50
"""Changes of one batch whose freshness is measured."""
TICK_S = 0.005
_FRESHNESS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 60_000)
_LATENCY = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)


class RecentValues:
    """The newest values of several columns, for percentiles over the last seconds."""

    def __init__(self, columns: int, size: int = 4096) -> None:
        self._values = np.zeros((size, columns))
        self._times = np.full(size, -np.inf)
        self._next = 0

    def add(self, values: Sequence[float]) -> None:
        """Add one row."""
        row = self._next % len(self._times)
        self._values[row] = values
        self._times[row] = time.monotonic()
        self._next += 1

    def values(self, seconds: float) -> Float64Array:
        """(n, columns) the values of the last `seconds`."""
        return self._values[self._times > time.monotonic() - seconds]


def percentiles(values: Float64Array) -> FloatArray | None:
    """(3, columns) p50, p95 and p99 of values (n, columns); None without values.

    NaN counts as no value; a column of NaN stays NaN.
    """
    if not len(values):
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a column of NaN
        found: FloatArray = np.nanpercentile(values, (50, 95, 99), axis=0)
    return found


class EventLoopLag:
    """Measures event-loop lag with a 5 ms timer."""

    def __init__(self) -> None:
        self._due = math.inf
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Start the timer on the running loop."""
        self._tick()

    def stop(self) -> None:
        """Cancel the timer."""
        self._due = math.inf
        if self._timer is not None:
            self._timer.cancel()

    def lag_ms(self, began: float) -> float:
        """Milliseconds since `began` (time.monotonic) or since the timer was due: the longer.

        A request waits only for its turns on the loop and for Redis, which takes under 1 ms.
        """
        return (time.monotonic() - min(began, self._due)) * 1000

    def _tick(self) -> None:
        self._due = time.monotonic() + TICK_S
        self._timer = asyncio.get_running_loop().call_later(TICK_S, self._tick)


class Metrics:
    """One registry per application: nothing is registered globally."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        counter: Any = partial(Counter, registry=self.registry)
        gauge: Any = partial(Gauge, registry=self.registry)
        histogram: Any = partial(Histogram, registry=self.registry)
        self.requests: Counter = counter(
            "afterclick_requests", "Requests by route and status.", ["route", "status"]
        )
        self.latency: Histogram = histogram(
            "afterclick_request_seconds", "Response time.", ["route"], buckets=_LATENCY
        )
        self.lists: Counter = counter(
            "afterclick_lists", "Lists by source.", ["source", "degraded"]
        )
        self.reduced: Counter = counter(
            "afterclick_reduced_lists", "Lists of fewer candidates, made while shedding load."
        )
        self.cached: Counter = counter("afterclick_cached_lists", "Lists from the response cache.")
        self.feedback: Counter = counter("afterclick_feedback", "Feedback by outcome.", ["outcome"])
        self.pushes: Counter = counter("afterclick_pushes", "Lists pushed on WebSockets.")
        self.changes: Counter = counter(
            "afterclick_state_changes", "State changes received.", ["effect"]
        )
        self.freshness: Histogram = histogram(
            "afterclick_freshness_ms",
            f"Milliseconds per stage from the producer to here; at most {SAMPLE} changes a batch.",
            ["stage"],
            buckets=_FRESHNESS,
        )
        self.pushed: Histogram = histogram(
            "afterclick_push_ms",
            "Milliseconds from the log to the pushed list.",
            buckets=_FRESHNESS,
        )
        self.lag: Gauge = gauge(
            "afterclick_lag_events", "Events in the log that are not in the state."
        )
        self.partition_lag: Gauge = gauge(
            "afterclick_partition_lag_events", "Lag by partition.", ["partition"]
        )
        self.stalled: Gauge = gauge(
            "afterclick_stalled_seconds",
            "How long the stream has not applied the next record of a partition; 0: not stalled.",
            ["partition"],
        )
        self.archive_stalled: Gauge = gauge(
            "afterclick_archive_stalled_seconds",
            "How long the stream has not archived the next record; 0: not stalled.",
        )
        self.heartbeat_age: Gauge = gauge(
            "afterclick_heartbeat_age_seconds",
            "Seconds since a background loop should have completed a turn.",
            ["loop"],
        )
        self.position: Gauge = gauge(
            "afterclick_position_offset", "Offset up to which the state is known.", ["partition"]
        )
        self.dead_letters: Gauge = gauge("afterclick_dead_letters", "Dead letters.", ["topic"])
        self.last_batch: Gauge = gauge(
            "afterclick_batch_boundary_seconds",
            "Start of the stream's last batch or change of trigger; epoch seconds.",
        )
        self.items: Gauge = gauge("afterclick_items", "Items by where they are known.", ["where"])
        self.quarantined: Gauge = gauge("afterclick_quarantined_items", "Items in quarantine.")
        self.established_share: Gauge = gauge(
            "afterclick_established_share",
            "Usual share of established users in the votes on an item; 0 while unknown.",
        )
        self.new_account_weight: Gauge = gauge(
            "afterclick_new_account_trust", "Weight of a new account's vote.", ["half_life"]
        )
        self.model: Gauge = gauge("afterclick_model_info", "1 for the serving model.", ["version"])
        self.watchers: Gauge = gauge("afterclick_websockets", "Open WebSockets.", ["kind"])
        # a lookup of a child by labels costs as much as the increment
        self._list_counters: dict[tuple[str, bool], Counter] = {}
        self._request_metrics: dict[tuple[str, int], tuple[Counter, Histogram]] = {}
        self.recent_freshness = RecentValues(len(STAGES))
        self.recent_latency = RecentValues(1)
        self.recent_pushes = RecentValues(1)
        self.n_changes = 0
        self.n_duplicates = 0
        self.n_requests = 0

    def observe(
        self, name: str, help_text: str, label: str, values: Mapping[str, Callable[[], float]]
    ) -> None:
        """Add a gauge whose values are read when metrics are scraped, by the value of `label`."""
        gauge = Gauge(name, help_text, [label], registry=self.registry)
        for value, read in values.items():
            gauge.labels(value).set_function(read)

    def observe_limits(self, connections: ConnectionLimits, **slots: Slots) -> None:
        """Add gauges of open and refused connections, and of what other slots have refused."""
        states: dict[str, Callable[[], int]] = {
            "open": connections.slots.open,
            "timed_out": lambda: connections.timed_out,
            "malformed": lambda: connections.malformed,
        }
        self.observe("afterclick_connections", "Connections of clients.", "state", states)
        for name, each in {"connections": connections.slots, **slots}.items():
            reasons = {kind: partial(each.refused.__getitem__, kind) for kind in each.refused}
            text = f"Refused {name.replace('_', ' ')}, by the limit that was reached."
            self.observe(f"afterclick_refused_{name}", text, "limit", reasons)

    def on_changes(self, changes: Sequence[StateChange], now_ms: float) -> None:
        """Count state changes; measure the freshness of the newest."""
        self.n_changes += len(changes)
        for change in changes:
            self.changes.labels(change.effect).inc()
            self.n_duplicates += not change.effect.counts
        for change in changes[-SAMPLE:]:
            self._measure_freshness(change, now_ms)

    def on_list(self, source: str, degraded: bool, reduced: bool, cached: bool) -> None:
        """Count a list that was sent."""
        if reduced:
            self.reduced.inc()
        if cached:
            self.cached.inc()
        counter = self._list_counters.get((source, degraded))
        if counter is None:
            counter = self.lists.labels(source, "true" if degraded else "false")
            self._list_counters[source, degraded] = counter
        counter.inc()

    def on_request(self, route: str, status: int, seconds: float) -> None:
        """Count and time a request."""
        metrics = self._request_metrics.get((route, status))
        if metrics is None:
            metrics = self.requests.labels(route, str(status)), self.latency.labels(route)
            self._request_metrics[route, status] = metrics
        counter, latency = metrics
        counter.inc()
        latency.observe(seconds)
        self.recent_latency.add((seconds * 1000,))
        self.n_requests += 1

    def on_push(self, milliseconds: float) -> None:
        """Count a list that was pushed so long after its event was in the log."""
        self.pushes.inc()
        self.pushed.observe(milliseconds)
        self.recent_pushes.add((milliseconds,))

    def text(self) -> bytes:
        """The exposition format."""
        return generate_latest(self.registry)

    def _measure_freshness(self, change: StateChange, now_ms: float) -> None:
        unknown = change.produced_ms is None
        began_ms = change.log_ms if change.produced_ms is None else change.produced_ms
        stages = (
            math.nan if unknown else change.log_ms - began_ms,
            change.read_ms - change.log_ms,
            change.applied_ms - change.read_ms,
            now_ms - change.applied_ms,
            now_ms - began_ms,
        )
        self.recent_freshness.add(stages)
        for stage, value in zip(STAGES, stages, strict=True):
            if not math.isnan(value):
                self.freshness.labels(stage).observe(value)


def merged_text(texts: Sequence[tuple[int, str]]) -> str:
    """The expositions of several workers as one; each sample gets the number as label `worker`.

    That of a single worker stays as it is.
    """
    if len(texts) == 1:
        return texts[0][1]
    families: dict[str, list[str]] = {}
    for number, text in sorted(texts, key=lambda row: row[0]):
        for family in f"\n{text.rstrip()}".split("\n# HELP ")[1:]:
            help_text, kind, *samples = family.split("\n")
            labelled = (_with_label(sample, f'worker="{number}"') for sample in samples)
            families.setdefault(f"# HELP {help_text}\n{kind}", []).extend(labelled)
    return "".join(f"{line}\n" for head, rows in families.items() for line in (head, *rows))


def _with_label(sample: str, label: str) -> str:
    """A sample of an exposition with one more label."""
    name, brace, rest = sample.partition("{")
    if brace:
        return f"{name}{{{label},{rest}"
    name, _, value = sample.partition(" ")
    return f"{name}{{{label}}} {value}"
