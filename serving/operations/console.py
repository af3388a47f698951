"""What an administrator sees and steers: the replay, the simulator, training and models, faults on purpose.

reads   file  <home>/replay/status.json, retrain.json, stack.json
writes  file  <home>/replay/control.json
runs    afterclick simulate, reconcile, train, models
"""

from __future__ import annotations

import time
from contextlib import suppress

from afterclick.arrays import Json
from afterclick.errors import BadInput, NotRunning, Unavailable
from afterclick.io.home import (
    PAUSED,
    RUNNING,
    ReplayControl,
    ReplayStatus,
    StackRecord,
    TrainingStatus,
)
from afterclick.settings import Settings
from serving.operations.breaking import hold_up_redis, kill_stream, resend
from serving.operations.children import Job, Jobs
from serving.operations.simulator import Simulator

RECONCILE_WAIT_S = 120
HELD_S = 3.0
RESENT = 50
FAULTS = ("stream", "redis", "duplicates")


class Console:
    """The controls of one process. Methods that say so block: call them from a thread."""

    def __init__(self, settings: Settings) -> None:
        self._settings, self._home = settings, settings.home
        environment = settings.environment()
        serving = settings.serving
        host = "127.0.0.1" if serving.host in {"0.0.0.0", "::"} else serving.host
        self.jobs = Jobs(environment)
        self.simulator = Simulator(environment, f"http://{host}:{serving.port}")
        self._faults: list[Json] = []
        self._resume = False

    def as_json(self) -> Json:
        """Everything but the models, in one answer."""
        training = TrainingStatus.read(self._home)
        stack = StackRecord.read(self._home) if StackRecord.is_fresh(self._home) else None
        return {
            "replay": self.replay(),
            "simulator": self.simulator.as_json(),
            "training": training.model_dump() if training else None,
            "stack": [part.model_dump() for part in stack.parts] if stack else None,
            "jobs": self.jobs.as_json(),
            "break_it": self._settings.serving.break_it,
            "faults": self._faults,
        }

    def replay(self) -> Json | None:
        """How the replay of this home goes, or how the last one went; None where none ever ran."""
        status = ReplayStatus.read(self._home)
        if status is None:
            return None
        going = status.state in (RUNNING, PAUSED) and ReplayStatus.is_fresh(self._home)
        return {**status.model_dump(), "active": going}

    def steer_replay(self, change: Json) -> None:
        """Pause it, let it go on, or change its pace. Raises NotRunning where none runs."""
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
        """Recount the log, while the replay and the simulator stand still. Raises AlreadyRunning."""
        return self.jobs.start(
            *("reconcile", "reconcile", "--wait", str(RECONCILE_WAIT_S), "--json"),
            before=self._stand_still,
            after=self._go_on,
        )

    def train(self) -> Job:
        return self.jobs.start("train", "train", "--json")

    def promote(self, version: str) -> Job:
        return self.jobs.start("promote", "models", "promote", version, "--json")

    def roll_back(self) -> Job:
        return self.jobs.start("promote", "models", "rollback", "--json")

    def list_models(self) -> Job:
        return self.jobs.start("models", "models", "ls", "--json")

    def break_it(self, fault: str) -> str:
        """Do one of FAULTS and say what was done. Blocks. Raises BadInput, Unavailable."""
        if not self._settings.serving.break_it:
            raise BadInput("this installation is not for breaking (AFTERCLICK_SERVING__BREAK_IT)")
        if fault == "stream":
            done = f"killed the stream job, process {kill_stream(self._settings)}"
        elif fault == "redis":
            hold_up_redis(self._settings, HELD_S)
            done = f"Redis answers nobody for {HELD_S:g} s"
        elif fault == "duplicates":
            done = f"sent {resend(self._settings.kafka, RESENT)} events a second time"
        else:
            raise BadInput(f"no fault {fault!r}: one of {', '.join(FAULTS)}")
        self._faults = [{"time": time.time(), "fault": fault, "done": done}, *self._faults[:9]]
        return done

    def stop(self) -> None:
        """End every child. Blocks for seconds."""
        self.simulator.stop()
        self.jobs.stop()

    def _stand_still(self) -> None:
        replay = self.replay()
        self._resume = bool(replay and replay["active"] and replay["state"] == RUNNING)
        with suppress(Unavailable):  # it has ended at this moment
            self.simulator.hold(True)
        with suppress(Unavailable):
            if self._resume:
                self.steer_replay({"state": PAUSED})

    def _go_on(self) -> None:
        with suppress(Unavailable):
            self.simulator.hold(False)
        with suppress(Unavailable):
            if self._resume:
                self.steer_replay({"state": RUNNING})
