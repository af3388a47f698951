"""Run the cases of `afterclick bench faults`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import structlog

from afterclick.errors import BadInput
from infra.benchmarks.faults import broker_faults as broker
from infra.benchmarks.faults import incoming_faults as incoming
from infra.benchmarks.faults import store_faults as store
from infra.benchmarks.faults import stream_faults as job
from infra.benchmarks.faults.fault_case import Bench, Case

log = structlog.get_logger()

CASES: dict[str, Callable[[Bench, Path], Case]] = {
    case.__name__: case
    for case in (
        job.stream_killed,
        job.realtime_killed,
        job.checkpoint_deleted,
        job.second_job,
        store.redis_killed,
        store.redis_tail_cut,
        store.redis_flushed,
        store.redis_full,
        broker.broker_killed,
        broker.acks_lost,
        broker.retention_passed,
        incoming.resent,
        incoming.poison,
    )
}


def run(bench: Bench, jars: Path) -> dict[str, Any]:
    """Run the cases; a row of figures for each. Raises BadInput for a case that there is not."""
    unknown = set(bench.only) - CASES.keys()
    if unknown:
        raise BadInput(f"no case {', '.join(sorted(unknown))}; there are: {', '.join(CASES)}")
    cases: list[Case] = []
    for name, case in CASES.items():
        if not bench.only or name in bench.only:
            cases.append(case(bench, jars))
            log.info("case", **asdict(cases[-1]))
    return {
        "cases": [asdict(case) for case in cases],
        "lost": sum(case.lost for case in cases),
        "double": sum(case.double for case in cases),
        "passed": all(case.passed for case in cases),
    }
