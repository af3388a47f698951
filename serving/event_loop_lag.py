"""How far the event loop is behind: whether requests come faster than they are answered."""

from __future__ import annotations

import asyncio
import time

BEAT_S = 0.005


class Pulse:
    """A beat on the event loop. When the beat is late, so is everything that waits for its turn beside it."""

    def __init__(self) -> None:
        self._due = float("inf")
        self._next: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin to beat on the running loop."""
        self._beat()

    def stop(self) -> None:
        """End the beat; nothing is late any more."""
        self._due = float("inf")
        if self._next is not None:
            self._next.cancel()

    def late_ms(self, began: float) -> float:
        """Milliseconds that an answer begun at `began` (time.monotonic) is behind, or the next beat is.

        An answer waits for nothing but its turns on the loop and Redis, which takes less than a millisecond.
        """
        return (time.monotonic() - min(began, self._due)) * 1000

    def _beat(self) -> None:
        self._due = time.monotonic() + BEAT_S
        self._next = asyncio.get_running_loop().call_later(BEAT_S, self._beat)
