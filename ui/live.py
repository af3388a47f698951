"""The live figures: one connection to the API for the whole process, shared by every page.

reads   websocket  /ws/live
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from contextlib import suppress
from dataclasses import dataclass

import structlog

from ui.api import Api
from ui.api_types import JsonObject
from ui.feeds import live_messages

log = structlog.get_logger()

KEPT_FIGURES = 1800  # half an hour, one a second
KEPT_EVENTS = 60


@dataclass(frozen=True)
class Effects:
    """What the sampled events did: counted once, or refused as resent or replayed."""

    applied: int = 0
    duplicate: int = 0
    replayed: int = 0


class LiveBoard:
    """The newest figures, those of the last half hour, and the newest events. Pages poll `version`."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._task: asyncio.Task[None] | None = None
        self._effects: Counter[str] = Counter()
        self.figures: JsonObject = {}
        self.past: deque[JsonObject] = deque(maxlen=KEPT_FIGURES)
        self.events: deque[JsonObject] = deque(maxlen=KEPT_EVENTS)
        self.connected = False
        self.version = 0
        self.beats = 0

    def start(self) -> None:
        """Begin to listen. Call inside the event loop."""
        self._task = asyncio.create_task(self._listen(), name="live-board")

    async def stop(self) -> None:
        if self._task:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    @property
    def effects(self) -> Effects:
        """What the events did that were seen since this process began."""
        return Effects(**{name: self._effects[name] for name in ("applied", "duplicate", "replayed")})

    async def _listen(self) -> None:
        async for message in live_messages(self._api):
            self.connected = message is not None
            if message is not None:
                self.take(message)
            self.version += 1

    def take(self, message: JsonObject) -> None:
        """Keep one message of /ws/live."""
        if message.get("type") == "figures":
            self.beats += 1
            self.figures = {"time": time.time(), **message}
            self.past.append(self.figures)
        elif message.get("type") == "event":
            self._effects[str(message.get("effect", "applied"))] += 1
            self.events.appendleft(message)
