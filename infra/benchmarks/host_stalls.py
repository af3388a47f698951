"""How long the machine itself stood still while a bench ran: gaps that no program of the bench has made.

One process per processor sleeps a millisecond at a time and notes how late it wakes. Where it may (root), it
runs before everything else (SCHED_FIFO), so what makes it late is below the operating system: the host of a
virtual machine gave the processor to somebody else. Elsewhere a gap may also be a busy processor, and
`realtime` is false.
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

LEAST_MS = 2.0
"""Gaps from here on are counted."""
TICK_S = 0.001
_COMMAND = ("-m", "infra.benchmarks.host_stalls")


@dataclass
class Machine:
    """What the watchers found; filled when the `with` ends."""

    seconds: float = 0.0
    gaps_ms: list[float] = field(default_factory=list)
    realtime: bool = True
    stolen_ms: float = 0.0

    def figures(self) -> dict[str, Any]:
        """Gaps of all processors, and what the kernel counts as stolen of them."""
        gaps = sorted(self.gaps_ms)
        return {
            "machine_gaps_ms": {
                "max": round(gaps[-1], 1) if gaps else 0.0,
                "sum": round(sum(gaps), 1),
                f"over_{LEAST_MS:.0f}_ms": len(gaps),
                "over_10_ms": sum(gap > 10 for gap in gaps),
                "seconds": round(self.seconds, 1),
                "realtime": self.realtime,
            },
            "machine_stolen_ms": round(self.stolen_ms),
        }


@contextmanager
def watched() -> Iterator[Machine]:
    """Watch every processor of this process for the time of a `with`."""
    machine, began, stolen = Machine(), time.perf_counter(), _stolen_ms()
    watchers = [
        subprocess.Popen(
            [sys.executable, *_COMMAND, str(cpu)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        for cpu in sorted(os.sched_getaffinity(0))
    ]
    for watcher in watchers:
        assert watcher.stdout is not None
        watcher.stdout.readline()  # it has begun
    try:
        yield machine
    finally:
        machine.seconds = time.perf_counter() - began
        machine.stolen_ms = _stolen_ms() - stolen
        for watcher in watchers:
            told, _ = watcher.communicate(timeout=10)
            found = orjson.loads(told)
            machine.gaps_ms += found["gaps_ms"]
            machine.realtime &= found["realtime"]


def _stolen_ms() -> float:
    """What the host has taken from all processors since the start of the machine, as the kernel knows it."""
    try:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()
    except OSError:
        return 0.0
    return int(fields[8]) * 1000 / os.sysconf("SC_CLK_TCK")


def watch(cpu: int) -> None:
    """Note gaps of one processor until the standard input is closed; then print them."""
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
    while _wanted():
        began = time.perf_counter()
        time.sleep(TICK_S)
        gap = (time.perf_counter() - began - TICK_S) * 1000
        if gap > LEAST_MS:
            gaps.append(gap)
    print(orjson.dumps({"gaps_ms": gaps, "realtime": realtime}).decode(), flush=True)


def _wanted() -> bool:
    """Whether whoever started this still wants it."""
    try:
        return bool(os.read(0, 1))
    except BlockingIOError:
        return True


if __name__ == "__main__":
    watch(int(sys.argv[1]))
