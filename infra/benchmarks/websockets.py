"""`afterclick bench sockets`: many WebSocket viewers, some of which never read.

Starts its own Kafka, Valkey and API. Viewers watch their lists while state changes arrive at a
steady rate: alone, then with stalled viewers of long lists, then alone again.
"""

from __future__ import annotations

import asyncio
import socket
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

import numpy as np
import orjson
import structlog
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from afterclick.settings import Settings
from infra.benchmarks.harness import (
    Benchmark,
    Figures,
    RunningApi,
    ShopTraffic,
    own_servers,
    percentiles,
    served_shop,
)
from infra.benchmarks.synthetic import build_shop
from infra.embedded.server import LOOPBACK

log = structlog.get_logger()
MAX_CONNECTING = 25
N, STALLED_N = 10, 200
"""Items in a list; the unread ones are long, so that they fill the buffers of both ends soon."""
STALLED_CHANGES_PER_S = 2.0
"""Changes per second of each stalled viewer's user."""


@dataclass
class _Viewers:
    """Delays of pushes, by the event that caused them."""

    delays_ms: list[float] = field(default_factory=list)
    sent: dict[str, float] = field(default_factory=dict)
    """Event id → time of publication, epoch seconds."""
    closed: int = 0


@dataclass(frozen=True)
class WebSocketBenchmark(Benchmark):
    clients: int = 500
    stalled: int = 25
    """Of these, viewers that never read."""
    changes_per_s: float = 100.0
    """Over all reading viewers."""
    seconds: float = 20.0
    """Length of each of the three phases."""
    items: int = 60_000

    def run(self, settings: Settings) -> Figures:
        with own_servers(settings) as servers:
            log.info("building the shop", items=self.items, users=self.clients)
            shop = build_shop(servers.settings, self.items, self.clients)
            traffic = ShopTraffic(servers.settings, shop)
            with served_shop(servers.settings) as api:
                return asyncio.run(self._measure(traffic, api))

    async def _measure(self, traffic: ShopTraffic, api: RunningApi) -> Figures:
        viewers, users = _Viewers(), traffic.shop.users
        readers, stalled = users[self.stalled :], users[: self.stalled]
        async with AsyncExitStack() as stack, asyncio.TaskGroup() as tasks:
            connections = await _open_all(stack, api.port, readers)
            reading = [tasks.create_task(_read(each, viewers)) for each in connections]
            await _publish(traffic, viewers, readers, self.changes_per_s, 3.0)
            alone, memory = await self._phase(traffic, viewers, readers), [api.rss_mb()]
            for user in stalled:
                await stack.enter_async_context(_stalled_viewer(api.port, user))
            rate = STALLED_CHANGES_PER_S * len(stalled)
            noise = _publish(traffic, _Viewers(), stalled, rate, self.seconds)
            noise_task = tasks.create_task(noise)
            with_stalled = await self._phase(traffic, viewers, readers)
            await noise_task
            memory.append(api.rss_mb())
            after = await self._phase(traffic, viewers, readers)
            memory.append(api.rss_mb())
            watching = await asyncio.to_thread(api.metric, "afterclick_websockets", kind="user")
            for task in reading:
                task.cancel()
        p99_ratio = float(np.percentile(with_stalled, 99) / np.percentile(alone, 99))
        return {
            "clients": self.clients,
            "stalled": self.stalled,
            "changes_per_s": self.changes_per_s,
            "watching_at_the_end": watching,
            "closed_readers": viewers.closed,
            "pushes": len(alone) + len(with_stalled) + len(after),
            "push_ms": percentiles(alone),
            "push_beside_stalled_ms": percentiles(with_stalled),
            "push_after_ms": percentiles(after),
            "times_p99": round(p99_ratio, 2),
            "rss_mb": memory,
        }

    async def _phase(
        self, traffic: ShopTraffic, viewers: _Viewers, readers: list[str]
    ) -> list[float]:
        viewers.delays_ms = []
        await _publish(traffic, viewers, readers, self.changes_per_s, self.seconds)
        return viewers.delays_ms


async def _publish(
    traffic: ShopTraffic, viewers: _Viewers, users: list[str], per_s: float, seconds: float
) -> None:
    """Publish `per_s` changes per second, for each user in turn; then wait a second."""
    started, items = time.time(), traffic.shop.items
    for n in range(int(per_s * seconds)):
        await asyncio.sleep(max(started + n / per_s - time.time(), 0))
        published = time.time()
        event_id = traffic.publish_like(users[n % len(users)], items[n % len(items)])
        viewers.sent[event_id] = published
    traffic.flush()
    await asyncio.sleep(1)


async def _open_all(stack: AsyncExitStack, port: int, users: list[str]) -> list[ClientConnection]:
    slots = asyncio.Semaphore(MAX_CONNECTING)

    async def open_one(user: str) -> ClientConnection:
        async with slots:
            return await connect(_url(port, user, N), max_size=None)

    connections = await asyncio.gather(*map(open_one, users))
    for connection in connections:
        stack.push_async_callback(connection.close)
    return connections


async def _read(connection: ClientConnection, viewers: _Viewers) -> None:
    try:
        async for message in connection:
            now, cause = time.time(), orjson.loads(message).get("cause") or {}
            sent = viewers.sent.get(cause.get("event_id", ""))
            if sent is not None:
                viewers.delays_ms.append((now - sent) * 1000)
        viewers.closed += 1
    except ConnectionClosed:
        viewers.closed += 1


def _stalled_viewer(port: int, user: str) -> connect:
    """A viewer with small buffers that never reads."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.connect((LOOPBACK, port))
    url = _url(port, user, STALLED_N)
    return connect(url, sock=sock, max_size=None, max_queue=1, close_timeout=0.1)


def _url(port: int, user: str, n: int) -> str:
    return f"ws://{LOOPBACK}:{port}/ws/recommendations?user_id={user}&n={n}"
