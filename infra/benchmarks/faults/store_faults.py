"""Faults of Redis: killed, truncated, flushed, full. The controls rely on Spark's checkpoint."""

from __future__ import annotations

from collections.abc import Callable

from afterclick.settings import Settings
from infra.benchmarks.faults.fault_case import (
    NO_FENCE,
    SMALL_BATCHES,
    FaultCase,
    FaultLoad,
    events,
    produce,
)
from infra.benchmarks.harness import Stack, own_stack
from streaming.proof.reconcile import Reconciliation, reconcile

EVENTS_AFTER = 1000
"""Events after a fault: only new events reveal it."""


def redis_killed(load: FaultLoad, settings: Settings) -> FaultCase:
    """SIGKILL of Redis under load. The control has neither append-only file nor fence."""
    with own_stack(settings, SMALL_BATCHES) as stack:
        recovery_s = _kill_redis(stack, load, load.server_kills, while_applying=True)
        report = reconcile(stack.settings)
    with own_stack(settings, SMALL_BATCHES | NO_FENCE) as stack:
        with stack.client() as client:
            client.config_set("appendonly", "no")
        _kill_redis(stack, load, 1, while_applying=False)
        control = reconcile(stack.settings)
    return FaultCase.of("redis killed", load.server_kills, report, recovery_s, control)


def _kill_redis(stack: Stack, load: FaultLoad, kills: int, *, while_applying: bool) -> float:
    """Kill Redis within, or after, each part of the log; seconds of the last recovery."""
    stack.job.start()
    part = load.events // (kills + 1)
    for n in range(kills):
        produce(stack.settings, events(part, n))
        _wait_lag_below(stack, part if while_applying else 1)
        stack.valkey.kill()
        stack.valkey.start()
    produce(stack.settings, events(part, kills))
    return stack.wait_caught_up()


def _wait_lag_below(stack: Stack, limit: int) -> None:
    stack.wait(lambda: 0 <= stack.lag() < limit, "a part of the log to be applied")


def redis_tail_cut(load: FaultLoad, settings: Settings) -> FaultCase:
    """Redis loses a third of its append-only file while the job runs."""
    return _state_lost("redis tail cut", load, settings, _cut_tail)


def redis_flushed(load: FaultLoad, settings: Settings) -> FaultCase:
    """FLUSHALL while the job runs."""
    return _state_lost("redis flushed", load, settings, _flush)


def _state_lost(
    name: str, load: FaultLoad, settings: Settings, lose: Callable[[Stack], None]
) -> FaultCase:
    outcomes: list[tuple[Reconciliation, float]] = []
    for env in ({}, NO_FENCE):
        with own_stack(settings, SMALL_BATCHES | env) as stack:
            produce(stack.settings, events(load.events, 0))
            stack.job.start()
            stack.wait_caught_up()
            lose(stack)
            produce(stack.settings, events(EVENTS_AFTER, 1))
            recovery_s = stack.wait_caught_up()
            outcomes.append((reconcile(stack.settings), recovery_s))
    (report, recovery_s), (control, _) = outcomes
    return FaultCase.of(name, 1, report, recovery_s, control)


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


def redis_full(load: FaultLoad, settings: Settings) -> FaultCase:
    """Redis runs out of memory under `noeviction` for a while. The control evicts keys."""
    with own_stack(settings, SMALL_BATCHES) as stack, stack.client() as client:
        _fill(stack, load.events)
        client.config_set("maxmemory", int(client.info("memory")["used_memory"]))
        produce(stack.settings, events(load.events, 1))
        stack.wait(lambda: "query failed" in stack.job.printed(), "the job to meet a full Redis")
        client.config_set("maxmemory", 0)
        recovery_s = stack.wait_caught_up()
        report = reconcile(stack.settings)
    with own_stack(settings, SMALL_BATCHES) as stack, stack.client() as client:
        _fill(stack, load.events)
        client.config_set("maxmemory-policy", "allkeys-random")
        client.config_set("maxmemory", int(client.info("memory")["used_memory"]))
        produce(stack.settings, events(load.events, 1))
        stack.wait(lambda: client.info("stats")["evicted_keys"] > 0, "Redis to evict keys")
        client.config_set("maxmemory", 0)
        stack.wait_caught_up()
        control = reconcile(stack.settings)
    return FaultCase.of("redis full", 0, report, recovery_s, control)


def _fill(stack: Stack, count: int) -> None:
    produce(stack.settings, events(count, 0))
    stack.job.start()
    stack.wait_caught_up()
