"""`afterclick bench sockets`: many viewers on WebSockets, some of whom never read.

Starts its own Kafka, Valkey and API. Viewers watch their users' lists while state changes arrive at a steady
rate; then the same beside viewers that ask for long lists and never read one; and once more without them.
"""

from __future__ import annotations

import asyncio
import socket
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import psutil
import structlog
from confluent_kafka import Producer
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from afterclick.settings import Settings
from infra.benchmarks import serve_load as serve
from infra.benchmarks import synthetic
from infra.benchmarks.served import metric, served, tell
from infra.benchmarks.servers import own_servers
from infra.benchmarks.synthetic import Shop
from infra.embedded.ports import LOOPBACK

log = structlog.get_logger()
AT_ONCE = 25
"""Connections being opened at a time."""
LONG = 200
"""Items in the lists that nobody reads: they fill the buffers of both ends soon."""


@dataclass(frozen=True)
class Bench:
    """What to run. Changes are per second and over all viewers; a stalled viewer's user has two a second."""

    clients: int = 500
    stalled: int = 25
    changes_per_s: float = 100.0
    seconds: float = 20.0
    items: int = 60_000


@dataclass
class _Viewers:
    """What the viewers saw."""

    delays_ms: list[float] = field(default_factory=list)
    sent: dict[str, float] = field(default_factory=dict)
    """Event id → when it was put on the topic, epoch seconds."""
    closed: int = 0


def run(bench: Bench, jars: Path) -> dict[str, Any]:
    """Run it all; the figures."""
    with own_servers(jars) as servers:
        settings = servers.settings
        log.info("making the shop", items=bench.items, users=bench.clients)
        shop = synthetic.make(settings, bench.items, bench.clients)
        with served(settings) as (port, process):
            return asyncio.run(_measure(bench, settings, shop, port, process))


async def _measure(
    bench: Bench, settings: Settings, shop: Shop, port: int, process: psutil.Process
) -> dict[str, Any]:
    viewers, feed = _Viewers(), _Feed(settings, shop)
    readers, stalled = shop.users[bench.stalled :], shop.users[: bench.stalled]
    async with AsyncExitStack() as stack, asyncio.TaskGroup() as tasks:
        reading = [
            tasks.create_task(_read(one, viewers)) for one in await _open_all(stack, port, readers)
        ]
        await feed.run(viewers, readers, bench.changes_per_s, 3.0)
        alone, memory = await _phase(feed, viewers, readers, bench), [_rss_mb(process)]
        for user in stalled:
            await stack.enter_async_context(_mute(port, user))
        noise = tasks.create_task(feed.run(_Viewers(), stalled, 2.0 * len(stalled), bench.seconds))
        beside = await _phase(feed, viewers, readers, bench)
        await noise
        memory.append(_rss_mb(process))
        again = await _phase(feed, viewers, readers, bench)
        memory.append(_rss_mb(process))
        watching = await asyncio.to_thread(_watching, port)
        for task in reading:
            task.cancel()
    return {
        "clients": bench.clients,
        "stalled": bench.stalled,
        "changes_per_s": bench.changes_per_s,
        "watching_at_the_end": watching,
        "closed_readers": viewers.closed,
        "pushes": len(alone) + len(beside) + len(again),
        "push_ms": _quantiles(alone),
        "push_beside_stalled_ms": _quantiles(beside),
        "push_after_ms": _quantiles(again),
        "times_p99": round(float(np.percentile(beside, 99) / np.percentile(alone, 99)), 2),
        "rss_mb": memory,
    }


class _Feed:
    """Says on the topic that users did something."""

    def __init__(self, settings: Settings, shop: Shop) -> None:
        self._settings, self._shop = settings, shop
        self._producer = Producer({"bootstrap.servers": settings.kafka.bootstrap, "linger.ms": 0})
        self._offset = synthetic.POSITION

    async def run(self, viewers: _Viewers, users: list[str], per_s: float, seconds: float) -> None:
        """Tell of `per_s` changes a second, of each user in turn."""
        started = time.time()
        for n in range(int(per_s * seconds)):
            await asyncio.sleep(max(started + n / per_s - time.time(), 0))
            self._offset += 1
            item = self._shop.items[self._offset % len(self._shop.items)]
            viewers.sent[f"c{self._offset}"] = time.time()
            tell(self._producer, self._settings, users[n % len(users)], item, self._offset)
        self._producer.flush(5)
        await asyncio.sleep(1)  # for the last pushes


async def _phase(feed: _Feed, viewers: _Viewers, readers: list[str], bench: Bench) -> list[float]:
    viewers.delays_ms = []
    await feed.run(viewers, readers, bench.changes_per_s, bench.seconds)
    return viewers.delays_ms


async def _open_all(stack: AsyncExitStack, port: int, users: list[str]) -> list[ClientConnection]:
    slots = asyncio.Semaphore(AT_ONCE)

    async def one(user: str) -> ClientConnection:
        async with slots:
            return await connect(_url(port, user, serve.N), max_size=None)

    found = await asyncio.gather(*map(one, users))
    for connection in found:
        stack.push_async_callback(connection.close)
    return found


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


def _mute(port: int, user: str) -> connect:
    """A viewer with small buffers that never reads."""
    own = socket.socket()
    own.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    own.connect((LOOPBACK, port))
    return connect(_url(port, user, LONG), sock=own, max_size=None, max_queue=1, close_timeout=0.1)


def _url(port: int, user: str, n: int) -> str:
    return f"ws://{LOOPBACK}:{port}/ws/recommendations?user_id={user}&n={n}"


def _watching(port: int) -> int:
    """Viewers that the server still has: those that never read are let go."""
    return metric(port, "afterclick_websockets", kind="user")


def _quantiles(values: list[float]) -> dict[str, float]:
    return {
        f"p{name}": round(float(np.percentile(values, q)), 2) for name, q in serve.QUANTILES.items()
    }


def _rss_mb(process: psutil.Process) -> int:
    return round(process.memory_info().rss / 2**20)
