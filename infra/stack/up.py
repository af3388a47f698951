"""Compose the stack and run it; stop it from another shell."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from rich.console import Console

from afterclick.errors import AlreadyRunning, Unavailable
from afterclick.io.background import BackgroundLoop
from afterclick.io.files import file_lock
from afterclick.io.home import StackProgress, StackRecord
from afterclick.settings import Settings
from infra.stack.progress import ProgressProbe
from infra.stack.services import Topology
from infra.stack.status import LOCK, DemoStep, Display, running_stack
from infra.stack.supervisor import Supervisor
from infra.topics_admin import ensure_topics

_PROBE_S = 2.0
_RECORD_S = 1.0


class StackDemo(Protocol):
    """Steps that run next to the services."""

    @property
    def steps(self) -> list[DemoStep]: ...

    async def run(self) -> None: ...


CreateDemo = Callable[[Topology, Supervisor, Display, Callable[[], StackProgress]], StackDemo]


@dataclass(frozen=True)
class UpOptions:
    """Options of `afterclick up`."""

    port_offset: int = 0
    demo: CreateDemo | None = None
    """Creates what runs once the services are started."""
    retrain: bool = False
    """Also run `afterclick retrain`."""


def up(settings: Settings, options: UpOptions) -> None:
    """Run the whole stack until a signal. Raises AlreadyRunning, Unavailable."""
    topology = Topology.of(
        demo_settings(settings) if options.demo else settings, options.port_offset
    )
    with file_lock(topology.home / LOCK, str(os.getpid()), _busy(topology.home)):
        topology.require_free_ports()
        asyncio.run(_Stack(topology, options).run())


def down(home: Path, timeout_s: float) -> int | None:
    """Stop the stack of this home and wait for its end; its process id, None if none runs.

    Raises Unavailable if it runs on after `timeout_s`.
    """
    pid = running_stack(home)
    if pid is None:
        return None
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + timeout_s
    while running_stack(home) == pid:
        if time.monotonic() > deadline:
            raise Unavailable(
                f"the stack {pid} has not ended within {timeout_s:.0f} s: run `kill -9 {pid}`"
            )
        time.sleep(0.1)
    return pid


def require_no_stack(home: Path) -> None:
    """Raise AlreadyRunning if a stack runs in this home."""
    if running_stack(home):
        raise AlreadyRunning(_busy(home))


def demo_settings(settings: Settings) -> Settings:
    """Allow fault injection, train with the fast preset, and switch quarantine off.

    Simulated users are all new accounts.
    """
    serving = settings.serving.model_copy(update={"quarantine_max_ratio": 0.0})
    console = settings.console.model_copy(update={"fault_injection": True})
    training = settings.training
    if "preset" not in training.model_fields_set:
        training = training.model_copy(update={"preset": "fast"})
    return settings.model_copy(
        update={"serving": serving, "console": console, "training": training}
    )


class _Stack:
    """One run of the stack: supervisor, display, progress and demo."""

    def __init__(self, topology: Topology, options: UpOptions) -> None:
        self.topology = topology
        self.display = Display(Console())
        self.probe = ProgressProbe(topology.settings)
        self.supervisor = Supervisor(
            topology.servers(), topology.applications(options.retrain), self.display.note
        )
        self.demo = (
            options.demo(topology, self.supervisor, self.display, lambda: self.probe.latest)
            if options.demo
            else None
        )
        if options.port_offset:
            variables = " ".join(f"{name}={value}" for name, value in topology.addresses.items())
            self.display.note(f"for commands in other shells: export {variables}")

    async def run(self) -> None:
        tasks = [self._keep_record] + ([self.demo.run] if self.demo else [])
        # a daemon thread: a server that does not answer must not delay the end
        probing = BackgroundLoop("progress", self.probe.read, _PROBE_S)
        self.display.note(f"starting; data and logs in {self.topology.home}")
        probing.start()
        with self.display.shown():
            try:
                await self.supervisor.run(self._create_topics, *tasks)
            finally:
                probing.stop(0.0)
                self.display.draw(self._record())

    def _create_topics(self) -> None:
        if created := ensure_topics(self.topology.settings):
            self.display.note(f"created {len(created)} topics")

    async def _keep_record(self) -> None:
        while True:
            record = await asyncio.to_thread(self._record)
            await asyncio.to_thread(record.write, self.topology.home)
            self.display.draw(record)
            await asyncio.sleep(_RECORD_S)

    def _record(self) -> StackRecord:
        steps: list[DemoStep] = self.demo.steps if self.demo else []
        return StackRecord(
            running=True,
            pid=os.getpid(),
            age_s=round(self.supervisor.age, 1),
            home=str(self.topology.home),
            env=self.topology.addresses,
            parts=tuple(service.record() for service in self.supervisor.services),
            stages=tuple(step.record() for step in steps),
            figures=self.probe.latest,
        )


def _busy(home: Path) -> str:
    return (
        f"a stack runs already in {home} (pid {running_stack(home)}): see `afterclick status`, "
        "stop it with `afterclick down`"
    )
