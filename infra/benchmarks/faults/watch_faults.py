"""What a running job notices (streaming/watch.py): a frozen partition, a topic that was created
anew, a lease taken by another job.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator

from afterclick.errors import StateConflict, StateLocked
from afterclick.settings import Settings
from infra.benchmarks.faults.fault_case import (
    NO_FENCE,
    SMALL_BATCHES,
    FaultCase,
    FaultLoad,
    Row,
    SteadyProducer,
    events,
    lost_events,
    produce,
    row,
)
from infra.benchmarks.faults.stream_faults import differs
from infra.benchmarks.harness import Stack, StreamJob, own_stack
from infra.embedded.kafka import delete_topics, ensure_topics
from streaming.proof.dead_letters import redrive
from streaming.proof.reconcile import Reconciliation, reconcile

_QUICK_STALL = SMALL_BATCHES | {"AFTERCLICK_STREAM__STALL_S": "3"}
_UNWATCHED_S = 30.0
"""How long the control of a frozen partition is observed."""
_REAL_TIME = {"AFTERCLICK_STREAM__TRIGGER": "real-time"}
"""Its workers go on while the driver stands still."""


def frozen_partition(load: FaultLoad, settings: Settings) -> FaultCase:
    """A worker freezes at a record. In the control nothing watches the partitions."""
    with own_stack(settings, _QUICK_STALL) as stack:
        produce(stack.settings, _with_frozen(load.events))
        stack.job.start(AFTERCLICK_STREAM__FAULT="freeze:frozen")
        recovery_s = stack.wait_caught_up()
        set_aside = "record set aside" in stack.job.printed()
        stack.job.kill()
        redrive(stack.settings.kafka)
        stack.job.start()
        stack.wait_caught_up()
        report = reconcile(stack.settings)
    behind, noticed = _frozen_unwatched(load, settings)
    return FaultCase(
        name="frozen partition",
        kills=0,
        events=report.events,
        lost=lost_events(report) if set_aside else report.events,
        double=report.double,
        control_differs=behind > 0 and not noticed,
        recovery_s=round(recovery_s, 1),
        note=f"set aside: {set_aside}, then sent again; control: {behind} behind after "
        f"{_UNWATCHED_S:.0f} s, noticed: {noticed}",
    )


def _with_frozen(count: int) -> Iterator[Row]:
    """Events with one of the user `frozen` in the middle."""
    for n, other in enumerate(events(count, 0)):
        if n == count // 2:
            yield row("frozen", "item-0", "like", "frozen")
        yield other


def _frozen_unwatched(load: FaultLoad, settings: Settings) -> tuple[int, bool]:
    """The events behind a while after the job's start, and whether it has noticed."""
    with own_stack(settings, _QUICK_STALL) as stack:
        produce(stack.settings, _with_frozen(load.events))
        stack.job.start(AFTERCLICK_STREAM__FAULT="freeze-unwatched:frozen")
        stack.wait(stack.job_runs, "the job to start")
        time.sleep(_UNWATCHED_S)
        return stack.lag(), "stalled" in stack.job.printed()


def topic_created_anew(load: FaultLoad, settings: Settings) -> FaultCase:
    """The topics are deleted and created, and are longer than before: the job ends and says what
    to do. In the control the ids of the topics are unknown.
    """
    with own_stack(settings, SMALL_BATCHES) as stack:
        _create_anew(stack, load)
        stack.job.start()
        stack.wait(lambda: not stack.job.running, "the job to stop")
        printed = stack.job.printed_since_start().replace("\n", " ")
        ended = stack.job.process.returncode == StateConflict.exit_code
        named = "created anew" in printed and "empty Redis" in printed
        _start_anew(stack)
        recovery_s = stack.wait_caught_up()
        report = reconcile(stack.settings)
    with own_stack(settings, SMALL_BATCHES) as stack:
        _create_anew(stack, load)
        with stack.client() as client:
            client.delete(stack.settings.redis.keys.topic_ids)
        _move_archive_away(stack)
        stack.job.start()
        stack.wait_caught_up()
        control = reconcile(stack.settings)
    case = FaultCase.of("topic created anew", 0, report, recovery_s, control)
    return case if ended and named else case.failed("the job did not end with instructions")


def _create_anew(stack: Stack, load: FaultLoad) -> None:
    """Apply some events; then the same topics with twice as many others, while no job runs."""
    stack.job.start()
    produce(stack.settings, events(load.events // 2, 0))
    stack.wait_caught_up()
    stack.job.stop()
    delete_topics(stack.settings.kafka)
    stack.wait(lambda: bool(ensure_topics(stack.settings)), "the topics to be created anew")
    produce(stack.settings, events(load.events, 1))


def _start_anew(stack: Stack) -> None:
    """What the job's last message says: empty Redis, move the archive away, start."""
    with stack.client() as client:
        client.flushall()
    _move_archive_away(stack)
    stack.job.start()


def _move_archive_away(stack: Stack) -> None:
    """The archive holds the ids of its topics, too."""
    shutil.move(stack.settings.archive, stack.settings.home / "old-archive")


def lost_lease(load: FaultLoad, settings: Settings) -> FaultCase:
    """A job's driver stands still for longer than its lease while its workers go on, and another
    job starts. The control has no fence.
    """
    report, seconds, ended = _taken_over(load, settings, {})
    control, _, _ = _taken_over(load, settings, NO_FENCE)
    case = FaultCase.of("lost lease", 0, report, seconds, control)
    return case if ended else case.failed("the first job did not end")


def _taken_over(
    load: FaultLoad, settings: Settings, env: dict[str, str]
) -> tuple[Reconciliation, float, bool]:
    """The state afterwards, the seconds until the second job ran, and whether the first ended."""
    with own_stack(settings, _REAL_TIME | env) as stack:
        produce(stack.settings, events(load.events, 0))
        stack.job.start()
        stack.wait_caught_up()
        home = stack.settings.home / "second"
        second = StreamJob(stack.settings.model_copy(update={"home": home}), stack.job.env)
        try:
            with SteadyProducer(stack.settings, 1, per_s=200):
                stack.job.process.suspend()
                _wait_lease_expired(stack)
                second.start()
                seconds = stack.wait(lambda: "stream running" in second.printed(), "the second job")
                stack.job.process.resume()
                ended = not env and _ends_without_lease(stack)
            stack.wait_caught_up()
            if env:  # the first job has applied everything, the second one is behind
                stack.wait(lambda: differs(stack.settings), "the second job to count again")
            stack.job.stop()
            return reconcile(stack.settings), seconds, ended
        finally:
            second.kill()


def _wait_lease_expired(stack: Stack) -> None:
    key = stack.settings.redis.keys.lease
    with stack.client() as client:
        stack.wait(lambda: not client.exists(key), "the lease to expire")


def _ends_without_lease(stack: Stack) -> bool:
    stack.wait(lambda: not stack.job.running, "the first job to end")
    return stack.job.process.returncode == StateLocked.exit_code
