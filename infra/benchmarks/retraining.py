"""`afterclick bench retrain`: a model is trained, evaluated and swapped in under load, while events
arrive.

Starts its own Kafka, Valkey, stream job and API. Replays most of a generated shop and trains a
first model. Then `afterclick retrain` waits for new events from the rest of the replay, until its
model is served.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path
from threading import Event

import orjson
import pyarrow.csv as csv
import structlog

from afterclick.errors import Unavailable
from afterclick.io.home import TrainingStatus
from afterclick.settings import Settings
from infra.benchmarks.harness import (
    Benchmark,
    Figures,
    RunningApi,
    Stack,
    own_stack,
    running_api,
    wait_for,
)
from infra.benchmarks.load import Call, get, open_loop
from infra.embedded.process import afterclick_command
from infra.stack.up import archived
from ingest.generate import ShopConfig, generate_shop

log = structlog.get_logger()
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
            _run_command(own, "ingest", "items", str(shop))
            _run_command(own, "ingest", "replay", str(shop), "--limit", str(first_events))
            stack.wait(lambda: _archived(own) >= first_events, "the archive")
            log.info("training the first model")
            _run_command(own, "train")
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
        archived_before = _archived(settings)
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
            "new_events": _archived(settings) - archived_before,
            "due_after_s": round(due_after_s, 1),
            "served_after_s": round(served_after_s, 1),
            "stream_behind_s": round(lag_s, 1),
            "gate": evaluation["reason"],
            "questions": evaluation["questions"],
        }


def _list_call(user: str, by_version: dict[str, int]) -> Call:
    """A list request; its check counts the model versions."""

    def check(raw: bytes) -> str | None:
        body = orjson.loads(raw)
        version = str(body["model_version"])
        by_version[version] = by_version.get(version, 0) + 1
        complete = body["items"] and not body["degraded"]
        return None if complete else f"no list for {user}: {raw[:200]!r}"

    return Call(get(f"/recommendations?user_id={user}&n=10"), check)


def _archived(settings: Settings) -> int:
    return archived(settings.home / "checkpoints" / "archive")


def _wait_training(settings: Settings, state: str, what: str) -> float:
    def reached() -> bool:
        status = TrainingStatus.read(settings.home)
        return status is not None and status.state == state

    return wait_for(reached, what, TIMEOUT_S)


def _run_command(settings: Settings, *arguments: str) -> None:
    """Run an `afterclick` command to its end. Raises Unavailable if it fails."""
    with _running_command(settings, *arguments) as wait:
        code = wait()
    if code:
        raise Unavailable(f"afterclick {' '.join(arguments)} failed with exit code {code}")


@contextmanager
def _running_command(settings: Settings, *arguments: str) -> Iterator[Callable[[], int]]:
    """An `afterclick` command during a `with`; yields a function that waits for its exit code."""
    process = afterclick_command(settings, f"bench-{arguments[0]}", *arguments)
    process.start()
    try:
        yield process.wait
    finally:
        process.stop(60.0)
