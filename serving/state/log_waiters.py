"""Read your own writes: requests that wait until an event is in the state."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from afterclick.state import LogPosition


class PositionWaiters:
    """Requests that wait for a log position. Event loop only."""

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self._waiting: dict[LogPosition, set[asyncio.Future[None]]] = {}

    async def reached(self, position: LogPosition, applied: Mapping[str, int]) -> bool:
        """Whether the applied offsets reach `position`, now or within the timeout."""
        if _reached(position, applied):
            return True
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting = self._waiting.setdefault(position, set())
        waiting.add(future)
        try:
            async with asyncio.timeout(self.timeout_s):
                await future
        except TimeoutError:
            return False
        finally:
            waiting.discard(future)
            if not waiting and self._waiting.get(position) is waiting:
                del self._waiting[position]
        return True

    def advance(self, applied: Mapping[str, int]) -> None:
        """Wake the requests whose position is reached."""
        for position, futures in list(self._waiting.items()):
            if _reached(position, applied):
                for future in futures:
                    if not future.done():
                        future.set_result(None)


def _reached(position: LogPosition, applied: Mapping[str, int]) -> bool:
    """`applied`: topic/partition → the last applied offset."""
    return applied.get(f"{position.topic}/{position.partition}", -1) >= position.offset
