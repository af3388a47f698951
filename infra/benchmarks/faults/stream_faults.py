"""Faults of the stream job (killed, without its checkpoint, started twice) and of its input
(clients that resend, malformed records).
"""

from __future__ import annotations

import random
import shutil

from afterclick.errors import StateConflict
from afterclick.events import Action
from afterclick.io.client import Client
from afterclick.settings import Settings
from infra.benchmarks.faults.fault_case import (
    MALFORMED,
    NO_FENCE,
    REAL_TIME,
    SMALL_BATCHES,
    FaultCase,
    FaultLoad,
    Row,
    SteadyProducer,
    events,
    lost_events,
    produce,
)
from infra.benchmarks.harness import Stack, StreamJob, own_stack, running_api
from infra.embedded.server import LOOPBACK
from streaming.apply import CHUNK
from streaming.proof.dead_letters import read_dead_letters
from streaming.proof.reconcile import Reconciliation, reconcile

_TOOK_OVER = "real-time query took over"


def stream_killed(load: FaultLoad, settings: Settings) -> FaultCase:
    """SIGKILL of the job: before the first batch, between the steps, at random times."""
    rng = random.Random(1)
    part = load.events // load.job_kills
    with own_stack(settings, SMALL_BATCHES) as stack:
        for n in range(load.job_kills):
            produce(stack.settings, events(part, n))
            if n % 3 == 0:
                stack.job.start()
                stack.wait(stack.job_runs, "the job to start")
            elif n % 3 == 1:
                _kill_between_steps(stack, chunk=2 if part >= 16 * CHUNK else 1)
            else:
                stack.job.start()
                _wait_lag(stack, rng.randrange(part))
            stack.job.kill()
        stack.job.start()
        recovery_s = stack.wait_caught_up()
        report = reconcile(stack.settings)
    control = _killed_without_fence(settings)
    return FaultCase.of("stream killed", load.job_kills, report, recovery_s, control)


def _killed_without_fence(settings: Settings) -> Reconciliation:
    """One kill between the steps of a second chunk: the first chunk is counted again."""
    with own_stack(settings, SMALL_BATCHES | NO_FENCE) as stack:
        produce(stack.settings, events(32 * CHUNK, 0))
        _kill_between_steps(stack, chunk=2)
        stack.job.kill()
        stack.job.start()
        stack.wait_caught_up()
        return reconcile(stack.settings)


def _wait_lag(stack: Stack, max_lag: int) -> None:
    stack.wait(lambda: 0 <= stack.lag() <= max_lag, "a part of the log to be applied")


def _kill_between_steps(stack: Stack, chunk: int) -> None:
    """Start the job, whose workers die between the steps of their n-th chunk; wait for one."""
    stack.job.start(AFTERCLICK_STREAM__FAULT=f"between-steps:{chunk}")
    stack.wait(
        lambda: "query failed" in stack.job.printed_since_start(),
        "a worker to die between the steps",
    )


def realtime_killed(load: FaultLoad, settings: Settings) -> FaultCase:
    """SIGKILL under the real-time trigger: at random times and between the steps."""
    part = load.events // load.job_kills
    with own_stack(settings, REAL_TIME) as stack:
        with SteadyProducer(stack.settings, 0, per_s=500) as producer:
            for n in range(load.job_kills):
                if n % 2:
                    _kill_between_steps(stack, chunk=700)
                else:
                    stack.job.start()
                    _wait_handovers(stack, 1)
                producer.wait_sent(stack, (n + 1) * part)
                stack.job.kill()
        stack.job.start()
        recovery_s = stack.wait_caught_up()
        report = reconcile(stack.settings)
    control = _handed_over_without_fence(settings)
    return FaultCase.of("real time killed", load.job_kills, report, recovery_s, control)


def _handed_over_without_fence(settings: Settings) -> Reconciliation:
    """During a hand-over two queries apply the same events; without the fence both count them."""
    with own_stack(settings, REAL_TIME | NO_FENCE) as stack:
        with SteadyProducer(stack.settings, 0, per_s=500):
            stack.job.start()
            _wait_handovers(stack, 2)
        stack.wait_caught_up()
        stack.job.stop()
        return reconcile(stack.settings)


def _wait_handovers(stack: Stack, count: int) -> None:
    stack.wait(lambda: stack.job.printed_since_start().count(_TOOK_OVER) >= count, "a hand-over")


def checkpoint_deleted(load: FaultLoad, settings: Settings) -> FaultCase:
    """Spark's checkpoints are deleted while the job is down. The control relies on them."""
    report, recovery_s = _without_checkpoint(load, settings, {})
    control, _ = _without_checkpoint(load, settings, NO_FENCE)
    return FaultCase.of("checkpoint deleted", 1, report, recovery_s, control)


def _without_checkpoint(
    load: FaultLoad, settings: Settings, env: dict[str, str]
) -> tuple[Reconciliation, float]:
    with own_stack(settings, SMALL_BATCHES | env) as stack:
        produce(stack.settings, events(load.events, 0))
        stack.job.start()
        stack.wait_caught_up()
        stack.job.kill()
        shutil.rmtree(stack.settings.home / "checkpoints")
        produce(stack.settings, events(1000, 1))
        stack.job.start()
        recovery_s = stack.wait_caught_up()
        stack.job.stop()
        return reconcile(stack.settings), recovery_s


def second_job(load: FaultLoad, settings: Settings) -> FaultCase:
    """A second job is started on the same state. The control has neither lease nor fence."""
    with own_stack(settings, SMALL_BATCHES) as stack:
        produce(stack.settings, events(load.events, 0))
        stack.job.start()
        stack.wait_caught_up()
        second = _second_job(stack)
        second.start()
        rejected_s = stack.wait(lambda: not second.running, "the second job to be rejected")
        named = "another stream job" in second.printed()
        rejected = named and second.process.returncode == StateConflict.exit_code
        produce(stack.settings, events(1000, 1))
        stack.wait_caught_up()
        report = reconcile(stack.settings)
    control = _two_jobs(load, settings)
    return FaultCase(
        name="second job",
        kills=0,
        events=report.events,
        lost=lost_events(report) if rejected else report.events,
        double=report.double,
        control_differs=control.differences > 0,
        recovery_s=round(rejected_s, 1),
        note=f"refused: {named}; control: double {control.double}",
    )


def _two_jobs(load: FaultLoad, settings: Settings) -> Reconciliation:
    """Two jobs without fence; the lease is deleted for the second one."""
    with own_stack(settings, SMALL_BATCHES | NO_FENCE) as stack, stack.client() as client:
        produce(stack.settings, events(load.events, 0))
        stack.job.start()
        stack.wait_caught_up()
        second = _second_job(stack)
        second.start()
        try:

            def runs() -> bool:
                client.delete(stack.settings.redis.keys.lease)
                return "stream running" in second.printed()

            stack.wait(runs, "the second job to run")
            stack.wait(lambda: differs(stack.settings), "the second job to count again")
        finally:
            second.kill()
        stack.job.stop()
        return reconcile(stack.settings)


def _second_job(stack: Stack) -> StreamJob:
    """Another job on the same topics and Redis, with its own home."""
    home = stack.settings.home / "second"
    return StreamJob(stack.settings.model_copy(update={"home": home}), stack.job.env)


def differs(settings: Settings) -> bool:
    """Whether the state differs from the log; False while it changes."""
    try:
        return reconcile(settings).differences > 0
    except StateConflict:  # the state changes while it is read
        return False


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
