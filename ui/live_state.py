"""The dashboard's figures and events, from one connection to the API that all pages share.

reads   websocket  /ws/live
        http       GET /exposure, GET /popular
"""

from __future__ import annotations

import asyncio
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
