"""Compose the stack, run it and measure its progress; stop it from another shell.

reads   topic  reviews, feedback (end offsets)
        redis  {p:<topic>:<partition>}:position, archived
        http   GET /health/ready
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
import urllib.request
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import psutil
import redis
import structlog
from rich.console import Console

from afterclick.errors import AlreadyRunning, Unavailable
from afterclick.io.background import BackgroundLoop
from afterclick.io.files import file_lock, private_folder
from afterclick.io.home import StackProgress, StackRecord
from afterclick.io.kafka_log import KafkaLog
from afterclick.io.redis_clients import create_redis
from afterclick.redis_keys import Keys
from afterclick.settings import Settings
from afterclick.state import TopicPartition
from infra.embedded.kafka import ensure_topics
from infra.stack.services import Topology
from infra.stack.status import LOCK, DemoStep, Display, running_stack
from infra.stack.supervisor import Supervisor

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
    private_folder(topology.home)
    with file_lock(topology.home / LOCK, str(os.getpid()), _busy(topology.home)):
        topology.require_free_ports()
        asyncio.run(_Stack(topology, options).run())


def down(home: Path, timeout_s: float) -> int | None:
    """Stop the stack of this home and wait for its end; its process id, None if none runs.

    Raises Unavailable if it still runs after `timeout_s`.
    """
    pid = running_stack(home)
    if pid is None:
        return None
    with suppress(ProcessLookupError):
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
        began = _process_began()
        self.display = Display(Console(), began)
        self.probe = ProgressProbe(topology.settings)
        self.supervisor = Supervisor(
            topology.servers(), topology.applications(options.retrain), self.display.note, began
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
            milestones=dict(self.supervisor.milestones),
            figures=self.probe.latest,
        )


def _process_began() -> float:
    """When this process started, by the monotonic clock: imports and the dataset count, too."""
    return time.monotonic() - (time.time() - psutil.Process().create_time())


def _busy(home: Path) -> str:
    return (
        f"a stack runs already in {home} (pid {running_stack(home)}): see `afterclick status`, "
        "stop it with `afterclick down`"
    )


log = structlog.get_logger()
_TIMEOUT_S = 5.0


class ProgressProbe:
    """Keeps one connection per server; a server that does not answer counts as zero."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._log = KafkaLog(settings.kafka, _TIMEOUT_S)
        self._redis = create_redis(settings.redis, socket_timeout=2, socket_connect_timeout=2)
        self._previous: tuple[float, int] | None = None
        self.latest = StackProgress()
        """The newest reading."""

    def read(self) -> None:
        """Take a reading."""
        ends, parts = self._ends(), self._api_parts()
        events, applied = sum(ends.values()), self._applied(ends)
        self.latest = StackProgress(
            log_events=events,
            applied_events=applied,
            archived_events=self._archived(),
            lag=max(0, events - applied),
            events_per_s=round(self._rate(applied), 1),
            model_version=parts.get("model"),
            stalled=tuple(
                f"{what}{stall['partition']} at offset {stall['offset']} "
                f"for {stall['seconds']:.0f} s"
                for what, name in (("", "stalled"), ("archive, ", "archive_stalled"))
                for stall in parts.get(name, ())
            )
            + tuple(
                f"loop {frozen['loop']} for {frozen['seconds']:.0f} s"
                for frozen in parts.get("frozen", ())
            ),
        )

    def _ends(self) -> dict[TopicPartition, int]:
        try:
            ranges = self._log.ranges(*self._settings.kafka.topics.interactions)
        except Unavailable as error:
            log.debug("no end offsets", error=str(error))
            return {}
        return {partition: offsets.end for partition, offsets in ranges.items()}

    def _applied(self, partitions: Iterable[TopicPartition]) -> int:
        keys = [self._settings.redis.keys.applied_offset(*partition) for partition in partitions]
        if not keys:
            return 0
        try:
            offsets = self._redis.mget(keys)
        except redis.RedisError as error:
            log.debug("no applied offsets", error=str(error))
            return 0
        return sum(int(offset) + 1 for offset in offsets if offset is not None)

    def _archived(self) -> int:
        try:
            return archived(self._redis, self._settings.redis.keys)
        except redis.RedisError as error:
            log.debug("no archived offsets", error=str(error))
            return 0

    def _api_parts(self) -> dict[str, Any]:
        """`parts` of /health/ready; empty while the API does not respond."""
        url = f"{self._settings.serving.url}/health/ready"
        with (
            suppress(OSError, ValueError, KeyError),
            urllib.request.urlopen(url, timeout=1) as response,
        ):
            parts: dict[str, Any] = json.load(response)["parts"]
            return parts
        return {}

    def _rate(self, applied: int) -> float:
        now = time.monotonic()
        previous, self._previous = self._previous, (now, applied)
        if previous is None or now <= previous[0]:
            return 0.0
        return max(0.0, (applied - previous[1]) / (now - previous[0]))


def archived(client: redis.Redis, keys: Keys) -> int:
    """Records that the archive query has passed. Raises redis.RedisError."""
    offsets: Any = client.hgetall(keys.archived)
    return sum(int(offset) + 1 for offset in offsets.values())
