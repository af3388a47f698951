"""What an administrator controls from the dashboard: replay, simulation, training, models, faults.

reads   file   <home>/replay/status.json, retrain.json, stack.json
        topic  feedback: the newest records
writes  file   <home>/replay/control.json, hold.json
        topic  feedback: the same records, byte for byte
runs    `afterclick simulate`, `reconcile`, `train`, `models`
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from confluent_kafka import KafkaException
from redis.exceptions import RedisError

from afterclick.errors import BadInput, NotRunning, Unavailable
from afterclick.io.background import BackgroundLoop
from afterclick.io.home import (
    PAUSED,
    RUNNING,
    ReplayControl,
    ReplayHold,
    ReplayStatus,
    StackRecord,
    TrainingStatus,
)
from afterclick.io.kafka_clients import create_producer
from afterclick.io.kafka_log import KafkaLog
from afterclick.io.redis_clients import create_redis, redis_unavailable
from afterclick.settings import KafkaSettings, Settings
from infra.console.jobs import Job, Jobs, SimulationJob

Json = dict[str, Any]
HOLD_S = 1.0
"""How often the replay's hold is renewed."""
RECONCILE_WAIT_S = 120
"""How long the recount waits for the stream to catch up."""


class AdminConsole:
    """The controls of one installation. For one event loop."""

    def __init__(self, settings: Settings) -> None:
        self._home = settings.home
        self.jobs = Jobs(settings)
        self.simulation = SimulationJob(settings)
        self.faults = FaultInjection(settings)
        self._hold: BackgroundLoop | None = None

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

    async def stop(self) -> None:
        """End every child process."""
        await asyncio.gather(asyncio.to_thread(self.simulation.stop), self.jobs.stop())

    def _pause(self) -> None:
        """Hold replay and simulation for as long as this process lives."""
        with suppress(Unavailable):  # the simulation may have ended
            self.simulation.hold(True)
        hold = ReplayHold(by="reconcile")
        self._hold = BackgroundLoop("replay-hold", lambda: hold.write(self._home), HOLD_S)
        self._hold.start()

    def _continue(self) -> None:
        with suppress(Unavailable):
            self.simulation.hold(False)
        if self._hold is not None:
            self._hold.stop()
        ReplayHold.path(self._home).unlink(missing_ok=True)


TIMEOUT_S = 5.0
RESENT_EVENTS = 50
KEPT_FAULTS = 10
_NO_JOB = "the stream job is not running"


class FaultInjection:
    """Injects faults if the settings allow it, and records the newest ones."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.allowed = settings.console.fault_injection
        self.injected: list[dict[str, Any]] = []
        self._faults: dict[str, Callable[[], str]] = {
            "stream": self._kill_stream,
            "redis": self._pause_redis,
            "duplicates": self._resend,
        }

    def inject(self, fault: str) -> str:
        """Inject a fault and describe it. Blocks. Raises BadInput, NotRunning, Unavailable."""
        if not self.allowed:
            raise BadInput(
                "fault injection is disabled: set AFTERCLICK_CONSOLE__FAULT_INJECTION=true"
            )
        if fault not in self._faults:
            raise BadInput(f"unknown fault {fault!r}: use one of {', '.join(self._faults)}")
        done = self._faults[fault]()
        entry = {"time": time.time(), "fault": fault, "done": done}
        self.injected = [entry, *self.injected][:KEPT_FAULTS]
        return done

    def _kill_stream(self) -> str:
        return f"killed the stream job, process {kill_stream(self._settings)}"

    def _pause_redis(self) -> str:
        seconds = self._settings.console.redis_pause_s
        pause_redis(self._settings, seconds)
        return f"Redis paused for {seconds:g} s"

    def _resend(self) -> str:
        return f"sent {resend(self._settings.kafka, RESENT_EVENTS)} events a second time"


def kill_stream(settings: Settings) -> int:
    """SIGKILL the stream job of this home's stack, which the supervisor restarts; its process id.

    Raises NotRunning if no stack runs from this home, or the job does not run.
    """
    record = StackRecord.read(settings.home)
    if record is None or not StackRecord.is_fresh(settings.home):
        raise NotRunning(
            "no stack runs from this home: only `afterclick up` restarts the stream job"
        )
    part = record.part("stream")
    if part is None or part.pid is None:
        raise NotRunning(_NO_JOB)
    try:
        os.kill(part.pid, signal.SIGKILL)
    except ProcessLookupError:
        raise NotRunning(_NO_JOB) from None
    return part.pid


def pause_redis(settings: Settings, seconds: float) -> None:
    """Block every Redis command for `seconds`. Raises Unavailable."""
    client = create_redis(settings.redis, socket_timeout=TIMEOUT_S)
    try:
        client.client_pause(int(seconds * 1000), all=True)
    except RedisError as error:
        raise redis_unavailable(error) from None
    finally:
        client.close()


def resend(kafka: KafkaSettings, count: int) -> int:
    """Produce the newest feedback records again, with the same event ids; their number.

    Raises Unavailable if Kafka does not accept them.
    """
    try:
        with KafkaLog(kafka, TIMEOUT_S) as log:
            messages = log.last(kafka.topics.feedback, count)
        producer = create_producer(kafka, {"enable.idempotence": True})
        for message in reversed(messages):
            partition = message.partition()
            assert partition is not None
            producer.produce(kafka.topics.feedback, message.value(), message.key(), partition)
        if producer.flush(TIMEOUT_S):
            raise Unavailable("Kafka does not accept events")
    except KafkaException as error:
        raise Unavailable(f"Kafka does not answer: {error.args[0]}") from None
    return len(messages)
