"""Faults of the stream job: killed, without its checkpoint, started twice."""

from __future__ import annotations

import random
import shutil

from afterclick.errors import StateConflict
from afterclick.settings import Settings
from infra.benchmarks.faults.fault_case import (
    NO_FENCE,
    REAL_TIME,
    SMALL_BATCHES,
    FaultCase,
    FaultLoad,
    SteadyProducer,
    events,
    lost_events,
    produce,
)
from infra.benchmarks.harness import Stack, StreamJob, own_stack
from streaming.apply import CHUNK
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
            stack.wait(lambda: _differs(stack.settings), "the second job to count again")
        finally:
            second.kill()
        stack.job.stop()
        return reconcile(stack.settings)


def _second_job(stack: Stack) -> StreamJob:
    """Another job on the same topics and Redis, with its own home."""
    home = stack.settings.home / "second"
    return StreamJob(stack.settings.model_copy(update={"home": home}), stack.job.env)


def _differs(settings: Settings) -> bool:
    try:
        return reconcile(settings).differences > 0
    except StateConflict:  # the state changes while it is read
        return False
