"""`afterclick bench faults`: kill, cut, flood and resend, then verify the state against the log.

Each case starts its own Kafka and Valkey and has a control: the same fault without the protection,
which must end in a wrong state. A control with a correct state means that the case proves nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field

import structlog

from afterclick.errors import BadInput
from afterclick.settings import Settings
from infra.benchmarks.faults import (
    broker_faults,
    record_faults,
    secure_broker_faults,
    store_faults,
    stream_faults,
    watch_faults,
)
from infra.benchmarks.faults.fault_case import FaultCase, FaultLoad
from infra.benchmarks.harness import Benchmark, Figures

log = structlog.get_logger()

CASES: dict[str, Callable[[FaultLoad, Settings], FaultCase]] = {
    case.__name__: case
    for case in (
        stream_faults.stream_killed,
        stream_faults.realtime_killed,
        stream_faults.checkpoint_deleted,
        stream_faults.second_job,
        store_faults.redis_killed,
        store_faults.redis_tail_cut,
        store_faults.redis_flushed,
        store_faults.redis_full,
        broker_faults.broker_killed,
        broker_faults.acks_lost,
        broker_faults.retention_passed,
        stream_faults.resent,
        stream_faults.poison,
        record_faults.oversize_change,
        record_faults.oversize_record,
        record_faults.transaction_markers,
        watch_faults.frozen_partition,
        watch_faults.topic_created_anew,
        watch_faults.lost_lease,
        secure_broker_faults.secure_broker_killed,
    )
}


@dataclass(frozen=True)
class FaultsBenchmark(Benchmark):
    load: FaultLoad = field(default_factory=FaultLoad)
    only: tuple[str, ...] = ()
    """Cases to run; empty: all."""

    def run(self, settings: Settings) -> Figures:
        """A row per case. Raises BadInput for an unknown case."""
        unknown = set(self.only) - CASES.keys()
        if unknown:
            names = ", ".join(sorted(unknown))
            raise BadInput(f"unknown case {names}; expected one of: {', '.join(CASES)}")
        cases: list[FaultCase] = []
        for name, case in CASES.items():
            if not self.only or name in self.only:
                cases.append(case(self.load, settings))
                log.info("case", **asdict(cases[-1]))
        return {
            "cases": [asdict(case) for case in cases],
            "lost": sum(case.lost for case in cases),
            "double": sum(case.double for case in cases),
            "passed": all(case.passed for case in cases),
        }
