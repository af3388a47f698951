"""`afterclick bench degrade`: responses of the API while Redis, Kafka, a model or SQL is
unavailable.

Starts its own Kafka, Valkey and API, sends requests at a fixed rate, and takes one part down after
the other: killed, suspended, damaged, locked. Per case: the lists' tiers, their latencies from the
loss to the recovery, and the time to recover after the part has returned.
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import orjson
import structlog

from afterclick.io.kafka_clients import create_producer
from afterclick.settings import Settings
from infra.benchmarks.harness import Benchmark, Figures, Servers, own_servers, served_shop
from infra.benchmarks.load import ConnectionPool, get, post
from infra.benchmarks.synthetic import SyntheticShop, build_shop, publish_model

log = structlog.get_logger()
CONNECTIONS = 400
FEEDBACK_EVERY = 20
"""One request of this many is feedback; the others are for lists."""
HEALTHY_S = 2.0
"""Seconds without a degraded response that count as recovered."""
_LAST_RESPONSES = 5000


@dataclass(frozen=True)
class Outage:
    """A part, how it fails and how it returns."""

    name: str
    begin: Callable[[], None]
    end: Callable[[], None]


@dataclass(frozen=True, slots=True)
class TimedResponse:
    """`due` is the scheduled time of the request (perf_counter), `ms` the latency since then."""

    due: float
    is_list: bool
    ms: float
    status: int
    tier: str

    @property
    def healthy(self) -> bool:
        return self.status in (200, 202) and not self.tier.endswith("degraded")

    @property
    def is_error(self) -> bool:
        return self.status not in ((200,) if self.is_list else (202, 503))


@dataclass(frozen=True)
class DegradationBenchmark(Benchmark):
    rate: float = 100.0
    """Requests per second."""
    before: float = 3.0
    away: float = 8.0
    """Seconds of each outage."""
    after: float = 16.0
    """Maximum seconds to wait for the recovery."""
    items: int = 5000
    users: int = 300

    def run(self, settings: Settings) -> Figures:
        # one thread starts all servers again: they end with the thread
        with own_servers(settings) as servers, ThreadPoolExecutor(1) as actor:
            shop = build_shop(
                servers.settings, self.items, self.users, versions=["m1", "broken", "m2"]
            )
            with served_shop(servers.settings) as api:
                cases = [
                    self._case(outage, actor, api.port, shop) for outage in _outages(servers, shop)
                ]
        return {
            "rate": self.rate,
            "away_s": self.away,
            "cases": cases,
            "worst_p99_ms": max(case["p99_ms"] for case in cases),
            "errors": sum(case["errors"] for case in cases),
            "worst_recovery_s": max(case["recovery_s"] for case in cases),
        }

    def _case(
        self, outage: Outage, actor: ThreadPoolExecutor, port: int, shop: SyntheticShop
    ) -> Figures:
        responses: list[TimedResponse] = []
        over = threading.Event()
        acted = actor.submit(self._act, outage, responses, over)
        asyncio.run(self._load(port, shop, responses, over))
        figures = _figures(outage.name, responses, *acted.result())
        log.info("degrade", **figures)
        return figures

    def _act(
        self, outage: Outage, responses: list[TimedResponse], over: threading.Event
    ) -> tuple[float, float]:
        """Begin and end the outage, wait for the recovery; returns the times of both."""
        try:
            time.sleep(self.before)
            began = time.perf_counter()
            outage.begin()
            time.sleep(self.away)
            outage.end()
            ended = now = time.perf_counter()
            while now < ended + HEALTHY_S or (
                now < ended + self.after and not _recovered(responses, now)
            ):
                time.sleep(0.2)
                now = time.perf_counter()
            return began, ended
        finally:
            over.set()

    async def _load(
        self,
        port: int,
        shop: SyntheticShop,
        responses: list[TimedResponse],
        over: threading.Event,
    ) -> None:
        """Requests as a Poisson process until the case is over."""
        rng = np.random.default_rng(5)
        pool, tasks = ConnectionPool(port, CONNECTIONS), set[asyncio.Task[None]]()
        due, number = time.perf_counter(), 0
        while not over.is_set():
            due, number = due + float(rng.exponential(1 / self.rate)), number + 1
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            task = asyncio.create_task(_request(pool, shop, number, due, responses))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        await asyncio.gather(*tasks)
        pool.close()


def _outages(servers: Servers, shop: SyntheticShop) -> list[Outage]:
    kafka, valkey, settings = servers.kafka, servers.valkey, servers.settings
    lock = _DatabaseLock(settings)
    publish = partial(_publish, settings, shop)
    return [
        Outage("nothing", lambda: None, lambda: None),
        Outage("redis killed", valkey.kill, valkey.start),
        Outage("redis held still", valkey.process.suspend, valkey.process.resume),
        Outage("kafka killed", kafka.kill, kafka.start),
        Outage("kafka held still", kafka.process.suspend, kafka.process.resume),
        Outage("model damaged", partial(_publish_damaged, settings, shop), partial(publish, "m2")),
        Outage("sql locked", lock.acquire, lock.release),
    ]


def _recovered(responses: list[TimedResponse], now: float) -> bool:
    recent = (each for each in responses[-_LAST_RESPONSES:] if each.due > now - HEALTHY_S)
    return all(each.healthy for each in recent)


def _figures(name: str, responses: Sequence[TimedResponse], began: float, ended: float) -> Figures:
    """The figures from the loss of a part until the recovery."""
    recovery_s = _recovery_s(responses, ended)
    during = [each for each in responses if began <= each.due < ended + recovery_s]
    during = during or list(responses)
    lists = [each for each in during if each.is_list]
    feedback = [each for each in during if not each.is_list]
    return {
        "case": name,
        "lists": len(lists),
        "tiers": sorted({each.tier for each in lists}),
        "p50_ms": _percentile(lists, 50),
        "p99_ms": _percentile(lists, 99),
        "max_ms": _percentile(lists, 100),
        "feedback_p50_ms": _percentile(feedback, 50),
        "feedback_p99_ms": _percentile(feedback, 99),
        "feedback_503": sum(each.status == 503 for each in feedback),
        "errors": sum(each.is_error for each in responses),
        "recovery_s": round(recovery_s, 1),
    }


def _recovery_s(responses: Sequence[TimedResponse], ended: float) -> float:
    """Seconds from the end of the outage to the last unhealthy response."""
    unhealthy = [
        each.due + each.ms / 1000 for each in responses if each.due >= ended and not each.healthy
    ]
    return max(unhealthy, default=ended) - ended


def _percentile(responses: Sequence[TimedResponse], q: float) -> float:
    return round(float(np.percentile([each.ms for each in responses], q)), 1) if responses else 0.0


async def _request(
    pool: ConnectionPool,
    shop: SyntheticShop,
    number: int,
    due: float,
    responses: list[TimedResponse],
) -> None:
    is_list = bool(number % FEEDBACK_EVERY)
    if is_list:
        user = shop.users[number % len(shop.users)]
        raw = get(f"/recommendations?user_id={user}&n=10")
    else:
        item = shop.items[number % len(shop.items)]
        view = {"user_id": f"viewer-{number}", "item_id": item, "action": "view"}
        raw = post("/feedback", view)
    response = await pool.try_call(raw)
    ms = (time.perf_counter() - due) * 1000
    if isinstance(response, str):
        responses.append(TimedResponse(due, is_list, ms, 0, response))
        return
    tier = _tier(response) if is_list else ""
    responses.append(TimedResponse(due, is_list, ms, int(response[9:12]), tier))


def _tier(response: bytes) -> str:
    body = orjson.loads(response[response.find(b"\r\n\r\n") + 4 :])
    words = [str(body.get("source")), str(body.get("model_version"))]
    return " ".join(words + (["degraded"] if body.get("degraded") else []))


def _publish_damaged(settings: Settings, shop: SyntheticShop) -> None:
    """Publish a model with one flipped bit, which has to be rejected."""
    path = next((settings.artifacts / "broken").glob("*.npy"))
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    _publish(settings, shop, "broken")


def _publish(settings: Settings, shop: SyntheticShop, version: str) -> None:
    producer = create_producer(settings.kafka, {})
    publish_model(producer, settings, shop.models[version])
    producer.flush(10)


class _DatabaseLock:
    """An exclusive lock on the SQLite database."""

    def __init__(self, settings: Settings) -> None:
        self._path = settings.database.removeprefix("sqlite:///")
        self._connection: sqlite3.Connection | None = None

    def acquire(self) -> None:
        self._connection = sqlite3.connect(
            self._path, isolation_level=None, check_same_thread=False, timeout=10
        )
        self._connection.execute("BEGIN EXCLUSIVE")

    def release(self) -> None:
        if self._connection is not None:
            self._connection.rollback()
            self._connection.close()
