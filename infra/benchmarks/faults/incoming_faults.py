"""Faults of the input: clients that resend, malformed records."""

from __future__ import annotations

from afterclick.events import Action
from afterclick.io.client import Client
from afterclick.settings import Settings
from infra.benchmarks.faults.fault_case import (
    MALFORMED,
    SMALL_BATCHES,
    FaultCase,
    FaultLoad,
    Row,
    events,
    lost_events,
    produce,
)
from infra.benchmarks.harness import own_stack, running_api
from infra.embedded.server import LOOPBACK
from streaming.proof.dead_letters import read_dead_letters
from streaming.proof.reconcile import reconcile

TIMES = 3
MAX_RESENT = 300
"""Events sent three times by HTTP."""


def resent(load: FaultLoad, settings: Settings) -> FaultCase:
    """Each event is sent three times by HTTP. In the control each attempt has its own event id."""
    count = min(load.events, MAX_RESENT)
    with own_stack(settings, SMALL_BATCHES) as stack, running_api(stack.settings) as api:
        stack.job.start()
        _send(api.port, "kept", count, with_id=True)
        recovery_s = stack.wait_caught_up()
        report = reconcile(stack.settings)
        _send(api.port, "control", count, with_id=False)
        stack.wait_caught_up()
        both = reconcile(stack.settings)
    counted = both.counted_in_state - report.counted_in_state
    return FaultCase(
        name="resent by HTTP",
        kills=0,
        events=count,
        lost=max(count - report.counted_in_state, 0) + lost_events(report),
        double=max(report.counted_in_state - count, 0),
        control_differs=counted > count,
        recovery_s=round(recovery_s, 1),
        note=f"{report.duplicates} resent events refused; control: {count} events counted "
        f"{counted} times",
    )


def _send(port: int, name: str, count: int, *, with_id: bool) -> None:
    with Client(f"http://{LOOPBACK}:{port}", timeout_s=10) as client:
        for n in range(count):
            event_id = f"{name}-{n}" if with_id else None
            for _ in range(TIMES):
                client.feedback(
                    f"{name}-{n % 50}", f"item-{n % 20}", Action.LIKE, event_id=event_id
                )


def poison(load: FaultLoad, settings: Settings) -> FaultCase:
    """Ten kinds of malformed records among events. The control has no dead-letter topic."""
    rows = list(_with_malformed(load.events))
    malformed = sum(key == "poison" for key, _ in rows)
    with own_stack(settings, SMALL_BATCHES) as stack:
        stack.job.start()
        pid = stack.job.pid
        produce(stack.settings, rows)
        recovery_s = stack.wait_caught_up()
        report = reconcile(stack.settings)
        dead = sum(1 for _ in read_dead_letters(stack.settings.kafka))
        unbroken = stack.job.pid == pid and "query failed" not in stack.job.printed()
    lag = _lag_without_dead_letters(rows, settings)
    return FaultCase(
        name="poison",
        kills=0,
        events=report.events,
        lost=abs(malformed - dead) + lost_events(report) if unbroken else report.events,
        double=report.double,
        control_differs=lag > 0,
        recovery_s=round(recovery_s, 1),
        note=f"{dead} of {malformed} in the dead-letter topic; control: the job fails, "
        f"{lag} events behind",
    )


def _with_malformed(count: int) -> list[Row]:
    """Events with a malformed record after every hundredth."""
    rows: list[Row] = []
    for n, row in enumerate(events(count, 0)):
        rows.append(row)
        if n % 100 == 0:
            rows.append(("poison", MALFORMED[n // 100 % len(MALFORMED)]))
    return rows


def _lag_without_dead_letters(rows: list[Row], settings: Settings) -> int:
    """Records not applied after two failures of the job."""
    env = SMALL_BATCHES | {"AFTERCLICK_STREAM__FAULT": "no-dead-letters"}
    with own_stack(settings, env) as stack:
        produce(stack.settings, rows)
        stack.job.start()
        stack.wait(lambda: stack.job.printed().count("query failed") > 1, "the job to fail twice")
        return stack.lag()
