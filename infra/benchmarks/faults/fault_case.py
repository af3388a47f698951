"""Load and outcome of a fault case, and the environments of the stream job in them."""

from __future__ import annotations

from dataclasses import dataclass

from streaming.proof.reconcile import Reconciliation

SMALL_BATCHES = {"AFTERCLICK_STREAM__BATCH_EVENTS": "8000"}
"""Several batches instead of one."""
REAL_TIME = {"AFTERCLICK_STREAM__TRIGGER": "real-time", "AFTERCLICK_STREAM__HANDOVER_S": "5"}
"""The default trigger, with a hand-over every few seconds."""
NO_FENCE = {"AFTERCLICK_STREAM__FENCE": "false"}
"""The control of most cases: offsets from Spark's checkpoint, counts without a fence."""


@dataclass(frozen=True)
class FaultLoad:
    """Events of each case, and how often a process is killed in it."""

    events: int = 20_000
    job_kills: int = 3
    server_kills: int = 2

    @classmethod
    def long(cls) -> FaultLoad:
        """Ten kills of the stream job, five of each server."""
        return cls(events=100_000, job_kills=10, server_kills=5)


@dataclass(frozen=True)
class FaultCase:
    """The outcome of a fault; field names are keys of `--json`.

    `lost` and `double` count events that are missing from, or repeated in, the state (for
    producers: the log).
    """

    name: str
    kills: int
    events: int
    lost: int
    double: int
    control_differs: bool
    """The same fault without the protection ended in a wrong state."""
    recovery_s: float
    """Seconds from the end of the fault until the whole log was applied."""
    note: str = ""
    """Outcome of the control."""

    @property
    def passed(self) -> bool:
        return not self.lost and not self.double and self.control_differs

    @classmethod
    def of(
        cls,
        name: str,
        kills: int,
        report: Reconciliation,
        recovery_s: float,
        control: Reconciliation,
    ) -> FaultCase:
        """From the reconciliations of the protected state and of the control."""
        return cls(
            name=name,
            kills=kills,
            events=report.events,
            lost=lost_events(report),
            double=report.double,
            control_differs=control.differences > 0,
            recovery_s=round(recovery_s, 1),
            note=f"control: lost {control.lost}, double {control.double}, "
            f"{control.differences} differences",
        )


def lost_events(report: Reconciliation) -> int:
    """Events missing from the state; 1 if it differs in something other than a count."""
    return report.lost + (1 if report.differences and not report.lost + report.double else 0)
