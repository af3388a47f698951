"""Read your own writes: wait until an event's position is in the state."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True, slots=True)
class Position:
    """Where a record stands in the log."""

    topic: str
    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.topic}/{self.partition}/{self.offset}"

    @property
    def log(self) -> str:
        """The partition it is in, as `as_of` names it."""
        return f"{self.topic}/{self.partition}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """From `topic/partition/offset`. Raises ValueError."""
        topic, partition, offset = text.rsplit("/", 2)
        if not (
            topic
            and partition.isascii()
            and partition.isdigit()
            and offset.isascii()
            and offset.isdigit()
        ):
            raise ValueError("a position is topic/partition/offset")
        return cls(topic, int(partition), int(offset))


class PositionWaiters:
    """Requests that wait for a position. Lives on the event loop."""

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s
        self._waiting: dict[Position, set[asyncio.Future[None]]] = {}

    async def reached(self, wanted: Position, positions: Mapping[str, int]) -> bool:
        """Whether `positions` reach `wanted`, now or within the time that a request may wait."""
        if positions.get(wanted.log, -1) >= wanted.offset:
            return True
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting = self._waiting.setdefault(wanted, set())
        waiting.add(future)
        try:
            async with asyncio.timeout(self._patience_s):
                await future
        except TimeoutError:
            return False
        finally:
            waiting.discard(future)
            if not waiting and self._waiting.get(wanted) is waiting:
                del self._waiting[wanted]
        return True

    def advance(self, positions: Mapping[str, int]) -> None:
        """Wake the requests whose position is reached."""
        for wanted, futures in list(self._waiting.items()):
            if positions.get(wanted.log, -1) >= wanted.offset:
                for future in futures:
                    if not future.done():
                        future.set_result(None)
