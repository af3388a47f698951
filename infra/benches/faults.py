"""`afterclick bench faults`: kill, cut, flood and resend, then prove the state against the log.

Each case starts its own Kafka and Valkey. `lost` and `double` are events that the state counts too seldom or
too often, per item; a case's control is the same fault without the protection, and has to differ.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import structlog
from confluent_kafka import Producer

from afterclick.events import Interaction, encode, interaction_event
from afterclick.settings import Settings
from afterclick.topics import PARTITIONER
from infra.benches.stream_stack import Stack, own_stack
from ingest.bench import producer_events_per_s
from streaming.positions import read_log
from streaming.reconcile import Report, reconcile

log = structlog.get_logger()

POISON = (
    b"",
    b"{",
    b"null",
    b"[1, 2]",
    b'"text"',
    b"\xff\xfe",
    b'{"id": "\xff"}',
    b'{"specversion":"1.0","type":"afterclick.review.v1"}',
    b'{"specversion":"1.0","rating":NaN}',
    b"[" * 10_000,
)
NO_FENCE = {"AFTERCLICK_STREAM__FENCE": "false"}


@dataclass(frozen=True)
class Bench:
    """What to run. `kills` per case, of a log of `events`."""

    events: int = 20_000
    kills: int = 3
    only: tuple[str, ...] = ()


@dataclass(frozen=True)
class Case:
    """What a fault did."""

    name: str
    kills: int
    events: int
    lost: int
    double: int
    control_differs: bool | None
    """Whether the same fault without the protection gave a wrong state; None where there is no control."""
    recovery_s: float


def run(bench: Bench, jars: Path) -> dict[str, Any]:
    """Run the cases; one figure per case."""
    cases = []
    for case in CASES:
        if not bench.only or case.__name__ in bench.only:
            found = case(bench, jars)
            log.info("case", **asdict(found))
            cases.append(asdict(found))
    return {"cases": cases, "lost": sum(c["lost"] for c in cases), "double": sum(c["double"] for c in cases)}


def stream_killed(bench: Bench, jars: Path) -> Case:
    """kill -9 of the job: before its first batch, between the two steps, and at random moments."""
    kills, report, recovery = _kill_stream(bench, jars, {})
    _, control, _ = _kill_stream(replace(bench, kills=2), jars, NO_FENCE)
    return _case("stream killed", kills, report, control.differences > 0, recovery)


def _kill_stream(bench: Bench, jars: Path, env: dict[str, str]) -> tuple[int, Report, float]:
    draw = random.Random(1)
    with own_stack(jars, **env) as stack:
        producer_events_per_s(stack.settings, bench.events, bench.events // 3, 500)
        for n in range(bench.kills):
            failures = stack.job.printed().count("query failed")
            fault = f"between-steps:{2 + n}" if n % 3 != 2 else ""
            stack.job.start(**({"AFTERCLICK_STREAM__FAULT": fault} if fault else {}))
            if fault:
                stack.wait(
                    lambda failures=failures: stack.job.printed().count("query failed") > failures,  # type: ignore[misc]
                    "a worker to die between the steps",
                )
            else:
                time.sleep(draw.uniform(1, 15))
            stack.job.kill()
        stack.job.start()
        recovery = stack.wait_caught_up()
        return bench.kills, reconcile(stack.settings), recovery


def redis_killed(bench: Bench, jars: Path) -> Case:
    """kill -9 of Redis while events are applied. The control empties it and starts at the end of the log."""
    with own_stack(jars) as stack:
        _fill_slowly(stack, bench, stack.valkey.kill, stack.valkey.start)
        recovery = stack.wait_caught_up()
        report = reconcile(stack.settings)
        stack.job.stop()
        return _case("redis killed", bench.kills, report, _skips_to_the_end(stack), recovery)


def broker_killed(bench: Bench, jars: Path) -> Case:
    """kill -9 of Kafka while events are applied."""
    with own_stack(jars) as stack:
        _fill_slowly(stack, bench, stack.kafka.kill, stack.kafka.start)
        recovery = stack.wait_caught_up()
        return _case("broker killed", bench.kills, reconcile(stack.settings), None, recovery)


def _fill_slowly(stack: Stack, bench: Bench, kill: Callable[[], None], start: Callable[[], None]) -> None:
    """Produce in parts, and kill a server after each part is on its way through the job."""
    stack.job.start()
    part = max(bench.events // (bench.kills + 1), 1)
    for n in range(bench.kills + 1):
        _produce(stack.settings, _events(part, n))
        if n == 0:
            stack.wait_caught_up()
        if n < bench.kills:
            kill()
            start()


def redis_tail_cut(bench: Bench, jars: Path) -> Case:
    """Redis loses its newest writes (its append-only file is cut), while the job runs on."""
    with own_stack(jars) as stack:
        _produce(stack.settings, _events(bench.events, 0))
        stack.job.start()
        stack.wait_caught_up()
        stack.valkey.kill()
        tails = (stack.valkey.folder / "data").rglob("*.incr.aof")
        newest = max(tails, key=lambda path: path.stat().st_mtime)
        with newest.open("r+b") as file:
            file.truncate(newest.stat().st_size * 2 // 3)
        stack.valkey.start()
        _produce(stack.settings, _events(1000, 1))
        recovery = stack.wait_caught_up()
        report = reconcile(stack.settings)
        stack.job.stop()
        return _case("redis tail cut", 1, report, _skips_to_the_end(stack), recovery)


def redis_flushed(bench: Bench, jars: Path) -> Case:
    """FLUSHALL under a running job."""
    with own_stack(jars) as stack:
        _produce(stack.settings, _events(bench.events, 0))
        stack.job.start()
        stack.wait_caught_up()
        with stack.client() as client:
            client.flushall()
        _produce(stack.settings, _events(1000, 1))
        recovery = stack.wait_caught_up()
        report = reconcile(stack.settings)
        stack.job.stop()
        return _case("redis flushed", 1, report, _skips_to_the_end(stack), recovery)


def resent_and_poison(bench: Bench, jars: Path) -> Case:
    """Every event sent three times, ten kinds of poison between them. The control forgets the ledger."""
    with own_stack(jars) as stack:
        stack.job.start()
        events = list(_events(bench.events // 3, 0))
        for again in range(3):
            _produce(stack.settings, events)
            _produce(stack.settings, [("nobody", value) for value in POISON])
            if again == 0:
                stack.wait_caught_up()
        recovery = stack.wait_caught_up()
        report = reconcile(stack.settings)
        dead = read_log(stack.settings.kafka)
        log.info("poison", in_the_log=report.poison, partitions=len(dead))
        with stack.client() as client:
            for key in client.scan_iter("{u:*}:ledger:*", count=5000):
                client.unlink(key)
        _produce(stack.settings, events)
        stack.wait_caught_up()
        control = reconcile(stack.settings)
        return _case("resent thrice, poison", 0, report, control.differences > 0, recovery)


CASES: tuple[Callable[[Bench, Path], Case], ...] = (
    stream_killed,
    redis_killed,
    broker_killed,
    redis_tail_cut,
    redis_flushed,
    resent_and_poison,
)


def _skips_to_the_end(stack: Stack) -> bool:
    """The control of lost state: a job that trusts its own memory of where it was. Whether that differs."""
    with stack.client() as client:
        client.flushall()
        for (topic, partition), span in read_log(stack.settings.kafka).items():
            client.set(stack.settings.redis.keys.position(topic, partition), span.end - 1)
    return reconcile(stack.settings).differences > 0


def _case(name: str, kills: int, report: Report, control: bool | None, recovery_s: float) -> Case:
    return Case(
        name=name,
        kills=kills,
        events=report.events,
        lost=report.lost + (1 if report.differences and not report.lost + report.double else 0),
        double=report.double,
        control_differs=control,
        recovery_s=round(recovery_s, 1),
    )


def _events(number: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """Clicks and likes of many users on few items."""
    draw = random.Random(seed)
    for n in range(number):
        user = f"user-{draw.randrange(number // 3 + 1)}"
        interaction = Interaction.model_validate(
            {
                "user_id": user,
                "item_id": f"item-{draw.randrange(500)}",
                "action": draw.choice(("click", "like", "skip")),
            }
        )
        moment = datetime.fromtimestamp(1_700_000_000 + draw.randrange(10**6), UTC)
        event = interaction_event(interaction, event_id=f"{seed}-{n}", time=moment, source="bench")
        yield user, encode(event)


def _produce(settings: Settings, records: Iterable[tuple[str, bytes]]) -> None:
    producer = Producer(
        {
            "bootstrap.servers": settings.kafka.bootstrap,
            "enable.idempotence": True,
            "partitioner": PARTITIONER,
            "queue.buffering.max.messages": 1_000_000,
            "log_level": 0,
        }
    )
    for key, value in records:
        producer.produce(settings.kafka.topics.feedback, key=key, value=value)
        producer.poll(0)
    producer.flush(120)
