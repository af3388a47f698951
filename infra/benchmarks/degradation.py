"""`afterclick bench degrade`: what the API answers while Redis, Kafka, a model or SQL is away, under load.

Starts its own Kafka, Valkey and API, asks at a fixed rate, and takes one part away after the other: killed,
held still, damaged, locked. Per case: what the lists said, how long they took while the part was away and
until all was well again, and how long that took after the part was back.
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
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import structlog
from confluent_kafka import Producer

from afterclick.settings import Settings
from infra.benchmarks import synthetic
from infra.benchmarks.load import Pool, get, post
from infra.benchmarks.served import served
from infra.benchmarks.servers import Servers, own_servers
from infra.benchmarks.synthetic import Shop
from infra.embedded.ports import LOOPBACK

log = structlog.get_logger()
CONNECTIONS = 400
FEEDBACK = 20
"""One request in so many tells of a view; the others ask for lists."""
WELL_S = 2.0
"""How long everything has to be well to count as mended."""
Act = Callable[[], None]


@dataclass(frozen=True)
class Bench:
    """What to run: `before` and `away` are seconds of each case, `after` the most that mending may take."""

    rate: float = 100.0
    before: float = 3.0
    away: float = 8.0
    after: float = 16.0
    items: int = 5000
    users: int = 300


@dataclass(frozen=True)
class Case:
    """A part, how it goes and how it comes back."""

    name: str
    take: Act
    give: Act


@dataclass(frozen=True, slots=True)
class Seen:
    """One answer."""

    at: float
    is_list: bool
    ms: float
    status: int
    tier: str

    @property
    def well(self) -> bool:
        return self.status in (200, 202) and not self.tier.endswith("degraded")


def run(bench: Bench, jars: Path) -> dict[str, Any]:
    """Every case, one after the other; the figures."""
    # one thread for all cases: what it starts again ends with it
    with own_servers(jars) as servers, ThreadPoolExecutor(1) as actor:
        shop = synthetic.make(
            servers.settings, bench.items, bench.users, versions=["m1", "broken", "m2"]
        )
        with served(servers.settings) as (port, _):
            rows = [_judged(bench, case, actor, port, shop) for case in _cases(servers, shop)]
    return {
        "rate": bench.rate,
        "away_s": bench.away,
        "cases": rows,
        "worst_p99_ms": max(row["p99_ms"] for row in rows),
        "errors": sum(row["errors"] for row in rows),
        "worst_recovery_s": max(row["recovery_s"] for row in rows),
    }


def _cases(servers: Servers, shop: Shop) -> list[Case]:
    kafka, valkey, settings = servers.kafka, servers.valkey, servers.settings
    lock = _Lock(settings)
    return [
        Case("nothing", lambda: None, lambda: None),
        Case("redis killed", valkey.kill, valkey.start),
        Case("redis held still", valkey.process.suspend, valkey.process.resume),
        Case("kafka killed", kafka.kill, kafka.start),
        Case("kafka held still", kafka.process.suspend, kafka.process.resume),
        Case(
            "model damaged",
            partial(_damage, settings, shop),
            partial(_publish, settings, shop, "m2"),
        ),
        Case("sql locked", lock.take, lock.give),
    ]


def _judged(
    bench: Bench, case: Case, actor: ThreadPoolExecutor, port: int, shop: Shop
) -> dict[str, Any]:
    seen: list[Seen] = []
    over = threading.Event()
    acted = actor.submit(_act, bench, case, seen, over)
    asyncio.run(_load(bench, port, shop, seen, over))
    taken, given = acted.result()
    row = _row(case.name, seen, taken, given)
    log.info("degrade", **row)
    return row


def _act(bench: Bench, case: Case, seen: list[Seen], over: threading.Event) -> tuple[float, float]:
    """Take the part away, give it back, wait until all is well: the moments of the loss and of the return."""
    try:
        time.sleep(bench.before)
        taken = time.perf_counter()
        case.take()
        time.sleep(bench.away)
        case.give()
        given = now = time.perf_counter()
        while now < given + WELL_S or (now < given + bench.after and not _well(seen, now)):
            time.sleep(0.2)
            now = time.perf_counter()
        return taken, given
    finally:
        over.set()


def _well(seen: list[Seen], now: float) -> bool:
    return all(one.well for one in seen[-5000:] if one.at > now - WELL_S)


def _row(name: str, seen: Sequence[Seen], taken: float, given: float) -> dict[str, Any]:
    """The figures of the time from the loss of a part until all was well again."""
    recovery = _recovery(seen, given)
    during = [one for one in seen if taken <= one.at < given + recovery] or list(seen)
    lists, told = [o for o in during if o.is_list], [o for o in during if not o.is_list]
    tiers = sorted({one.tier for one in lists})
    return {
        "case": name,
        "lists": len(lists),
        "tiers": tiers,
        "p50_ms": _percentile(lists, 50),
        "p99_ms": _percentile(lists, 99),
        "max_ms": _percentile(lists, 100),
        "feedback_p50_ms": _percentile(told, 50),
        "feedback_p99_ms": _percentile(told, 99),
        "feedback_503": sum(one.status == 503 for one in told),
        "errors": sum(one.status not in ((200,) if one.is_list else (202, 503)) for one in seen),
        "recovery_s": round(recovery, 1),
    }


def _recovery(seen: Sequence[Seen], given: float) -> float:
    """Seconds from a part's return to the last answer that was not well; a part that is missed never is 0."""
    late = [one.at + one.ms / 1000 for one in seen if one.at >= given and not one.well]
    return max(late, default=given) - given


def _percentile(seen: Sequence[Seen], q: float) -> float:
    return round(float(np.percentile([one.ms for one in seen], q)), 1) if seen else 0.0


async def _load(
    bench: Bench, port: int, shop: Shop, seen: list[Seen], over: threading.Event
) -> None:
    """Ask at random moments until the case is over; latencies count from the moment that was due."""
    rng = np.random.default_rng(5)
    pool, tasks = Pool(LOOPBACK, port, CONNECTIONS), set[asyncio.Task[None]]()
    due, number = time.perf_counter(), 0
    while not over.is_set():
        due, number = due + float(rng.exponential(1 / bench.rate)), number + 1
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        task = asyncio.create_task(_one(pool, shop, number, due, seen))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    await asyncio.gather(*tasks)
    pool.close()


async def _one(pool: Pool, shop: Shop, number: int, due: float, seen: list[Seen]) -> None:
    user, is_list = str(shop.users[number % len(shop.users)]), bool(number % FEEDBACK)
    item = shop.items[number % len(shop.items)]
    told = orjson.dumps({"user_id": f"viewer-{number}", "item_id": item, "action": "view"})
    raw = (
        get(f"/recommendations?user_id={user}&n=10", LOOPBACK)
        if is_list
        else post("/feedback", LOOPBACK, told)
    )
    try:
        async with asyncio.timeout(10):
            answer = await pool.call(raw)
        status, tier = int(answer[9:12]), _tier(answer) if is_list else ""
    except (OSError, TimeoutError) as error:
        status, tier = 0, repr(error)
    seen.append(Seen(due, is_list, (time.perf_counter() - due) * 1000, status, tier))


def _tier(answer: bytes) -> str:
    body = orjson.loads(answer[answer.find(b"\r\n\r\n") + 4 :])
    words = [str(body.get("source")), str(body.get("model_version"))]
    return " ".join(words + (["degraded"] if body.get("degraded") else []))


def _damage(settings: Settings, shop: Shop) -> None:
    """Publish a model of which one bit is wrong: it has to be refused."""
    path = next((settings.artifacts / "broken").glob("*.npy"))
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    _publish(settings, shop, "broken")


def _publish(settings: Settings, shop: Shop, version: str) -> None:
    producer = Producer({"bootstrap.servers": settings.kafka.bootstrap})
    synthetic.publish_model(producer, settings, shop.models[version])
    producer.flush(10)


class _Lock:
    """Holds the SQL database, so that nobody else can write to it."""

    def __init__(self, settings: Settings) -> None:
        self._path = settings.database.removeprefix("sqlite:///")
        self._held: sqlite3.Connection | None = None

    def take(self) -> None:
        self._held = sqlite3.connect(
            self._path, isolation_level=None, check_same_thread=False, timeout=10
        )
        self._held.execute("BEGIN EXCLUSIVE")

    def give(self) -> None:
        if self._held is not None:
            self._held.rollback()
            self._held.close()
