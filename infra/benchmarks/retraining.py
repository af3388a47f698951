"""`afterclick bench retrain`: a model is trained, judged and swapped in while events and requests
go on.

Starts its own Kafka, Valkey, stream job and API. Most of a generated shop is replayed, and a first
model
trained. Then `afterclick retrain` waits for new events beside the rest of the replay and the
requests, until
what it trained serves.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path
from threading import Event
from typing import Any

import orjson
import pyarrow.csv as csv
import structlog

from afterclick.io.home import TrainingStatus
from afterclick.settings import Settings
from infra.benchmarks.load import Call, Outcome, get, open_loop
from infra.benchmarks.served import model_of
from infra.benchmarks.servers import environment, running_api, wait
from infra.benchmarks.stream_stack import Stack, own_stack
from infra.embedded.ports import LOOPBACK
from infra.stack.progress import archived
from ingest.generate import ShopConfig, generate_shop

log = structlog.get_logger()
PATIENCE_S = 900.0
AFTER_S = 3.0
"""How long lists of the new model are asked for."""


@dataclass(frozen=True)
class Bench:
    """What to run."""

    rate: float = 50.0
    """Requests per second."""
    events_per_s: float = 100.0
    """New events per second meanwhile."""
    due: int = 2_000
    """New events that make a training due."""
    shop: ShopConfig = field(default_factory=ShopConfig)
    first: float = 0.7
    """Share of the events that the first model is trained on."""


def run(bench: Bench, jars: Path) -> dict[str, Any]:
    """Run it all; the figures."""
    with own_stack(jars) as stack:
        settings, shop = stack.settings, stack.settings.home / "shop"
        events = generate_shop(shop, bench.shop).events
        begin = int(events * bench.first)
        log.info("bringing in what the first model learns from", events=begin)
        stack.job.start()
        _afterclick(settings, "ingest", "items", str(shop))
        _afterclick(settings, "ingest", "replay", str(shop), "--limit", str(begin))
        stack.wait(lambda: _archived(settings) >= begin, "the archive")
        log.info("training the first model")
        _afterclick(settings, "train")
        with running_api(settings, ready=lambda port: model_of(port) is not None) as (port, _):
            return _cycle(bench, stack, port, shop)


def _cycle(bench: Bench, stack: Stack, port: int, shop: Path) -> dict[str, Any]:
    seen: dict[str, int] = {}
    before, done = model_of(port), Event()
    users = csv.read_csv(shop / "reviews.csv")["user_id"].unique().to_pylist()
    calls = [_call(user, seen) for user in users]
    endless = list(islice(cycle(calls), int(bench.rate * PATIENCE_S)))
    with ThreadPoolExecutor(1) as pool:
        swap = pool.submit(_until_swapped, bench, stack, port, done)
        outcome = asyncio.run(open_loop(LOOPBACK, port, endless, bench.rate, done))
        facts = swap.result()
    return {
        "requests": len(outcome.latencies_ms),
        "errors": len(outcome.errors),
        "first_error": next(iter(outcome.errors), None),
        **_latencies(outcome),
        "version_before": before,
        "version_after": model_of(port),
        "lists_by_version": seen,
        **facts,
    }


def _until_swapped(bench: Bench, stack: Stack, port: int, done: Event) -> dict[str, Any]:
    """New events and a retraining beside one another, until another model serves."""
    settings, before, began = stack.settings, model_of(port), time.monotonic()
    old = _archived(settings)
    rate = ("--rate", str(bench.events_per_s))
    try:
        with (
            _running(settings, "ingest", "replay", str(settings.home / "shop"), *rate),
            _running(settings, "retrain", "--events", str(bench.due)),
        ):
            due = wait(
                lambda: _training(settings) == "training", "a training to be due", PATIENCE_S
            )
            wait(lambda: _training(settings) == "waiting", "the training to end", PATIENCE_S)
            wait(lambda: model_of(port) != before, "the new model to serve", 60)
            seconds = time.monotonic() - began
            time.sleep(AFTER_S)
    finally:
        done.set()
    caught_up = stack.wait_caught_up()
    verdict = orjson.loads(
        max((settings.home / "challengers").glob("*/evaluation.json")).read_bytes()
    )
    return {
        "new_events": _archived(settings) - old,
        "due_after_s": round(due, 1),
        "served_after_s": round(seconds, 1),
        "stream_behind_s": round(caught_up, 1),
        "gate": verdict["reason"],
        "questions": verdict["questions"],
    }


def _call(user: str, seen: dict[str, int]) -> Call:
    def check(raw: bytes) -> str | None:
        answer = orjson.loads(raw)
        version = str(answer["model_version"])
        seen[version] = seen.get(version, 0) + 1
        return (
            None
            if answer["items"] and not answer["degraded"]
            else f"no list for {user}: {raw[:200]!r}"
        )

    return Call(get(f"/recommendations?user_id={user}&n=10", LOOPBACK), check)


def _latencies(outcome: Outcome) -> dict[str, float]:
    return {f"p{q}_ms": round(outcome.percentile(q), 1) for q in (50, 99)}


def _archived(settings: Settings) -> int:
    return archived(settings.home / "checkpoints" / "archive")


def _training(settings: Settings) -> str | None:
    status = TrainingStatus.read(settings.home)
    return status.state if status else None


def _afterclick(settings: Settings, *words: str) -> None:
    """Run a command to its end; what it says goes to this one's standard error."""
    subprocess.run(
        [sys.executable, "-m", "infra", *words],
        env=environment(settings),
        stdout=sys.stderr,
        check=True,
    )


@contextmanager
def _running(settings: Settings, *words: str) -> Iterator[None]:
    """A command as a process, ended with the `with`."""
    env = environment(settings)
    process = subprocess.Popen([sys.executable, "-m", "infra", *words], env=env, stdout=sys.stderr)
    try:
        yield
    finally:
        process.terminate()
        process.wait(60)
