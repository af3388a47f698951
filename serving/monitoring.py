"""What the service measures of itself: Prometheus metrics, and short windows for the live figures."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from afterclick.state import StateChange
from serving.control.request_log import RequestLog

STAGES = ("log", "queue", "apply", "notify", "total")
"""produced → in the log → read by the stream → in Redis → known here; and all of it.

Only what this API produced says when: of other events `log` is unknown, and their total begins in the log."""
SAMPLE = 50
"""Changes of one batch whose freshness is measured."""
_FRESH = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 60_000)
_LATENCY = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)


@dataclass
class Recent:
    """The newest values of several columns with the time each came: percentiles over the last seconds."""

    columns: int
    size: int = 4096
    _values: NDArray[np.float64] = field(init=False)
    _times: NDArray[np.float64] = field(init=False)
    _next: int = 0

    def __post_init__(self) -> None:
        self._values = np.zeros((self.size, self.columns))
        self._times = np.full(self.size, -np.inf)

    def add(self, values: Sequence[float]) -> None:
        at = self._next % self.size
        self._values[at] = values
        self._times[at] = time.monotonic()
        self._next += 1

    def percentiles(self, seconds: float) -> NDArray[np.float64] | None:
        """(3, columns) p50, p95 and p99 of the values of the last `seconds`; None where there are none.

        NaN counts as no value; a column without any value is NaN.
        """
        values = self._values[self._times > time.monotonic() - seconds]
        if not len(values):
            return None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # a column of NaN alone
            return np.nanpercentile(values, (50, 95, 99), axis=0)


class Metrics:
    """One registry per application: nothing is registered globally."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        r = self.registry
        self.requests = Counter(
            "afterclick_requests", "Requests by route and status.", ["route", "status"], registry=r
        )
        self.latency = Histogram(
            "afterclick_request_seconds", "Time to answer.", ["route"], buckets=_LATENCY, registry=r
        )
        self.lists = Counter(
            "afterclick_lists", "Lists by source.", ["source", "degraded"], registry=r
        )
        self.brief = Counter(
            "afterclick_brief_lists",
            "Lists of fewer candidates, made while requests queued up.",
            registry=r,
        )
        self.remembered = Counter(
            "afterclick_remembered_lists", "Lists given again as they were.", registry=r
        )
        self.feedback = Counter(
            "afterclick_feedback", "Feedback by outcome.", ["outcome"], registry=r
        )
        self.pushes = Counter("afterclick_pushes", "Lists pushed on WebSockets.", registry=r)
        self.changes = Counter(
            "afterclick_state_changes", "State changes seen.", ["effect"], registry=r
        )
        self.freshness = Histogram(
            "afterclick_freshness_ms",
            f"Milliseconds of each stage from the producer to here; up to {SAMPLE} changes per batch.",
            ["stage"],
            buckets=_FRESH,
            registry=r,
        )
        self.pushed = Histogram(
            "afterclick_push_ms",
            "Milliseconds from the log to the pushed list.",
            buckets=_FRESH,
            registry=r,
        )
        self.lag = Gauge(
            "afterclick_lag_events", "Events in the log that are not in the state.", registry=r
        )
        self.lag_of = Gauge(
            "afterclick_partition_lag_events",
            "Events of a partition that are not in the state.",
            ["partition"],
            registry=r,
        )
        self.position = Gauge(
            "afterclick_position_offset",
            "Offset up to which the state is known.",
            ["partition"],
            registry=r,
        )
        self.dead_letters = Gauge(
            "afterclick_dead_letters", "Dead letters held.", ["topic"], registry=r
        )
        self.boundary = Gauge(
            "afterclick_batch_boundary_seconds",
            "When the last batch of the stream began, or another query took over; epoch seconds.",
            registry=r,
        )
        self.items = Gauge(
            "afterclick_items", "Items by where they are known.", ["where"], registry=r
        )
        self.held = Gauge(
            "afterclick_quarantined_items", "Items that new accounts push.", registry=r
        )
        self.established_share = Gauge(
            "afterclick_established_share",
            "Usual share of established users in the votes on an item; 0 while unknown.",
            registry=r,
        )
        self.trust = Gauge(
            "afterclick_new_account_trust",
            "What a new account's vote counts: the lower, the more they exceed their usual share.",
            ["half_life"],
            registry=r,
        )
        self.model = Gauge(
            "afterclick_model_info", "1 for the model that serves.", ["version"], registry=r
        )
        self.watchers = Gauge("afterclick_websockets", "Open WebSockets.", ["kind"], registry=r)
        # looking a child up by its labels costs as much as counting
        self._listed: dict[tuple[str, bool], Counter] = {}
        self._answered: dict[tuple[str, int], tuple[Counter, Histogram]] = {}
        self.fresh_recent = Recent(len(STAGES))
        self.latency_recent = Recent(1)
        self.push_recent = Recent(1)
        self.seen = 0
        self.refused = 0
        self.answered = 0

    def follow(self, requests: RequestLog, dropped: Mapping[str, Callable[[], int]]) -> None:
        """Show how the request log keeps up: rows written, dropped and waiting; and what else was dropped."""
        lost = Gauge(
            "afterclick_dropped",
            "What bounded buffers had no room for.",
            ["what"],
            registry=self.registry,
        )
        for what, count in dropped.items():
            lost.labels(what).set_function(count)
        rows = Gauge(
            "afterclick_request_log_rows",
            "Rows of the request log.",
            ["state"],
            registry=self.registry,
        )
        rows.labels("written").set_function(lambda: requests.written)
        rows.labels("dropped").set_function(lambda: requests.dropped)
        rows.labels("waiting").set_function(lambda: requests.waiting)

    def saw(self, changes: Sequence[StateChange], now_ms: float) -> None:
        """Count changes, and measure how fresh the newest of them are."""
        self.seen += len(changes)
        for change in changes:
            self.changes.labels(change.effect).inc()
            self.refused += not change.effect.counts
        for change in changes[-SAMPLE:]:
            began_ms = change.log_ms if change.produced_ms is None else change.produced_ms
            stages = (
                math.nan if change.produced_ms is None else change.log_ms - began_ms,
                change.read_ms - change.log_ms,
                change.applied_ms - change.read_ms,
                now_ms - change.applied_ms,
                now_ms - began_ms,
            )
            self.fresh_recent.add(stages)
            for stage, value in zip(STAGES, stages, strict=True):
                if not math.isnan(value):
                    self.freshness.labels(stage).observe(value)

    def listed(self, source: str, degraded: bool, brief: bool, remembered: bool) -> None:
        """A list went out."""
        if brief:
            self.brief.inc()
        if remembered:
            self.remembered.inc()
        counter = self._listed.get((source, degraded))
        if counter is None:
            counter = self.lists.labels(source, "true" if degraded else "false")
            self._listed[source, degraded] = counter
        counter.inc()

    def answered_in(self, route: str, status: int, seconds: float) -> None:
        found = self._answered.get((route, status))
        if found is None:
            found = self.requests.labels(route, str(status)), self.latency.labels(route)
            self._answered[route, status] = found
        counter, latency = found
        counter.inc()
        latency.observe(seconds)
        self.latency_recent.add((seconds * 1000,))
        self.answered += 1

    def pushed_after(self, milliseconds: float) -> None:
        self.pushes.inc()
        self.pushed.observe(milliseconds)
        self.push_recent.add((milliseconds,))

    def text(self) -> bytes:
        """The exposition format."""
        return generate_latest(self.registry)
