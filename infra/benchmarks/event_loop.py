"""`afterclick bench loop`: how long each kind of request occupies the API's event loop.

Starts its own Kafka and Valkey, and an API in a thread of this process, so that the CPU clock of
that thread can be read: time in which another process or thread ran does not count.

reads   topic  items, models
        redis  {u:<user>}:history, {p:reviews:0}:counts, :trends, :position
"""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from urllib.parse import quote

import httpx2
import numpy as np
import structlog
import uvicorn
import uvloop

from afterclick.settings import Settings
from infra.benchmarks.harness import READY_S, Benchmark, Figures, own_servers, wait_for
from infra.benchmarks.synthetic import SyntheticShop, build_shop
from infra.embedded.server import LOOPBACK, free_port
from serving.app import create_app, prefer_requests
from serving.request import MAX_SHOWN, encode_cursor

log = structlog.get_logger()
CONDITIONS = 50
"""Conditions of a request: the most that the API accepts."""
_PROBE_S = 0.001
_TIMEOUT_S = 120.0

Call = Callable[[httpx2.Client, int], httpx2.Response]
"""One request of a kind: the client, and a number that no other request of the kind has."""


@dataclass(frozen=True)
class KindResult:
    """Requests of one kind; field names are keys of `--json`."""

    name: str
    requests: int
    loop_ms_p50: float
    """CPU time of the event loop during a request, in milliseconds."""
    longest_ms: float
    """The longest that the loop ran in one of them before it served others."""
    errors: int
    """Responses other than 200."""


@dataclass(frozen=True)
class EventLoopBenchmark(Benchmark):
    items: int = 500_000
    users: int = 500
    requests: int = 20
    """Requests of each kind, one after another."""

    def run(self, settings: Settings) -> Figures:
        """A row per kind, and one without requests."""
        with own_servers(settings) as servers:
            log.info("building the shop", items=self.items, users=self.users)
            shop = build_shop(servers.settings, self.items, self.users)
            with _probed_api(servers.settings, shop) as (probe, client):
                kinds = {"no request": _no_request, **_kinds(shop)}
                rows = [self._measure(probe, client, *kind) for kind in kinds.items()]
        return {
            "items": self.items,
            "kinds": [vars(row) for row in rows],
            "longest_ms": max(row.longest_ms for row in rows),
            "errors": sum(row.errors for row in rows),
        }

    def _measure(
        self, probe: LoopProbe, client: httpx2.Client, name: str, call: Call
    ) -> KindResult:
        used_ms, longest_ms, errors = [], [], 0
        for number in range(self.requests):
            before_s = probe.start()
            errors += call(client, number).status_code != 200
            used_ms.append(1e3 * (probe.cpu_s() - before_s))
            longest_ms.append(1e3 * probe.longest_s)
        result = KindResult(
            name=name,
            requests=self.requests,
            loop_ms_p50=round(float(np.median(used_ms)), 2),
            longest_ms=round(max(longest_ms), 2),
            errors=errors,
        )
        log.info("kind", **vars(result))
        return result


@dataclass
class LoopProbe:
    """Reads the CPU time of an event loop's thread each millisecond, on that loop.

    What lies between two readings is at least the longest callback between them.
    """

    longest_s: float = 0.0
    _clock: int = field(default=0, init=False)

    async def run(self) -> None:
        """Read the clock until cancelled."""
        self._clock = time.pthread_getcpuclockid(threading.get_ident())
        before_s = time.thread_time()
        while True:
            await asyncio.sleep(_PROBE_S)
            now_s = time.thread_time()
            self.longest_s, before_s = max(self.longest_s, now_s - before_s), now_s

    def cpu_s(self) -> float:
        """CPU time of the loop's thread, in seconds. For other threads."""
        return time.clock_gettime(self._clock)

    def start(self) -> float:
        """Forget the longest callback so far. Returns `cpu_s`."""
        self.longest_s = 0.0
        return self.cpu_s()


@contextmanager
def _probed_api(
    settings: Settings, shop: SyntheticShop
) -> Iterator[tuple[LoopProbe, httpx2.Client]]:
    """An API in a thread, and a client of it, from the time that model, items and trends are
    loaded."""
    port = free_port()
    serving = settings.serving.model_copy(update={"port": port, "limit": ""})
    app = create_app(settings.model_copy(update={"serving": serving}))
    config = uvicorn.Config(app, host=LOOPBACK, port=port, access_log=False, log_config=None)
    server, probe, service = uvicorn.Server(config), LoopProbe(), app.state.service

    def is_loaded() -> bool:
        loaded = service.snapshots.current.loaded.model is not None and service.feed.loaded
        return loaded and len(service.catalogue) == len(shop.items)

    async def serve() -> None:
        watch = asyncio.create_task(probe.run())
        await server.serve()
        watch.cancel()

    prefer_requests()
    thread = threading.Thread(target=lambda: uvloop.run(serve()), name="api")
    thread.start()
    try:
        wait_for(is_loaded, "the model and its items", READY_S)
        with httpx2.Client(base_url=f"http://{LOOPBACK}:{port}", timeout=_TIMEOUT_S) as client:
            yield probe, client
    finally:
        server.should_exit = True
        thread.join()


def _no_request(_: httpx2.Client, __: int) -> httpx2.Response:
    time.sleep(0.1)
    return httpx2.Response(200)


def _kinds(shop: SyntheticShop) -> dict[str, Call]:
    """Name → requests that no cache holds, as long as the API accepts."""
    items, users = shop.items, shop.users
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = itertools.cycle("".join(word) for word in itertools.product(letters, repeat=2))

    def conditions(n: int) -> list[str]:
        return [f"title:{next(words)}" for _ in range(CONDITIONS - 1)] + [f"title:{n}"]

    def some_items(n: int) -> list[str]:
        return items[500 * n : 500 * (n + 1)]

    def list_of(client: httpx2.Client, number: int, /, **body: Any) -> httpx2.Response:
        return client.post("/recommendations", json={"user_id": users[number % len(users)], **body})

    def get(path: str, client: httpx2.Client, number: int, /, **query: Any) -> httpx2.Response:
        return client.get(path, params={name: value(number) for name, value in query.items()})

    return {
        "list": lambda c, n: list_of(c, n, exclude=[f"none-{n}"]),
        "list of 200 at rank 1,000": lambda c, n: list_of(c, n, n=200, offset=1000),
        "list with diversity": lambda c, n: list_of(c, n, n=100, diversity=0.5),
        "list with explanation": lambda c, n: list_of(c, n, explain=True, n=100),
        "list, 500 excluded": lambda c, n: list_of(c, n, exclude=some_items(n)),
        "list of a basket of 500": lambda c, n: c.post(
            "/recommendations", json={"items": some_items(n)}
        ),
        "list of a category": lambda c, n: list_of(c, n, category=f"C{n % 80}"),
        "list, 50 filters": lambda c, n: list_of(c, n, filters=conditions(n)),
        "list of interests": lambda c, n: c.post(
            "/recommendations",
            json={"user_id": f"new-{n}", "interests": [f"C{(n + i) % 80}" for i in range(50)]},
        ),
        "list with the longest cursor": lambda c, n: list_of(
            c, n, n=1, cursor=encode_cursor(items[-n - MAX_SHOWN : -n - 1])
        ),
        "batch of 500": lambda c, n: c.post(
            "/recommendations/batch", json={"user_ids": users[:500]}
        ),
        "similar items": partial(get, "/similar-items", item_id=lambda n: items[n]),
        "similar, by content": partial(
            get, "/similar-items", item_id=lambda n: items[n], by=lambda _: "content"
        ),
        "similar, 50 filters": partial(
            get, "/similar-items", item_id=lambda n: items[n], filters=conditions
        ),
        "popular of a category": partial(get, "/popular", category=lambda n: f"C{n % 80}"),
        "popular, 50 filters": partial(get, "/popular", filters=conditions),
        "latest, 50 filters": partial(get, "/latest", filters=conditions),
        "search of a letter": partial(get, "/search", q=lambda n: letters[n % 26]),
        "search of words": partial(get, "/search", q=lambda n: f"item {n} usual of the length"),
        "categories": partial(get, "/categories"),
        "item": lambda c, n: c.get(f"/items/{quote(items[n])}"),
        "history": lambda c, n: c.get(f"/users/{users[n % len(users)]}/history"),
        "metrics": partial(get, "/metrics"),
        "readiness": partial(get, "/health/ready"),
    }
