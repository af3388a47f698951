"""What open WebSockets receive: per user the newest change, for the dashboard a sample of all.

Memory does not grow with a slow client: a watched user has one pending change, newer ones replace
it and are counted; a live connection has a bounded queue that drops the oldest messages and
reports their number.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from afterclick.arrays import Json
from afterclick.state import StateChange
from serving.response_cache import Recommendation

LIVE_QUEUE = 64
SAMPLED_PER_S = 20


@dataclass(eq=False)
class Watcher:
    """One connection that watches one user, and what it holds of the user."""

    user_id: str
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    cause: StateChange | None = None
    coalesced: int = 0
    pushed: Json | None = None
    """The cause of the last push, as it was sent."""
    unseen: OrderedDict[str, Recommendation] = field(default_factory=OrderedDict)
    """Pushed lists that the client may still report as seen."""

    def notify(self, change: StateChange) -> None:
        if self.cause is not None:
            self.coalesced += 1
        self.cause = change
        self.changed.set()

    def forget(self) -> None:
        """Drop what the connection holds of the user's past."""
        self.cause, self.coalesced, self.pushed = None, 0, None
        self.unseen.clear()
        self.changed.clear()

    async def next(self) -> tuple[StateChange, int]:
        """The newest change, and how many earlier ones it replaces."""
        await self.changed.wait()
        self.changed.clear()
        cause, coalesced = self.cause, self.coalesced
        assert cause is not None
        self.cause, self.coalesced = None, 0
        return cause, coalesced


@dataclass(eq=False)
class LiveReader:
    """One connection to the live stream."""

    queue: deque[bytes] = field(default_factory=lambda: deque(maxlen=LIVE_QUEUE))
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    dropped: int = 0
    """Messages dropped since the reader was last notified."""

    def push(self, message: bytes) -> bool:
        """Queue a message; returns whether the oldest was dropped for it."""
        full = len(self.queue) == LIVE_QUEUE
        self.dropped += full
        self.queue.append(message)
        self.ready.set()
        return full

    async def next(self) -> bytes:
        """The number of dropped messages, if any; else the oldest message."""
        while not self.queue:
            self.ready.clear()
            await self.ready.wait()
        if self.dropped:
            dropped, self.dropped = self.dropped, 0
            return orjson.dumps({"type": "dropped", "messages": dropped})
        return self.queue.popleft()


class Hub:
    """All open connections. Event loop only."""

    def __init__(self) -> None:
        self._watchers: dict[str, set[Watcher]] = {}
        self._live: set[LiveReader] = set()
        self._second, self._sampled = 0, 0
        self.dropped = 0
        """Messages that live connections did not read in time."""

    @property
    def watching(self) -> int:
        return sum(map(len, self._watchers.values()))

    @property
    def live(self) -> int:
        return len(self._live)

    def watch(self, user_id: str) -> Watcher:
        watcher = Watcher(user_id)
        self._watchers.setdefault(user_id, set()).add(watcher)
        return watcher

    def unwatch(self, watcher: Watcher) -> None:
        watchers = self._watchers.get(watcher.user_id)
        if watchers is not None:
            watchers.discard(watcher)
            if not watchers:
                del self._watchers[watcher.user_id]

    def subscribe(self) -> LiveReader:
        reader = LiveReader()
        self._live.add(reader)
        return reader

    def unsubscribe(self, reader: LiveReader) -> None:
        self._live.discard(reader)

    def deliver(self, changes: Sequence[StateChange]) -> list[StateChange]:
        """Notify the watchers of the changed users; returns a sample of changes for the live
        stream."""
        for change in changes:
            for watcher in self._watchers.get(change.user_id, ()):
                if change.effect.counts:
                    watcher.notify(change)
        return self._sample(changes) if self._live else []

    def forget(self, user_ids: Iterable[str]) -> None:
        """Drop the changes of these users, and all messages that live connections have not read."""
        for user_id in user_ids:
            for watcher in self._watchers.get(user_id, ()):
                watcher.forget()
        for reader in self._live:
            reader.queue.clear()

    def broadcast(self, message: bytes) -> None:
        """Queue a message on every live connection."""
        for reader in self._live:
            self.dropped += reader.push(message)

    def _sample(self, changes: Sequence[StateChange]) -> list[StateChange]:
        """The newest changes, up to `SAMPLED_PER_S` each second."""
        second = int(time.monotonic())
        if second != self._second:
            self._second, self._sampled = second, 0
        room = SAMPLED_PER_S - self._sampled
        sample = list(changes[-room:]) if room > 0 else []
        self._sampled += len(sample)
        return sample


def cause_of(change: StateChange, title: str | None) -> dict[str, Any]:
    """The event that caused a push, as it is sent."""
    return {
        "event_id": change.event_id,
        "item_id": change.item_id,
        "title": title,
        "action": change.action,
        "position": f"{change.topic}/{change.partition}/{change.offset}",
    }
