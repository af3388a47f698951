"""`afterclick bench swap`: models are replaced under load, without a failed or slow request.

Starts its own Kafka, Valkey and API. Sends requests at a fixed rate, first without a swap, then
while a new model is published as soon as the last one is served.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import cycle, islice
from threading import Event

import numpy as np
import orjson
import structlog
from confluent_kafka import Producer

from afterclick.settings import Settings
from infra.benchmarks.harness import (
    Benchmark,
    Figures,
    RunningApi,
    ShopTraffic,
    own_servers,
    served_shop,
    wait_for,
)
from infra.benchmarks.load import Call, open_loop
from infra.benchmarks.serve_load import RequestMix
from infra.benchmarks.synthetic import SyntheticShop, build_shop, publish_model

log = structlog.get_logger()
VERSIONS = 4
"""Artifacts that are published in turn."""
SWAP_S = 30.0


@dataclass(frozen=True)
class ModelSwapBenchmark(Benchmark):
    swaps: int = 20
    rate: float = 200.0
    """Requests per second."""
    quiet_s: float = 20.0
    items: int = 60_000
    users: int = 2000
    changes_per_s: float = 50.0

    def run(self, settings: Settings) -> Figures:
        versions = [f"model-{n}" for n in range(VERSIONS)]
        with own_servers(settings) as servers:
            own = servers.settings
            log.info("building the shop", items=self.items, models=VERSIONS)
            shop = build_shop(own, self.items, self.users, versions=versions)
            seen: set[str] = set()
            count = int(max(self.rate * self.quiet_s, 5000))
            calls = [_record_version(call, seen) for call in RequestMix().calls(shop, count)]
            with ShopTraffic(own, shop).running(self.changes_per_s), served_shop(own) as api:
                open_loop(api.port, calls[: int(3 * self.rate)], self.rate)
                quiet = open_loop(api.port, calls, self.rate)
                done = Event()
                endless = list(islice(cycle(calls), int(self.rate * self.swaps * SWAP_S)))
                with ThreadPoolExecutor(1) as pool:
                    swaps = pool.submit(self._swap, own, shop, api, done)
                    swapped = open_loop(api.port, endless, self.rate, done)
                    seconds = swaps.result()
        return {
            "rate": self.rate,
            "items": self.items,
            "swaps": len(seconds),
            "requests": len(swapped.latencies_ms),
            "errors": len(swapped.errors) + len(quiet.errors),
            "first_error": next(iter(swapped.errors + quiet.errors), None),
            "versions_seen": len(seen),
            "swap_s": round(float(np.median(seconds)), 2),
            **quiet.percentiles_ms("quiet_"),
            **swapped.percentiles_ms(),
            "times_quiet_p99": round(swapped.percentile(99) / quiet.percentile(99), 2),
        }

    def _swap(
        self, settings: Settings, shop: SyntheticShop, api: RunningApi, done: Event
    ) -> list[float]:
        """Publish models in turn; returns the seconds from each publication until it is served."""
        producer = Producer({"bootstrap.servers": settings.kafka.bootstrap})
        seconds, versions = [], list(shop.models)
        try:
            for n in range(self.swaps):
                version, started = versions[(n + 1) % len(versions)], time.monotonic()
                publish_model(producer, settings, shop.models[version])
                producer.flush(10)
                _wait_served(api, version)
                seconds.append(time.monotonic() - started)
        finally:
            done.set()
        return seconds


def _wait_served(api: RunningApi, version: str) -> None:
    wait_for(lambda: api.model() == version, f"{version} to be served", SWAP_S)


def _record_version(call: Call, seen: set[str]) -> Call:
    """The same call; its check also records the model version of the response."""

    def check(raw: bytes) -> str | None:
        seen.add(str(orjson.loads(raw).get("model_version")))
        return call.check(raw)

    return replace(call, check=check)
