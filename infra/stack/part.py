"""One part of the stack: a process, how to know that it is ready, and what became of it."""

from __future__ import annotations

import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import psutil

from infra.embedded.process import Process

_LONGEST_PAUSE_S = 30.0
_HEALTHY_S = 60.0


class State(StrEnum):
    """What a part is doing."""

    WAITING = "waiting"
    STARTING = "starting"
    READY = "ready"
    RESTARTING = "restarting"
    STOPPED = "stopped"


@dataclass
class Part:
    """A process that the supervisor keeps running."""

    name: str
    process: Process
    ready: Callable[[], bool]
    ready_within_s: float = 60.0
    url: str | None = None
    port: int | None = None
    prepare: Callable[[], None] = lambda: None
    essential: bool = False
    """Without it nothing works: the stack does not come up when it does not."""
    state: State = State.WAITING
    restarts: int = 0
    _failures: int = field(default=0, init=False)
    _started: float = field(default=0.0, init=False)

    def launch(self) -> None:
        """Start the process; `prepare` has run."""
        self.state = State.STARTING
        self._started = time.monotonic()
        self.process.start()

    def pause_after_crash(self) -> float:
        """Note a crash and return the seconds to wait before the next start: 0.5, 1, 2, … 30."""
        healthy = time.monotonic() - self._started > _HEALTHY_S
        self._failures = 1 if healthy else self._failures + 1
        self.state = State.RESTARTING
        self.restarts += 1
        return min(_LONGEST_PAUSE_S, 0.25 * 2.0**self._failures)

    def as_json(self) -> dict[str, Any]:
        """What `stack.json` and `afterclick status --json` hold about the part."""
        return {
            "name": self.name,
            "state": str(self.state),
            "pid": self.process.pid if self.process.running else None,
            "port": self.port,
            "url": self.url,
            "restarts": self.restarts,
            "log": str(self.process.log),
        }


def memory_mib(pid: int | None) -> float | None:
    """Resident memory of a process and all of its children, MiB; None when it is gone."""
    if pid is None:
        return None
    try:
        process = psutil.Process(pid)
        family = [process, *process.children(recursive=True)]
    except psutil.Error:
        return None
    total = 0
    for member in family:
        try:
            total += member.memory_info().rss
        except psutil.Error:
            continue
    return round(total / 2**20, 1)


def http_ok(url: str, timeout_s: float = 1.0) -> bool:
    """Whether a GET is answered with a status below 400."""
    try:
        with urllib.request.urlopen(url, timeout=timeout_s) as response:
            return int(response.status) < 400
    except (urllib.error.URLError, OSError, ValueError):
        return False
