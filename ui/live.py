"""The live figures: one connection to the API for the whole process, shared by every page.

reads   websocket  /ws/live
        http       GET /exposure, GET /popular
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from contextlib import suppress

import structlog

from afterclick.api import ListedItem
from afterclick.arrays import Json
from afterclick.errors import AfterclickError
from ui.api import Api
from ui.cards import SOURCE_NAMES, department_of
from ui.feeds import live_messages
from ui.moving import Moving

log = structlog.get_logger()

KEPT_FIGURES = 1800  # half an hour, one a second
KEPT_EVENTS = 60
WINDOW_S = 60.0
"""Over how long clicks per item and the shares of departments are taken."""
ASK_S = 2.0
BACKLOG_S = 12.0
"""How long after a backlog its events are still in the freshness figures."""
BACKLOG = 200
"""Events of lag that make a backlog, at least; two seconds' worth where more come."""
RACERS = 60


class LiveBoard:
    """The newest figures, those of the last half hour, and the newest events. Pages poll `version`."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._tasks: list[asyncio.Task[None]] = []
        self._departments: Counter[str] = Counter()
        self._moving: dict[str, Moving[tuple[str, str]]] = {
            "ctr": Moving(WINDOW_S),
            "departments": Moving(WINDOW_S),
        }
        self._races: dict[str, tuple[float, tuple[ListedItem, ...]]] = {}
        self._backlog_at = 0.0
        self.figures: Json = {}
        self.past: deque[Json] = deque(maxlen=KEPT_FIGURES)
        self.events: deque[Json] = deque(maxlen=KEPT_EVENTS)
        self.exposure: list[Json] = []
        """Rows of /exposure: lists and reactions per source and model."""
        self.asked = 0
        """How often /exposure has answered."""
        self.connected = False
        self.version = 0
        self.beats = 0

    def start(self) -> None:
        """Begin to listen. Call inside the event loop."""
        self._tasks = [
            asyncio.create_task(self._listen(), name="live-board"),
            asyncio.create_task(self._ask(), name="live-exposure"),
        ]

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def race(self, window: str) -> tuple[ListedItem, ...]:
        """What is popular over a window, asked once for all pages. Raises what the API raises."""
        asked_at, items = self._races.get(window, (0.0, ()))
        if time.monotonic() - asked_at > ASK_S:
            items = (await self._api.popular(RACERS, window=window or None)).items
            self._races[window] = (time.monotonic(), items)
        return items

    async def _listen(self) -> None:
        async for message in live_messages(self._api):
            self.connected = message is not None
            if message is not None:
                self.take(message)
            self.version += 1

    async def _ask(self) -> None:
        while True:
            with suppress(AfterclickError):  # the tiles say that the API is away
                self.exposure = (await self._api.get("/exposure"))["rows"]
                self.asked += 1
            await asyncio.sleep(ASK_S)

    def take(self, message: Json) -> None:
        """Keep one message of /ws/live."""
        if message.get("type") == "figures":
            self.beats += 1
            now = message.get("time") or time.time()
            self.figures = {
                **message,
                "time": now,
                "backlog": self._backlog(now, message),
                "ctr": self._ctr(now),
                "departments": self._shares(now),
            }
            self.past.append(self.figures)
        elif message.get("type") == "event":
            self._departments[department_of(message.get("categories") or ())] += 1
            self.events.appendleft(message)

    def _backlog(self, now: float, figures: Json) -> bool:
        """Whether the newest events have waited in the log for others, so that their age is no delay."""
        if (figures.get("lag") or 0) > max(BACKLOG, 2 * (figures.get("events_per_s") or 0)):
            self._backlog_at = now
        return now - self._backlog_at < BACKLOG_S

    def _ctr(self, now: float) -> dict[str, float]:
        """Clicks per hundred items shown, of each source and model that was shown lately."""
        counts = {
            (what, _shown_by(row)): row[what]
            for row in self.exposure
            for what in ("items", "clicks")
        }
        grown = self._moving["ctr"].grown(now, counts)
        names = {name: count for (what, name), count in grown.items() if what == "items" and count}
        return {name: 100 * grown["clicks", name] / items for name, items in names.items()}

    def _shares(self, now: float) -> dict[str, float]:
        """Per cent of the sampled events by department."""
        grown = self._moving["departments"].grown(
            now, {("events", name): count for name, count in self._departments.items()}
        )
        total = sum(grown.values())
        return (
            {name: 100 * count / total for (_, name), count in grown.items() if count}
            if total
            else {}
        )


def _shown_by(row: Json) -> str:
    """The source and the model of a row of /exposure, as the chart names them."""
    source = SOURCE_NAMES.get(row["source"], str(row["source"]))
    return f"{source}, {row['model_version'] or 'no model'}"
