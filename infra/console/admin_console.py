"""What an administrator controls from the dashboard: replay, simulation, training, models, faults.

reads   file  <home>/replay/status.json, retrain.json, stack.json
writes  file  <home>/replay/control.json
runs    `afterclick simulate`, `reconcile`, `train`, `models`
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

from afterclick.errors import NotRunning, Unavailable
from afterclick.io.home import (
    PAUSED,
    RUNNING,
    ReplayControl,
    ReplayStatus,
    StackRecord,
    TrainingStatus,
)
from afterclick.settings import Settings
from infra.console.fault_injection import FaultInjection
from infra.console.jobs import Job, Jobs, Simulation

Json = dict[str, Any]
RECONCILE_WAIT_S = 120
"""How long the recount waits for the stream to catch up."""


class AdminConsole:
    """The controls of one installation. For one event loop."""

    def __init__(self, settings: Settings) -> None:
        self._home = settings.home
        self.jobs = Jobs(settings)
        self.simulation = Simulation(settings)
        self.faults = FaultInjection(settings)
        self._resume = False

    def as_json(self) -> Json:
        """The state of everything that can be controlled."""
        training = TrainingStatus.read(self._home)
        stack = StackRecord.read(self._home) if StackRecord.is_fresh(self._home) else None
        return {
            "replay": self.replay(),
            "simulator": self.simulation.as_json(),
            "training": training.model_dump() if training else None,
            "stack": [part.model_dump() for part in stack.parts] if stack else None,
            "jobs": self.jobs.as_json(),
            "fault_injection": self.faults.allowed,
            "faults": self.faults.injected,
        }

    def replay(self) -> Json | None:
        """The progress of the current or the last replay; None if none has run from this home."""
        status = ReplayStatus.read(self._home)
        if status is None:
            return None
        active = status.state in (RUNNING, PAUSED) and ReplayStatus.is_fresh(self._home)
        return {**status.model_dump(), "active": active}

    def control_replay(self, change: Json) -> None:
        """Pause or resume the replay, or change its pace. Raises NotRunning."""
        replay = self.replay()
        if replay is None or not replay["active"]:
            raise NotRunning(
                "no replay runs from this home; start one with `afterclick ingest replay`"
            )
        control = ReplayControl.read(self._home) or ReplayControl()
        if "speed" in change or "rate" in change:
            change = {"speed": None, "rate": None, **change}
        control.model_copy(update=change).write(self._home)

    def reconcile(self) -> Job:
        """Recount the log while replay and simulation are paused. Raises AlreadyRunning."""
        arguments = ("reconcile", "--wait", str(RECONCILE_WAIT_S), "--json")
        return self.jobs.start("reconcile", *arguments, before=self._pause, after=self._continue)

    def train(self) -> Job:
        return self.jobs.start("train", "train", "--json")

    def promote(self, version: str) -> Job:
        return self.jobs.start("promote", "models", "promote", version, "--json")

    def roll_back(self) -> Job:
        return self.jobs.start("promote", "models", "rollback", "--json")

    def list_models(self) -> Job:
        return self.jobs.start("models", "models", "ls", "--json")

    async def stop(self) -> None:
        """End every child process."""
        await asyncio.gather(asyncio.to_thread(self.simulation.stop), self.jobs.stop())

    def _pause(self) -> None:
        replay = self.replay()
        self._resume = bool(replay and replay["active"] and replay["state"] == RUNNING)
        with suppress(Unavailable):  # the simulation may end meanwhile
            self.simulation.hold(True)
        with suppress(Unavailable):
            if self._resume:
                self.control_replay({"state": PAUSED})

    def _continue(self) -> None:
        with suppress(Unavailable):
            self.simulation.hold(False)
        with suppress(Unavailable):
            if self._resume:
                self.control_replay({"state": RUNNING})
