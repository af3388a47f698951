"""Faults of Redis: killed, cut, emptied, full. The controls trust Spark's checkpoint instead."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from infra.benchmarks.faults.fault_case import NO_FENCE, QUICK, Bench, Case, judged
from infra.benchmarks.faults.fault_events import events, produce
from infra.benchmarks.stream_stack import Stack, own_stack
from streaming.proof.reconcile import Reconciliation, reconcile

MORE = 1000
"""Events that come after a fault: without them nothing would notice it."""


def redis_killed(bench: Bench, jars: Path) -> Case:
    """kill -9 of Redis while events are applied. The control has neither append-only file nor fence."""
    with own_stack(jars, **QUICK) as stack:
        recovery = _kill_redis(stack, bench, bench.server_kills, within_part=True)
        report = reconcile(stack.settings)
    with own_stack(jars, **QUICK, **NO_FENCE) as stack:
        with stack.client() as client:
            client.config_set("appendonly", "no")
        _kill_redis(stack, bench, 1, within_part=False)
        control = reconcile(stack.settings)
    return judged("redis killed", bench.server_kills, report, recovery, control)


def _kill_redis(stack: Stack, bench: Bench, kills: int, within_part: bool) -> float:
    """Kill Redis again and again: each time within a part of the log, or after it."""
    stack.job.start()
    part = bench.events // (kills + 1)
    for n in range(kills + 1):
        produce(stack.settings, events(part, n))
        if n == kills:
            break
        left = part if within_part else 1
        stack.wait(lambda left=left: 0 <= stack.behind() < left, "a part of the log")  # type: ignore[misc]
        stack.valkey.kill()
        stack.valkey.start()
    return stack.wait_caught_up()


def redis_tail_cut(bench: Bench, jars: Path) -> Case:
    """Redis loses a third of its append-only file, while the job runs on."""
    return _state_lost("redis tail cut", bench, jars, _cut_tail)


def redis_flushed(bench: Bench, jars: Path) -> Case:
    """FLUSHALL under a running job."""
    return _state_lost("redis flushed", bench, jars, _flush)


def _state_lost(name: str, bench: Bench, jars: Path, lose: Callable[[Stack], None]) -> Case:
    found: list[tuple[Reconciliation, float]] = []
    for env in ({}, NO_FENCE):
        with own_stack(jars, **QUICK, **env) as stack:
            produce(stack.settings, events(bench.events, 0))
            stack.job.start()
            stack.wait_caught_up()
            lose(stack)
            produce(stack.settings, events(MORE, 1))
            recovery = stack.wait_caught_up()
            found.append((reconcile(stack.settings), recovery))
    (report, recovery), (control, _) = found
    return judged(name, 1, report, recovery, control)


def _cut_tail(stack: Stack) -> None:
    stack.valkey.kill()
    tails = (stack.valkey.folder / "data").rglob("*.incr.aof")
    newest = max(tails, key=lambda path: path.stat().st_mtime)
    with newest.open("r+b") as file:
        file.truncate(newest.stat().st_size * 2 // 3)
    stack.valkey.start()


def _flush(stack: Stack) -> None:
    with stack.client() as client:
        client.flushall()


def redis_full(bench: Bench, jars: Path) -> Case:
    """Redis is out of memory under `noeviction` until room is made. The control lets it evict keys."""
    with own_stack(jars, **QUICK) as stack, stack.client() as client:
        _fill(stack, bench.events)
        client.config_set("maxmemory", int(client.info("memory")["used_memory"]))
        produce(stack.settings, events(bench.events, 1))
        stack.wait(lambda: "query failed" in stack.job.printed(), "the job to meet a full Redis")
        client.config_set("maxmemory", 0)
        recovery = stack.wait_caught_up()
        report = reconcile(stack.settings)
    with own_stack(jars, **QUICK) as stack, stack.client() as client:
        _fill(stack, bench.events)
        client.config_set("maxmemory-policy", "allkeys-random")
        client.config_set("maxmemory", int(client.info("memory")["used_memory"]))
        produce(stack.settings, events(bench.events, 1))
        stack.wait(lambda: client.info("stats")["evicted_keys"] > 0, "Redis to evict")
        client.config_set("maxmemory", 0)
        stack.wait_caught_up()
        control = reconcile(stack.settings)
    return judged("redis full", 0, report, recovery, control)


def _fill(stack: Stack, number: int) -> None:
    produce(stack.settings, events(number, 0))
    stack.job.start()
    stack.wait_caught_up()
