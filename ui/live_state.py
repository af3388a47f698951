"""Live figures and events of the API, shared by all pages, and their text for tiles and stages."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter, deque
from collections.abc import Hashable, Mapping
from contextlib import suppress
from typing import Generic, TypeVar

from afterclick.api import ListedItem
from afterclick.arrays import Json
from afterclick.errors import AfterclickError
from ui.cards import SOURCE_NAMES, department_of
from ui.gateway import ShopClient, live_messages

MISSING = "-"
BACKLOG_NOTE = "backlog"
BACKLOG_TITLE = (
    "The stream is processing a backlog, such as a replay of history. These figures are the time "
    "that events waited in the log, not the delay of a live event."
)


def stats_bar_tiles(figures: Json) -> list[Json]:
    """The five tiles of the stats bar, from the newest figures of /ws/live."""
    if not figures:
        return []
    return [
        _tile("events/s", number(figures.get("events_per_s")), "", "Events applied per second"),
        _lag_tile(figures),
        _freshness_tile("fresh p50", "p50", figures, "median"),
        _freshness_tile("fresh p99", "p99", figures, "99th percentile"),
        _tile("model", figures.get("model_version") or "none yet", "", "The model in use"),
    ]


def dashboard_tiles(figures: Json) -> list[Json]:
    """The tiles of the dashboard."""
    latency, push = figures.get("latency_ms") or {}, figures.get("push_ms") or {}
    counters = (
        ("interactions", "interactions", "Counted so far, each event once"),
        ("refused", "refused", "Duplicate events, not counted again"),
        ("dead letters", "dead_letters", "Invalid events, stored with the reason"),
    )
    return [
        *stats_bar_tiles(figures)[:4],
        _duration_tile("request p99", latency.get("p99"), "API latency, last 10 seconds"),
        _duration_tile("push p50", push.get("p50"), "From the log to the pushed list, last minute"),
        *(_tile(name, number(figures.get(key)), "", title) for name, key, title in counters),
    ]


def stations(figures: Json) -> list[Json]:
    """The stages of the pipeline and their figures."""

    def row(label: str, key: str) -> list[str]:
        return [label, number(figures.get(key))]

    stream_rows = [
        row("events/s", "events_per_s"),
        row("lag", "lag"),
        row("duplicates refused", "refused"),
        row("dead letters", "dead_letters"),
        *(["stalled", stall] for stall in figures.get("stalls") or ()),
        *(["archive stalled", stall] for stall in figures.get("archive_stalls") or ()),
        *(["frozen", loop] for loop in figures.get("frozen") or ()),
    ]
    model = ["model", figures.get("model_version") or "none yet"]
    return [
        _station("Kafka", "the log: applied positions", _topic_rows(figures)),
        _station("Spark", "applies each event once", stream_rows),
        _station("Redis", "history, counts, trends", [row("interactions", "interactions")]),
        _station("Ranker", "model + history + trend", [model, row("items", "items")]),
        _station(
            "Viewers", "lists that update", [row("watching", "watching"), row("live", "live")]
        ),
    ]


def flows(figures: Json) -> list[Json]:
    """The flows between the stages: rate, and latency of the step."""
    latencies: Json = (figures.get("freshness_ms") or {}).get("stages") or {}
    events = figures.get("events_per_s") or 0.0
    requests = figures.get("requests_per_s") or 0.0
    backlog = BACKLOG_TITLE if figures.get("backlog") else ""
    queued = backlog or "In the log until Spark reads the event"
    pushed = backlog or "From the log to the pushed list"
    return [
        _flow("queue", latencies.get("queue"), events, "events", queued),
        _flow("apply", latencies.get("apply"), events, "events", "From the read to the state"),
        _flow("notify", latencies.get("notify"), events, "events", "From the state to the ranker"),
        _flow("push", figures.get("push_ms"), requests, "lists", pushed),
    ]


def number(value: float | int | None) -> str:
    """A short number: 12, 3.4, 12.3k, 4.5M; a dash for None."""
    if value is None:
        return MISSING
    for limit, size, unit in ((1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if abs(value) >= limit:
            return f"{value / size:.1f}{unit}"
    return f"{value:,.0f}" if value >= 10 or value == int(value) else f"{value:.1f}"


def duration(milliseconds: float | None) -> tuple[str, str]:
    """A short duration and its unit: 8.4 ms, 12 s, 3.5 min."""
    if milliseconds is None:
        return MISSING, ""
    units = ((1_000, 1, "ms"), (120_000, 1_000, "s"), (math.inf, 60_000, "min"))
    size, unit = next((size, unit) for limit, size, unit in units if milliseconds < limit)
    return number(round(milliseconds / size, 1)), unit


def _freshness_tile(name: str, quantile: str, figures: Json, which: str) -> Json:
    milliseconds = (figures.get("freshness_ms") or {}).get(quantile)
    tile = _duration_tile(name, milliseconds, f"From the log to the state, {which}")
    return tile | {"note": BACKLOG_NOTE, "title": BACKLOG_TITLE} if figures.get("backlog") else tile


def _duration_tile(name: str, milliseconds: float | None, title: str) -> Json:
    return _tile(name, *duration(milliseconds), title)


def _tile(name: str, value: str, unit: str, title: str) -> Json:
    shown_unit = unit if value != MISSING else ""
    return {"name": name, "value": value, "unit": shown_unit, "title": title, "note": ""}


def _station(name: str, what: str, rows: list[list[str]]) -> Json:
    return {"name": name, "what": what, "rows": rows}


def _flow(label: str, latency: Json | None, rate: float, unit: str, title: str) -> Json:
    quantiles = [" ".join(duration((latency or {}).get(q))).strip() for q in ("p50", "p99")]
    return {
        "label": label,
        "value": " / ".join(quantiles) if latency else MISSING,
        "speed": f"{number(rate)} {unit}/s",
        "rate": rate,
        "title": title,
    }


def _lag_tile(figures: Json) -> Json:
    """The lag; with partitions that stand still, which ones and since when."""
    stalls = figures.get("stalls") or ()
    title = "\n".join(("Events in the log, not yet applied", *(f"stalled: {s}" for s in stalls)))
    return _tile("lag", number(figures.get("lag")), "stalled" if stalls else "events", title)


def _topic_rows(figures: Json) -> list[list[str]]:
    """Applied events per topic, and its partitions as a tooltip."""
    lag: Json = figures.get("lag_by_partition") or {}
    applied: dict[str, int] = {}
    partitions: dict[str, list[str]] = {}
    for name, offset in sorted((figures.get("positions") or {}).items()):
        topic = name.rsplit("/", 1)[0]
        applied[topic] = applied.get(topic, 0) + int(offset) + 1
        row = f"{name}: position {offset}, lag {lag.get(name, MISSING)}"
        partitions.setdefault(topic, []).append(row)
    return [
        [topic, number(count), "\n".join(partitions[topic])]
        for topic, count in sorted(applied.items())
    ]


MAX_FIGURES = 1800
"""Figures in the history: half an hour, one a second."""
MAX_EVENTS = 60
WINDOW_S = 60.0
"""Window of the CTR and of the department shares."""
POLL_S = 2.0
BACKLOG_EVENTS = 200
"""Smallest lag that counts as a backlog; two seconds of events at high rates."""
BACKLOG_S = 12.0
"""Time after a backlog during which its events are still part of the freshness figures."""
LEADERBOARD_ITEMS = 60

Key = TypeVar("Key", bound=Hashable)


class SlidingWindow(Generic[Key]):
    """Increase of monotonic counters over the last `seconds`."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._samples: deque[tuple[float, dict[Key, float]]] = deque()

    def delta(self, time: float, counts: Mapping[Key, float]) -> dict[Key, float]:
        """Add a sample, newer than the last, and return the increase of each counter.

        The window restarts when a counter has decreased: its source has restarted.
        """
        if self._samples and any(
            counts.get(key, 0.0) < count for key, count in self._samples[-1][1].items()
        ):
            self._samples.clear()
        self._samples.append((time, dict(counts)))
        while len(self._samples) > 1 and self._samples[1][0] <= time - self._seconds:
            self._samples.popleft()
        oldest = self._samples[0][1]
        return {key: count - oldest.get(key, 0.0) for key, count in counts.items()}


class LiveState:
    """The newest figures, their last half hour, and the newest events. Pages poll `version`."""

    def __init__(self, client: ShopClient) -> None:
        self._client = client
        self._tasks: list[asyncio.Task[None]] = []
        self._departments: Counter[str] = Counter()
        self._ctr_window: SlidingWindow[tuple[str, str]] = SlidingWindow(WINDOW_S)
        self._department_window: SlidingWindow[str] = SlidingWindow(WINDOW_S)
        self._leaderboards: dict[str, tuple[float, tuple[ListedItem, ...]]] = {}
        self._backlog_at = 0.0
        self.figures: Json = {}
        self.history: deque[Json] = deque(maxlen=MAX_FIGURES)
        self.events: deque[Json] = deque(maxlen=MAX_EVENTS)
        self.exposure: list[Json] = []
        """Rows of /exposure: impressions and reactions per source and model."""
        self.exposure_version = 0
        self.connected = False
        self.version = 0
        self.figures_version = 0

    def start(self) -> None:
        """Start the background tasks. Call from the event loop."""
        self._tasks = [
            asyncio.create_task(self._listen(), name="live-state"),
            asyncio.create_task(self._poll_exposure(), name="live-exposure"),
        ]

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def leaderboard(self, window: str) -> tuple[ListedItem, ...]:
        """Popular items of a window, cached for all pages. Raises the errors of the API."""
        fetched_at, items = self._leaderboards.get(window, (0.0, ()))
        if time.monotonic() - fetched_at > POLL_S:
            items = (await self._client.popular(LEADERBOARD_ITEMS, window=window or None)).items
            self._leaderboards[window] = (time.monotonic(), items)
        return items

    async def _listen(self) -> None:
        async for message in live_messages(self._client):
            self.connected = message is not None
            if message is not None:
                self.apply(message)
            self.version += 1

    async def _poll_exposure(self) -> None:
        while True:
            with suppress(AfterclickError):  # the age of the panel shows the failure
                self.exposure = (await self._client.get("/exposure"))["rows"]
                self.exposure_version += 1
            await asyncio.sleep(POLL_S)

    def apply(self, message: Json) -> None:
        """Update the state with one message of /ws/live."""
        if message.get("type") == "figures":
            self.figures_version += 1
            now = message.get("time") or time.time()
            self.figures = {
                **message,
                "time": now,
                "backlog": self._has_backlog(now, message),
                "ctr": self._ctr(now),
                "departments": self._department_shares(now),
            }
            self.history.append(self.figures)
        elif message.get("type") == "event":
            self._departments[department_of(message.get("categories") or ())] += 1
            self.events.appendleft(message)

    def _has_backlog(self, now: float, figures: Json) -> bool:
        """True while the freshness figures include events that waited behind a backlog."""
        if (figures.get("lag") or 0) > max(BACKLOG_EVENTS, 2 * (figures.get("events_per_s") or 0)):
            self._backlog_at = now
        return now - self._backlog_at < BACKLOG_S

    def _ctr(self, now: float) -> dict[str, float]:
        """Clicks per 100 impressions of each source and model shown in the window."""
        counts = {
            (what, _series_name(row)): row[what]
            for row in self.exposure
            for what in ("items", "clicks")
        }
        delta = self._ctr_window.delta(now, counts)
        items = {name: count for (what, name), count in delta.items() if what == "items" and count}
        return {name: 100 * delta["clicks", name] / count for name, count in items.items()}

    def _department_shares(self, now: float) -> dict[str, float]:
        """Percentage of the sampled events of the window by department."""
        delta = self._department_window.delta(now, self._departments)
        total = sum(delta.values())
        return {name: 100 * count / total for name, count in delta.items() if count}


def _series_name(row: Json) -> str:
    """Source and model of a row of /exposure, as in the legend of the chart."""
    source = SOURCE_NAMES.get(row["source"], str(row["source"]))
    return f"{source}, {row['model_version'] or 'no model'}"
