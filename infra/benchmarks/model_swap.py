"""`afterclick bench swap` and `bench retrain`: models are replaced under load.

Both start their own services. `swap` sends requests at a fixed rate, first without a swap, then
while a new model is published as soon as the last one is served. `retrain` trains, evaluates and
publishes a model while events arrive and lists are requested.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import cycle, islice
from pathlib import Path
from threading import Event

import numpy as np
import orjson
import pyarrow.csv as csv
import structlog

from afterclick.errors import Unavailable
from afterclick.io.home import TrainingStatus
from afterclick.io.kafka_clients import create_producer
from afterclick.io.redis_clients import create_redis
from afterclick.settings import Settings
from infra.benchmarks.harness import (
    Benchmark,
    Figures,
    RunningApi,
    ShopTraffic,
    Stack,
    own_servers,
    own_stack,
    running_api,
    served_shop,
    wait_for,
)
from infra.benchmarks.load import RequestSpec, get, open_loop
from infra.benchmarks.serve_load import RequestMix
from infra.benchmarks.synthetic import SyntheticShop, build_shop, publish_model
from infra.embedded.process import Process, afterclick_command
from infra.stack.up import archived
from ingest.generate import ShopConfig, generate_shop

log = structlog.get_logger()
VERSIONS = 4
"""Artifacts that are published in turn."""
SWAP_S = 120.0
"""Timeout of a swap: a model of a million items is loaded at a quarter of a core."""


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
        producer = create_producer(settings.kafka, {})
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


def _record_version(call: RequestSpec, seen: set[str]) -> RequestSpec:
    """The same call; its check also records the model version of the response."""

    def check(raw: bytes) -> str | None:
        seen.add(str(orjson.loads(raw).get("model_version")))
        return call.check(raw)

    return replace(call, check=check)


TIMEOUT_S = 900.0
AFTER_S = 3.0
"""Seconds of load on the new model."""


@dataclass(frozen=True)
class RetrainingBenchmark(Benchmark):
    rate: float = 50.0
    """Requests per second."""
    events_per_s: float = 100.0
    """New events per second meanwhile."""
    due: int = 2_000
    """New events that trigger a training."""
    shop: ShopConfig = field(default_factory=ShopConfig)
    first: float = 0.7
    """Share of the events that the first model is trained on."""

    def run(self, settings: Settings) -> Figures:
        training = settings.training.model_copy(update={"preset": "fast"})
        with own_stack(settings.model_copy(update={"training": training})) as stack:
            own, shop = stack.settings, stack.settings.home / "shop"
            events = generate_shop(shop, self.shop).events
            first_events = int(events * self.first)
            log.info("replaying the first model's events", events=first_events)
            stack.job.start()
            run_command(own, "ingest", "items", str(shop))
            run_command(own, "ingest", "replay", str(shop), "--limit", str(first_events))
            stack.wait(lambda: archived_events(own) >= first_events, "the archive")
            log.info("training the first model")
            run_command(own, "train")
            with running_api(own, lambda api: api.model() is not None) as api:
                return self._measure(stack, api, shop)

    def _measure(self, stack: Stack, api: RunningApi, shop: Path) -> Figures:
        by_version: dict[str, int] = {}
        before, done = api.model(), Event()
        users = csv.read_csv(shop / "reviews.csv")["user_id"].unique().to_pylist()
        calls = [_list_call(user, by_version) for user in users]
        endless = list(islice(cycle(calls), int(self.rate * TIMEOUT_S)))
        with ThreadPoolExecutor(1) as pool:
            retrained = pool.submit(self._retrain, stack, api, done)
            result = open_loop(api.port, endless, self.rate, done)
            figures = retrained.result()
        return {
            "requests": len(result.latencies_ms),
            "errors": len(result.errors),
            "first_error": next(iter(result.errors), None),
            **{f"p{q}_ms": round(result.percentile(q), 1) for q in (50, 99)},
            "version_before": before,
            "version_after": api.model(),
            "lists_by_version": by_version,
            **figures,
        }

    def _retrain(self, stack: Stack, api: RunningApi, done: Event) -> Figures:
        """New events and a retraining, until another model is served."""
        settings, before, started = stack.settings, api.model(), time.monotonic()
        archived_before = archived_events(settings)
        replay = ("ingest", "replay", str(settings.home / "shop"), "--rate", str(self.events_per_s))
        try:
            with (
                _running_command(settings, *replay),
                _running_command(settings, "retrain", "--events", str(self.due)),
            ):
                due_after_s = _wait_training(settings, "training", "a training to be due")
                _wait_training(settings, "waiting", "the training to end")
                wait_for(lambda: api.model() != before, "the new model to be served", 60)
                served_after_s = time.monotonic() - started
                time.sleep(AFTER_S)
        finally:
            done.set()
        lag_s = stack.wait_caught_up()
        newest = max((settings.home / "challengers").glob("*/evaluation.json"))
        evaluation = orjson.loads(newest.read_bytes())
        return {
            "new_events": archived_events(settings) - archived_before,
            "due_after_s": round(due_after_s, 1),
            "served_after_s": round(served_after_s, 1),
            "stream_behind_s": round(lag_s, 1),
            "gate": evaluation["reason"],
            "questions": evaluation["questions"],
        }


def _list_call(user: str, by_version: dict[str, int]) -> RequestSpec:
    """A list request; its check counts the model versions."""

    def check(raw: bytes) -> str | None:
        body = orjson.loads(raw)
        version = str(body["model_version"])
        by_version[version] = by_version.get(version, 0) + 1
        complete = body["items"] and not body["degraded"]
        return None if complete else f"no list for {user}: {raw[:200]!r}"

    return RequestSpec(get(f"/recommendations?user_id={user}&n=10"), check)


def archived_events(settings: Settings) -> int:
    """Events that the archive query has passed."""
    with create_redis(settings.redis) as client:
        return archived(client, settings.redis.keys)


def _wait_training(settings: Settings, state: str, what: str) -> float:
    def reached() -> bool:
        status = TrainingStatus.read(settings.home)
        return status is not None and status.state == state

    return wait_for(reached, what, TIMEOUT_S)


def run_command(settings: Settings, *arguments: str) -> None:
    """Run an `afterclick` command to its end. Raises Unavailable if it fails."""
    with _running_command(settings, *arguments) as process:
        code = process.wait()
        if code:
            raise Unavailable(
                f"afterclick {' '.join(arguments)} failed with exit code {code}: {process.tail()}"
            )


@contextmanager
def _running_command(settings: Settings, *arguments: str) -> Iterator[Process]:
    """An `afterclick` command during a `with`."""
    process = afterclick_command(settings, f"bench-{arguments[0]}", *arguments)
    process.start()
    try:
        yield process
    finally:
        process.stop(60.0)
