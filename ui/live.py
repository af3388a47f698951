"""The live figures: one connection to the API for the whole process, fanned out to every page.

reads   websocket  /ws/live
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import suppress

import structlog

from ui.api_types import JsonObject
from ui.feeds import live_messages

log = structlog.get_logger()


class LiveBoard:
    """The newest figures and what came lately. Pages wait for `changed` and read what they like."""

    def __init__(self, api_url: str) -> None:
        self._api_url = api_url
        self._changed = asyncio.Condition()
        self._task: asyncio.Task[None] | None = None
        self.figures: JsonObject = {}
        self.connected = False
        self.heard = 0.0
        self.version = 0

    def start(self) -> None:
        """Begin to listen. Call inside the event loop."""
        self._task = asyncio.create_task(self._listen(), name="live-board")

    async def stop(self) -> None:
        if self._task:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    @property
    def age_s(self) -> float | None:
        """Seconds since the last figures; None before the first."""
        return time.monotonic() - self.heard if self.heard else None

    async def updates(self) -> AsyncIterator[None]:
        """Yields each time something changed, at most as often as the reader comes back."""
        seen = -1
        while True:
            async with self._changed:
                await self._changed.wait_for(lambda: self.version != seen)  # noqa: B023
                seen = self.version
            yield

    async def _listen(self) -> None:
        async for message in live_messages(self._api_url):
            self.connected = message is not None
            if message is not None:
                self._take(message)
            async with self._changed:
                self.version += 1
                self._changed.notify_all()

    def _take(self, message: JsonObject) -> None:
        self.heard = time.monotonic()
        if message.get("type") == "figures":
            self.figures = message
