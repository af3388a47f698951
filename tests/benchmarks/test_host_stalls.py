"""Stalls of the machine during a benchmark."""

from __future__ import annotations

import os
import time

from infra.benchmarks.host_stalls import HostStalls, watch_host


def test_every_processor_is_watched() -> None:
    with watch_host() as stalls:
        began = time.perf_counter()
        while time.perf_counter() - began < 0.05:
            os.getpid()
    gaps = stalls.figures()["machine_gaps_ms"]
    assert gaps["seconds"] >= 0.05
    assert gaps["sum"] >= gaps["max"] >= 0.0


def test_gaps_are_counted_and_added() -> None:
    figures = HostStalls(seconds=2.0, gaps_ms=[3.0, 40.0, 12.0], stolen_ms=50.4).figures()
    assert figures["machine_gaps_ms"] == {
        "max": 40.0,
        "sum": 55.0,
        "over_2_ms": 3,
        "over_10_ms": 2,
        "seconds": 2.0,
        "realtime": True,
    }
    assert figures["machine_stolen_ms"] == 50
