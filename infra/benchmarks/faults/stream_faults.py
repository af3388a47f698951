"""Faults of the stream job itself: killed, robbed of its checkpoint, run twice."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

from afterclick.errors import StateConflict
from afterclick.settings import Settings
from infra.benchmarks.faults.fault_case import NO_FENCE, QUICK, REAL_TIME, Bench, Case, judged, lost
from infra.benchmarks.faults.fault_events import SteadyProducer, events, produce
from infra.benchmarks.stream_stack import Stack, StreamJob, own_stack
from streaming.apply import CHUNK
from streaming.proof.reconcile import Reconciliation, reconcile


def stream_killed(bench: Bench, jars: Path) -> Case:
    """kill -9 of the job and its workers: before the first batch, between the steps, at random moments."""
    draw = random.Random(1)
    part = bench.events // bench.job_kills
    with own_stack(jars, **QUICK) as stack:
        for n in range(bench.job_kills):
            produce(stack.settings, events(part, n))
            if n % 3 == 0:
                stack.job.start()
                stack.wait(
                    lambda: "stream running" in stack.job.printed_since_start(), "the job to start"
                )
            elif n % 3 == 1:
                _die_between_steps(stack, chunk=2 if part >= 16 * CHUNK else 1)
            else:
                stack.job.start()
                left = draw.randrange(part)
                stack.wait(lambda left=left: 0 <= stack.behind() <= left, "a part of the log")  # type: ignore[misc]
            stack.job.kill()
        stack.job.start()
        recovery = stack.wait_caught_up()
        report = reconcile(stack.settings)
    return judged("stream killed", bench.job_kills, report, recovery, _killed_without_fence(jars))


def _killed_without_fence(jars: Path) -> Reconciliation:
    """One kill between the steps of a second chunk: the first one is counted again."""
    with own_stack(jars, **QUICK, **NO_FENCE) as stack:
        produce(stack.settings, events(32 * CHUNK, 0))
        _die_between_steps(stack, chunk=2)
        stack.job.kill()
        stack.job.start()
        stack.wait_caught_up()
        return reconcile(stack.settings)


def _die_between_steps(stack: Stack, chunk: int) -> None:
    """Start the job so that each worker dies in its n-th chunk between the steps; until one has."""
    stack.job.start(AFTERCLICK_STREAM__FAULT=f"between-steps:{chunk}")
    stack.wait(
        lambda: "query failed" in stack.job.printed_since_start(),
        "a worker to die between the steps",
    )


def realtime_killed(bench: Bench, jars: Path) -> Case:
    """kill -9 under the real-time trigger, while events come and queries hand over: at random moments, and
    between the steps."""
    part = bench.events // bench.job_kills
    with own_stack(jars, **REAL_TIME) as stack:
        with SteadyProducer(stack.settings, 0, per_s=500) as producer:
            for n in range(bench.job_kills):
                if n % 2:
                    _die_between_steps(stack, chunk=700)
                else:
                    stack.job.start()
                    _wait_for_handovers(stack, 1)
                stack.wait(lambda n=n: len(producer.sent) >= (n + 1) * part, "the next kill")  # type: ignore[misc]
                stack.job.kill()
        stack.job.start()
        recovery = stack.wait_caught_up()
        report = reconcile(stack.settings)
    return judged(
        "real time killed", bench.job_kills, report, recovery, _handed_over_without_fence(jars)
    )


def _handed_over_without_fence(jars: Path) -> Reconciliation:
    """Two queries do the work of one for a while, and nothing fences what both of them count."""
    with own_stack(jars, **REAL_TIME, **NO_FENCE) as stack:
        with SteadyProducer(stack.settings, 0, per_s=500):
            stack.job.start()
            _wait_for_handovers(stack, 2)
        stack.wait_caught_up()
        stack.job.stop()
        return reconcile(stack.settings)


def _wait_for_handovers(stack: Stack, number: int) -> None:
    def handed_over() -> bool:
        return stack.job.printed_since_start().count("real-time query took over") >= number

    stack.wait(handed_over, "a real-time query to take over")


def checkpoint_deleted(bench: Bench, jars: Path) -> Case:
    """Spark's checkpoints are deleted while the job is down. The control believes in them."""
    report, recovery = _without_checkpoint(bench, jars, {})
    control, _ = _without_checkpoint(bench, jars, NO_FENCE)
    return judged("checkpoint deleted", 1, report, recovery, control)


def _without_checkpoint(
    bench: Bench, jars: Path, env: dict[str, str]
) -> tuple[Reconciliation, float]:
    with own_stack(jars, **QUICK, **env) as stack:
        produce(stack.settings, events(bench.events, 0))
        stack.job.start()
        stack.wait_caught_up()
        stack.job.kill()
        shutil.rmtree(stack.settings.home / "checkpoints")
        produce(stack.settings, events(1000, 1))
        stack.job.start()
        recovery = stack.wait_caught_up()
        stack.job.stop()
        return reconcile(stack.settings), recovery


def second_job(bench: Bench, jars: Path) -> Case:
    """A second job is started on the same state. In the control nothing refuses or fences it."""
    with own_stack(jars, **QUICK) as stack:
        produce(stack.settings, events(bench.events, 0))
        stack.job.start()
        stack.wait_caught_up()
        second = _second(stack)
        second.start()
        refused = stack.wait(lambda: not second.running, "the second job to be refused")
        named = "another stream job" in second.printed()
        produce(stack.settings, events(1000, 1))
        stack.wait_caught_up()
        report = reconcile(stack.settings)
    control = _two_jobs(bench, jars)
    return Case(
        name="second job",
        kills=0,
        events=report.events,
        lost=lost(report) if named and second.code == StateConflict.exit_code else report.events,
        double=report.double,
        control_differs=control.differences > 0,
        recovery_s=round(refused, 1),
        note=f"refused: {named}; control: double {control.double}",
    )


def _two_jobs(bench: Bench, jars: Path) -> Reconciliation:
    """Two jobs without fence, the second one's way cleared of the lease."""
    with own_stack(jars, **QUICK, **NO_FENCE) as stack, stack.client() as client:
        produce(stack.settings, events(bench.events, 0))
        stack.job.start()
        stack.wait_caught_up()
        second = _second(stack)
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


def _second(stack: Stack) -> StreamJob:
    """Another job on the same topics and Redis, with a home of its own."""
    home = stack.settings.home / "second"
    settings = stack.settings.model_copy(update={"home": home})
    home.mkdir()
    return StreamJob(settings, home / "stream.log", stack.job.env)


def _differs(settings: Settings) -> bool:
    try:
        return reconcile(settings).differences > 0
    except StateConflict:  # it moves while it is read
        return False
