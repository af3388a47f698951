"""Faults of what comes in: clients that send again, records that nobody can read."""

from __future__ import annotations

from pathlib import Path

from afterclick.events import Action
from afterclick.io.client import Client
from infra.benchmarks.faults.fault_case import QUICK, Bench, Case, lost
from infra.benchmarks.faults.fault_events import POISON, Row, events, produce
from infra.benchmarks.servers import running_api
from infra.benchmarks.stream_stack import own_stack
from infra.embedded.ports import LOOPBACK
from streaming.proof.dead_letters import read_dead_letters
from streaming.proof.reconcile import reconcile

TIMES = 3
RESENT = 300
"""Client events that are sent three times; each costs three requests."""


def resent(bench: Bench, jars: Path) -> Case:
    """Each client event is sent three times by HTTP retry. The control's give each try an id of its own."""
    number = min(bench.events, RESENT)
    with own_stack(jars, **QUICK) as stack, running_api(stack.settings) as (port, _):
        stack.job.start()
        _post(port, "kept", number, with_id=True)
        recovery = stack.wait_caught_up()
        report = reconcile(stack.settings)
        _post(port, "control", number, with_id=False)
        stack.wait_caught_up()
        both = reconcile(stack.settings)
    counted = both.counted_in_state - report.counted_in_state
    return Case(
        name="resent by HTTP",
        kills=0,
        events=number,
        lost=max(number - report.counted_in_state, 0) + lost(report),
        double=max(report.counted_in_state - number, 0),
        control_differs=counted > number,
        recovery_s=round(recovery, 1),
        note=f"{report.duplicates} resent events refused; control: {number} events counted {counted} times",
    )


def _post(port: int, name: str, number: int, with_id: bool) -> None:
    with Client(f"http://{LOOPBACK}:{port}", timeout_s=10) as client:
        for n in range(number):
            event_id = f"{name}-{n}" if with_id else None
            for _ in range(TIMES):
                client.feedback(
                    f"{name}-{n % 50}", f"item-{n % 20}", Action.LIKE, event_id=event_id
                )


def poison(bench: Bench, jars: Path) -> Case:
    """Ten kinds of records that are no events, between events. The control has no dead-letter path."""
    rows = list(_with_poison(bench.events))
    bad = sum(key == "poison" for key, _ in rows)
    with own_stack(jars, **QUICK) as stack:
        stack.job.start()
        first = stack.job.pid
        produce(stack.settings, rows)
        recovery = stack.wait_caught_up()
        report = reconcile(stack.settings)
        dead = sum(1 for _ in read_dead_letters(stack.settings.kafka))
        unbroken = stack.job.pid == first and "query failed" not in stack.job.printed()
    differs, behind = _without_dead_letters(rows, jars)
    return Case(
        name="poison",
        kills=0,
        events=report.events,
        lost=abs(bad - dead) + lost(report) if unbroken else report.events,
        double=report.double,
        control_differs=differs,
        recovery_s=round(recovery, 1),
        note=f"{dead} of {bad} in the dead-letter topic; control: the job fails, {behind} events behind",
    )


def _with_poison(number: int) -> list[Row]:
    """Events with a poison record after every hundredth."""
    rows: list[Row] = []
    for n, row in enumerate(events(number, 0)):
        rows.append(row)
        if n % 100 == 0:
            rows.append(("poison", POISON[n // 100 % len(POISON)]))
    return rows


def _without_dead_letters(rows: list[Row], jars: Path) -> tuple[bool, int]:
    """Whether the job fails over and over and stays behind, and how far."""
    with own_stack(jars, AFTERCLICK_STREAM__FAULT="no-dead-letters", **QUICK) as stack:
        produce(stack.settings, rows)
        stack.job.start()
        stack.wait(lambda: stack.job.printed().count("query failed") > 1, "the job to fail twice")
        behind = stack.behind()
        return behind > 0, behind
