"""Stalls of the machine during a benchmark: time in which no process of this machine ran.

One process per CPU sleeps a millisecond at a time and records late wake-ups. As root it runs under
SCHED_FIFO, above everything else, so a late wake-up means that a hypervisor took the CPU. Otherwise
`realtime` is false and a stall may also be a busy CPU.
"""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

MIN_MS = 2.0
"""Shorter stalls are ignored."""
TICK_S = 0.001


@dataclass
class HostStalls:
    """Stalls of all CPUs; complete when the `with` ends."""

    seconds: float = 0.0
    gaps_ms: list[float] = field(default_factory=list)
    realtime: bool = True
    stolen_ms: float = 0.0

    def figures(self) -> dict[str, Any]:
        return {
            "machine_gaps_ms": {
                "max": round(max(self.gaps_ms, default=0.0), 1),
                "sum": round(sum(self.gaps_ms), 1),
                f"over_{MIN_MS:.0f}_ms": len(self.gaps_ms),
                "over_10_ms": sum(gap > 10 for gap in self.gaps_ms),
                "seconds": round(self.seconds, 1),
                "realtime": self.realtime,
            },
            "machine_stolen_ms": round(self.stolen_ms),
        }


@contextmanager
def watch_host() -> Iterator[HostStalls]:
    """Watch every CPU available to this process during a `with`."""
    stalls, started, stolen_before = HostStalls(), time.perf_counter(), _stolen_ms()
    watchers = [
        subprocess.Popen(
            [sys.executable, "-m", "infra.benchmarks.host_stalls", str(cpu)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for cpu in sorted(os.sched_getaffinity(0))
    ]
    for watcher in watchers:
        assert watcher.stdout is not None
        watcher.stdout.readline()  # it has started
    try:
        yield stalls
    finally:
        stalls.seconds = time.perf_counter() - started
        stalls.stolen_ms = _stolen_ms() - stolen_before
        for watcher in watchers:
            output, _ = watcher.communicate(timeout=10)
            result = orjson.loads(output)
            stalls.gaps_ms += result["gaps_ms"]
            stalls.realtime &= result["realtime"]


def _stolen_ms() -> float:
    """CPU time that the hypervisor has taken since boot, according to the kernel."""
    try:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()
    except OSError:
        return 0.0
    return int(fields[8]) * 1000 / os.sysconf("SC_CLK_TCK")


def watch(cpu: int) -> None:
    """Record the stalls of one CPU until standard input is closed, then print them."""
    os.sched_setaffinity(0, {cpu})
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
        realtime = True
    except PermissionError:
        realtime = False
    gc.disable()
    gaps: list[float] = []
    os.set_blocking(0, False)
    print("watching", flush=True)
    while _input_open():
        started = time.perf_counter()
        time.sleep(TICK_S)
        gap = (time.perf_counter() - started - TICK_S) * 1000
        if gap > MIN_MS:
            gaps.append(gap)
    print(orjson.dumps({"gaps_ms": gaps, "realtime": realtime}).decode(), flush=True)


def _input_open() -> bool:
    try:
        return bool(os.read(0, 1))
    except BlockingIOError:
        return True


if __name__ == "__main__":
    watch(int(sys.argv[1]))
