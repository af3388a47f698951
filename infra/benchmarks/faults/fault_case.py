"""What a fault bench runs, and what a case finds."""

from __future__ import annotations

from dataclasses import dataclass

from streaming.proof.reconcile import Reconciliation

QUICK = {"AFTERCLICK_STREAM__BATCH_EVENTS": "8000"}
"""Several batches where there would be one."""
REAL_TIME = {"AFTERCLICK_STREAM__TRIGGER": "real-time", "AFTERCLICK_STREAM__HANDOVER_S": "5"}
"""The default trigger, with a handover from query to query every few seconds."""
NO_FENCE = {"AFTERCLICK_STREAM__FENCE": "false"}
"""The control of most faults: positions from Spark's checkpoint, counts that nothing fences."""


@dataclass(frozen=True)
class Bench:
    """What to run: events of each case, and how often a process is killed in it."""

    events: int = 20_000
    job_kills: int = 3
    server_kills: int = 2
    only: tuple[str, ...] = ()

    @classmethod
    def long(cls) -> Bench:
        """Ten kills of the stream job, five of each server."""
        return cls(events=100_000, job_kills=10, server_kills=5)


@dataclass(frozen=True)
class Case:
    """What a fault did. `lost` and `double` are events that the state (or, of a producer, the log) has too
    seldom or too often."""

    name: str
    kills: int
    events: int
    lost: int
    double: int
    control_differs: bool
    """Whether the same fault without the protection went wrong."""
    recovery_s: float
    """Seconds from the end of the fault to a state that has the whole log."""
    note: str = ""
    """What the control did."""

    @property
    def passed(self) -> bool:
        return not self.lost and not self.double and self.control_differs


def judged(
    name: str, kills: int, report: Reconciliation, recovery_s: float, control: Reconciliation
) -> Case:
    """The case of a fault after which both the protected state and the control were reconciled."""
    return Case(
        name=name,
        kills=kills,
        events=report.events,
        lost=lost(report),
        double=report.double,
        control_differs=control.differences > 0,
        recovery_s=round(recovery_s, 1),
        note=f"control: lost {control.lost}, double {control.double}, {control.differences} differences",
    )


def lost(report: Reconciliation) -> int:
    """Events that the state lacks; 1 where it differs in something other than a count."""
    return report.lost + (1 if report.differences and not report.lost + report.double else 0)
