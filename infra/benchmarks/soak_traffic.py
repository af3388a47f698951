"""Traffic of `afterclick bench soak`: feedback, lists and WebSockets of a bounded population."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType

from websockets.asyncio.client import connect

from afterclick.events import new_id
from infra.benchmarks.load import ConnectionPool, get, post
from infra.embedded.server import LOOPBACK

_ACTIONS = ("view", "click", "like", "skip")
_RETRY_S = 0.5
_CONNECTIONS = 32
_RETRY_FOR_S = 120.0
"""Longer than any restart of a service."""


@dataclass(frozen=True)
class TrafficPlan:
    """Who sends what, and how often."""

    users: Sequence[str]
    items: Sequence[str]
    events_per_s: float
    lists_per_s: float
    sockets: int
    seed: int = 5


@dataclass
class SoakTraffic:
    """Sends during a `with`, from a thread of its own. Feedback that fails is sent again with the
    same event id, until it is acknowledged.
    """

    port: int
    plan: TrafficPlan
    acknowledged: set[str] = field(default_factory=set)
    """Ids of the events that the API has accepted."""
    unacknowledged: int = 0
    """Events given up after two minutes."""
    lists: int = 0
    failed_lists: int = 0
    """Lists without a response, or with an error: some during each kill."""
    pushes: int = 0
    _stop: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> SoakTraffic:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        asyncio.run(self._send())

    async def _send(self) -> None:
        """Send until the stop, then wait for what is not acknowledged."""
        pool, plan = ConnectionPool(self.port, _CONNECTIONS), self.plan
        sockets = [asyncio.create_task(self._watch(user)) for user in plan.users[: plan.sockets]]
        async with asyncio.TaskGroup() as group:
            group.create_task(self._send_events(pool, group))
            group.create_task(self._request_lists(pool, group))
        for socket in sockets:
            socket.cancel()
        await asyncio.gather(*sockets, return_exceptions=True)
        pool.close()

    async def _send_events(self, pool: ConnectionPool, group: asyncio.TaskGroup) -> None:
        rng = random.Random(self.plan.seed)
        while not self._stop.is_set():
            body = {
                "user_id": rng.choice(self.plan.users),
                "item_id": rng.choice(self.plan.items),
                "action": rng.choice(_ACTIONS),
                "event_id": new_id(),
            }
            group.create_task(self._send_event(pool, body))
            await asyncio.sleep(1 / self.plan.events_per_s)

    async def _send_event(self, pool: ConnectionPool, body: dict[str, str]) -> None:
        end = time.monotonic() + _RETRY_FOR_S
        while time.monotonic() < end:
            response = await pool.try_call(post("/feedback", body))
            if isinstance(response, bytes) and response.startswith(b"HTTP/1.1 202 "):
                self.acknowledged.add(body["event_id"])
                return
            await asyncio.sleep(_RETRY_S)
        self.unacknowledged += 1

    async def _request_lists(self, pool: ConnectionPool, group: asyncio.TaskGroup) -> None:
        rng = random.Random(self.plan.seed)
        while not self._stop.is_set():
            group.create_task(self._request_list(pool, rng.choice(self.plan.users)))
            await asyncio.sleep(1 / self.plan.lists_per_s)

    async def _request_list(self, pool: ConnectionPool, user: str) -> None:
        response = await pool.try_call(get(f"/recommendations?user_id={user}&n=10"))
        self.lists += 1
        complete = isinstance(response, bytes) and response.startswith(b"HTTP/1.1 200 ")
        self.failed_lists += not complete

    async def _watch(self, user: str) -> None:
        """Read the user's pushed lists; connect again after each end."""
        url = f"ws://{LOOPBACK}:{self.port}/ws/recommendations?user_id={user}"
        while True:
            try:
                async with connect(url, max_size=None) as socket:
                    async for _ in socket:
                        self.pushes += 1
            except Exception:  # the API was killed
                await asyncio.sleep(_RETRY_S)
