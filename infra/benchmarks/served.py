"""A served shop of a bench's own: Kafka, Valkey, a large catalogue and one API process.

writes  topic  state-changes
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx2
import numpy as np
import psutil
import redis
from confluent_kafka import Producer
from prometheus_client.parser import text_string_to_metric_families

from afterclick.events import Action
from afterclick.settings import Settings
from afterclick.state import Effect, HistoryEntry, StateChange
from infra.benchmarks import synthetic
from infra.benchmarks.servers import API, running_api
from infra.benchmarks.synthetic import Shop
from infra.embedded.ports import LOOPBACK


def cpu_s(process: psutil.Process) -> float:
    """Processor seconds that a process has used."""
    times = process.cpu_times()
    return float(times.user + times.system)


@contextmanager
def served(
    settings: Settings, command: tuple[str, ...] = API, described: int = 0
) -> Iterator[tuple[int, psutil.Process]]:
    """One server process, with its model and its trends loaded, and a catalogue of so many items in both.

    What it loads at its start, it loads before it is asked.
    """

    def ready(port: int) -> bool:
        health = _health(port)
        parts = _parts(health)
        known = min(int(parts.get(name, 0)) for name in ("catalogue", "items"))
        return health.get("status") == "ready" and bool(parts.get("model")) and known >= described

    with running_api(settings, command, ready) as (port, pid):
        yield port, psutil.Process(pid)


def model_of(port: int) -> str | None:
    """The version of the model that serves; None where there is none yet."""
    return _parts(_health(port)).get("model") or None


def metric(port: int, name: str, **labels: str) -> int:
    """A counter or gauge of an API, summed over what the labels leave open."""
    text = httpx2.get(f"http://{LOOPBACK}:{port}/metrics", timeout=30).text
    samples = (
        sample for family in text_string_to_metric_families(text) for sample in family.samples
    )
    found = (s.value for s in samples if s.name == name and labels.items() <= s.labels.items())
    return round(sum(found))


def remembered_lists(port: int) -> int:
    """How many lists an API has given again as they were."""
    return metric(port, "afterclick_cached_lists_total")


def reduced_lists(port: int) -> int:
    """How many lists an API has made from fewer candidates, because requests queued up."""
    return metric(port, "afterclick_reduced_lists_total")


def _health(port: int) -> dict[str, Any]:
    """What an API, or the plain version, says of itself; nothing while it does not answer."""
    try:
        body: dict[str, Any] = httpx2.get(
            f"http://{LOOPBACK}:{port}/health/ready", timeout=5
        ).json()
    except (httpx2.HTTPError, ValueError):
        return {}
    return body


def _parts(health: dict[str, Any]) -> dict[str, Any]:
    return dict(health.get("parts", health))


@contextmanager
def changes(settings: Settings, shop: Shop, per_s: float) -> Iterator[None]:
    """What the users do while the bench asks, at a steady rate: their histories and the trends change."""
    stop = threading.Event()
    thread = threading.Thread(target=_send_changes, args=(settings, shop, per_s, stop), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(5)


def _send_changes(settings: Settings, shop: Shop, per_s: float, stop: threading.Event) -> None:
    producer = Producer({"bootstrap.servers": settings.kafka.bootstrap, "linger.ms": 5})
    rng, offset = np.random.default_rng(11), synthetic.POSITION
    with redis.Redis.from_url(settings.redis.url) as client:
        while per_s and not stop.wait(1 / per_s):
            offset += 1
            user, item = (
                str(rng.choice(shop.users)),
                shop.items[int(synthetic.draw(rng, shop, 1)[0])],
            )
            key, now = settings.redis.keys.history(user), int(time.time() * 1000)
            client.zadd(
                key, {HistoryEntry(f"c{offset}", item, Action.LIKE, None, now).member(): now}
            )
            client.zremrangebyrank(key, 0, -synthetic.HISTORY - 1)
            client.set(settings.redis.keys.applied_offset(settings.kafka.topics.reviews, 0), offset)
            tell(producer, settings, user, item, offset)
    producer.flush(5)


def tell(producer: Producer, settings: Settings, user_id: str, item_id: str, offset: int) -> None:
    """Say on `state-changes` that a user's like stands at an offset of the first partition of `reviews`."""
    now = time.time() * 1000
    change = StateChange(
        user_id=user_id,
        item_id=item_id,
        action=Action.LIKE,
        event_id=f"c{offset}",
        time_ms=int(now),
        topic=settings.kafka.topics.reviews,
        partition=0,
        offset=offset,
        effect=Effect.APPLIED,
        weight=2.0,
        first_user_item=True,
        log_ms=now,
        read_ms=now,
        applied_ms=now,
    )
    producer.produce(
        settings.kafka.topics.state_changes, change.encode(), change.user_id, partition=0
    )
    producer.poll(0)
