"""`afterclick bench swap`: models replaced while the API answers. No request may notice.

Starts its own Kafka, Valkey and API, asks at a fixed rate, once in peace and once while a new model is
published as soon as the last one serves.
"""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import orjson
import structlog
from confluent_kafka import Producer

from afterclick.settings import Settings
from infra.benchmarks import serve_load as serve
from infra.benchmarks import synthetic
from infra.benchmarks.load import Call, Outcome, open_loop
from infra.benchmarks.served import changes, model_of, served
from infra.benchmarks.servers import own_servers, wait
from infra.benchmarks.synthetic import Shop
from infra.embedded.ports import LOOPBACK

log = structlog.get_logger()
VERSIONS = 4
"""Models that take turns: each is a whole artifact of its own."""
SWAP_S = 30.0


@dataclass(frozen=True)
class Bench:
    """What to run."""

    swaps: int = 20
    rate: float = 200.0
    quiet_s: float = 20.0
    items: int = 60_000
    users: int = 2000


def run(bench: Bench, jars: Path) -> dict[str, Any]:
    """Run it all; the figures."""
    versions = [f"model-{n}" for n in range(VERSIONS)]
    with own_servers(jars) as servers:
        settings = servers.settings
        log.info("making the shop", items=bench.items, models=VERSIONS)
        shop = synthetic.make(settings, bench.items, bench.users, versions=versions)
        load = serve.Bench(
            rate=bench.rate, seconds=bench.quiet_s, items=bench.items, users=bench.users
        )
        seen: set[str] = set()
        calls = [_noting(call, seen) for call in serve.mixed_calls(load, shop)]
        with changes(settings, shop, load.events_per_s), served(settings) as (port, _):
            asyncio.run(open_loop(LOOPBACK, port, calls[: int(3 * bench.rate)], bench.rate))
            quiet = asyncio.run(open_loop(LOOPBACK, port, calls, bench.rate))
            swapped, seconds = _while_swapping(bench, settings, shop, port, calls)
    return {
        "rate": bench.rate,
        "items": bench.items,
        "swaps": len(seconds),
        "requests": len(swapped.latencies_ms),
        "errors": len(swapped.errors) + len(quiet.errors),
        "first_error": next(iter(swapped.errors + quiet.errors), None),
        "versions_seen": len(seen),
        "swap_s": round(float(np.median(seconds)), 2),
        **{
            f"quiet_p{name}_ms": round(quiet.percentile(q), 2)
            for name, q in serve.QUANTILES.items()
        },
        **{f"p{name}_ms": round(swapped.percentile(q), 2) for name, q in serve.QUANTILES.items()},
        "times_quiet_p99": round(swapped.percentile(99) / quiet.percentile(99), 2),
    }


def _noting(call: Call, seen: set[str]) -> Call:
    """The same call, whose check also notes which model answered: one, and the one the answer names."""

    def check(raw: bytes) -> str | None:
        seen.add(str(orjson.loads(raw).get("model_version")))
        return call.check(raw)

    return replace(call, check=check)


def _while_swapping(
    bench: Bench, settings: Settings, shop: Shop, port: int, calls: list[Call]
) -> tuple[Outcome, list[float]]:
    done, enough = Event(), int(bench.rate * bench.swaps * SWAP_S)
    endless = list(islice(cycle(calls), enough))
    with ThreadPoolExecutor(1) as pool:
        swaps = pool.submit(_swap, bench, settings, shop, port, done)
        outcome = asyncio.run(open_loop(LOOPBACK, port, endless, bench.rate, done))
        return outcome, swaps.result()


def _swap(bench: Bench, settings: Settings, shop: Shop, port: int, done: Event) -> list[float]:
    """Publish one model after the other; seconds from each one's publication until it serves."""
    producer = Producer({"bootstrap.servers": settings.kafka.bootstrap})
    seconds, versions = [], list(shop.models)
    try:
        for n in range(bench.swaps):
            version, began = versions[(n + 1) % len(versions)], time.monotonic()
            synthetic.publish_model(producer, settings, shop.models[version])
            producer.flush(10)
            wait(partial(_serves, port, version), f"{version} to serve", SWAP_S)
            seconds.append(time.monotonic() - began)
    finally:
        done.set()
    return seconds


def _serves(port: int, version: str) -> bool:
    return model_of(port) == version
