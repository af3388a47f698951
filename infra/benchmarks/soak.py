"""`afterclick bench soak`: a whole stack under traffic, kills, trainings and erasures.

Runs `afterclick up` with a home folder and ports of its own. The users and items are few and the
ledger is short, so that the state stops growing within minutes: memory that grows after the first
third of the time is a leak. The folders of the log grow with each event.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import orjson
import psutil
import pyarrow.csv as csv
import structlog

from afterclick.errors import Unavailable
from afterclick.io.background import BackgroundLoop
from afterclick.io.home import StackRecord
from afterclick.io.kafka_log import KafkaLog
from afterclick.settings import Settings
from infra.benchmarks.faults.fault_case import lost_events
from infra.benchmarks.harness import Benchmark, Figures, wait_for
from infra.benchmarks.model_swap import archived_events, run_command
from infra.benchmarks.soak_slopes import GrowthSamples
from infra.benchmarks.soak_traffic import SoakTraffic, TrafficPlan
from infra.embedded.process import Process, afterclick_command
from infra.embedded.server import free_port
from infra.stack.services import process_family
from infra.stack.status import read_record
from ingest.generate import ShopConfig, generate_shop
from streaming.proof.reconcile import reconcile

log = structlog.get_logger()
SHOP = ShopConfig(users=400, items=200, events=8_000, days=90)
VICTIMS = ("stream", "valkey", "serve", "kafka")
"""Services that are killed in turn."""
LEDGER_LENGTH = 100
"""Event ids kept per user: more than a user sends while an event is sent again."""
_SAMPLE_S = 5.0
_GARBAGE_S = 30.0
_TICK_S = 0.2
_READY_S = 300.0
_FIRST, _LAST = 0.05, 0.85
"""Share of the time before the first, and after which no more, kills, trainings and erasures."""


@dataclass
class SoakStack:
    """`afterclick up` as a process."""

    settings: Settings
    process: Process

    def record(self) -> StackRecord:
        return read_record(self.settings.home)

    def ready(self) -> bool:
        parts = self.record().parts
        return bool(parts) and all(part.state == "ready" for part in parts)

    def kill(self, name: str) -> float:
        """SIGKILL a service; the seconds until another process of it is ready."""
        wait_for(self.ready, "every service to be ready", _READY_S, self.process.log)
        killed = self.record().part(name)
        assert killed is not None
        assert killed.pid is not None
        os.kill(killed.pid, signal.SIGKILL)

        def is_back() -> bool:
            part = self.record().part(name)
            return part is not None and part.pid not in (killed.pid, None) and self.ready()

        return wait_for(is_back, f"{name} to be ready again", _READY_S, self.process.log)


@contextmanager
def _running_stack(base: Settings) -> Iterator[SoakStack]:
    """A stack on free ports with a temporary home folder, during a `with`."""
    with tempfile.TemporaryDirectory(
        prefix="afterclick-bench-", ignore_cleanup_errors=True
    ) as folder:
        settings = _own_settings(base, Path(folder))
        stack = SoakStack(settings, afterclick_command(settings, "up", "up"))
        stack.process.start()
        try:
            stack.process.wait_ready(stack.ready, _READY_S)
            yield stack
        finally:
            stack.process.stop(60.0)


def _own_settings(base: Settings, home: Path) -> Settings:
    """A small training, a short ledger, free ports."""
    sections = {name: getattr(base, name) for name in ("serving", "console", "ui")}
    update: dict[str, object] = {
        name: section.model_copy(update={"port": free_port()}) for name, section in sections.items()
    }
    kafka, valkey = free_port(together=2), free_port()
    update["kafka"] = base.kafka.model_copy(update={"bootstrap": f"127.0.0.1:{kafka}"})
    update["redis"] = base.redis.model_copy(update={"url": f"redis://127.0.0.1:{valkey}/0"})
    update["stream"] = base.stream.model_copy(update={"ledger_length": LEDGER_LENGTH})
    update["training"] = base.training.model_copy(
        update={"preset": "fast", "tower_epochs": 1, "ncf_epochs": 0, "rank": 16, "memory": "1g"}
    )
    return base.model_copy(update={"home": home, **update})


@dataclass
class _Disturbances:
    """Kills, trainings and erasures in turn, each at its time."""

    stack: SoakStack
    users: list[str]
    counts: Counter[str] = field(default_factory=Counter)
    recovery_s: list[float] = field(default_factory=list)
    _commands: list[tuple[str, Process]] = field(default_factory=list)

    def run(self, kind: str) -> None:
        """Kill a service and wait for it, or start a command."""
        number = self.counts[kind]
        self.counts[kind] += 1
        if kind == "kills":
            victim = VICTIMS[number % len(VICTIMS)]
            seconds = self.stack.kill(victim)
            self.recovery_s.append(seconds)
            log.info("killed", service=victim, recovery_s=round(seconds, 1))
        elif kind == "retrainings":
            self._start(kind, "train")
        else:
            self._start(kind, "forget", self.users[number % len(self.users)])

    def _start(self, kind: str, *arguments: str) -> None:
        name = f"{arguments[0]}-{self.counts[kind]}"
        process = afterclick_command(self.stack.settings, name, *arguments)
        process.start()
        self._commands.append((kind, process))

    def collect(self) -> None:
        """Count the commands that have ended with an error: a server was killed meanwhile."""
        for kind, process in [each for each in self._commands if not each[1].running]:
            self._commands.remove((kind, process))
            failed = process.wait() != 0
            self.counts[f"failed_{kind}"] += failed
            log.info("command ended", kind=kind, failed=failed, end=process.tail(1)[-200:])

    def finish(self) -> None:
        """Wait for the commands."""
        wait_for(self._all_ended, "the commands to end", 900)

    def _all_ended(self) -> bool:
        self.collect()
        return not self._commands


@dataclass(frozen=True)
class SoakBenchmark(Benchmark):
    minutes: float = 30.0
    """Of traffic; the first training comes before."""
    events_per_s: float = 30.0
    lists_per_s: float = 15.0
    sockets: int = 10
    users: int = 100
    kills: int = 8
    retrainings: int = 2
    erasures: int = 3

    def run(self, settings: Settings) -> Figures:
        """Raises Unavailable without the JDK's jcmd."""
        if shutil.which("jcmd") is None:
            raise Unavailable("jcmd: not found; install a JDK (Debian: default-jdk-headless)")
        with _running_stack(settings) as stack:
            users, items = _first_model(stack)
            plan = TrafficPlan(
                users[: self.users], items, self.events_per_s, self.lists_per_s, self.sockets
            )
            samples = GrowthSamples(self.minutes * 60 / 3)
            disturbances = _Disturbances(stack, users)
            loops = (
                BackgroundLoop("samples", lambda: samples.take(stack.record()), _SAMPLE_S),
                BackgroundLoop("garbage", lambda: _collect_garbage(stack.record()), _GARBAGE_S),
            )
            with SoakTraffic(stack.settings.serving.port, plan) as traffic:
                for loop in loops:
                    loop.start()
                self._disturb(disturbances)
                for loop in loops:
                    loop.stop(10.0)
            disturbances.finish()
            return self._figures(stack, traffic, disturbances) | samples.figures()

    def _disturb(self, disturbances: _Disturbances) -> None:
        started, due = time.monotonic(), self._schedule()
        while (now := time.monotonic() - started) < self.minutes * 60:
            disturbances.collect()
            if due and now >= due[0][0]:
                disturbances.run(due.pop(0)[1])
            time.sleep(_TICK_S)

    def _schedule(self) -> list[tuple[float, str]]:
        """When (seconds) which kind of disturbance happens: each kind evenly spread."""
        times = []
        for kind in ("kills", "retrainings", "erasures"):
            count: int = getattr(self, kind)
            for n in range(count):
                share = _FIRST + (_LAST - _FIRST) * (n + 0.5) / count
                times.append((share * self.minutes * 60, kind))
        return sorted(times)

    def _figures(
        self, stack: SoakStack, traffic: SoakTraffic, disturbances: _Disturbances
    ) -> Figures:
        report = reconcile(stack.settings, wait_s=300)
        missing = len(traffic.acknowledged - _ids_in_log(stack.settings))
        counts = disturbances.counts
        return {
            "minutes": self.minutes,
            "events": len(traffic.acknowledged),
            "lost": missing + lost_events(report),
            "double": report.double,
            "differences": report.differences,
            "unacknowledged": traffic.unacknowledged,
            "lists": traffic.lists,
            "failed_lists": traffic.failed_lists,
            "pushes": traffic.pushes,
            **{kind: counts[kind] for kind in ("kills", "retrainings", "erasures")},
            "failed_retrainings": counts["failed_retrainings"],
            "failed_erasures": counts["failed_erasures"],
            "worst_recovery_s": round(max(disturbances.recovery_s, default=0.0), 1),
        }


def _first_model(stack: SoakStack) -> tuple[list[str], list[str]]:
    """Replay a generated shop and train; the ids of its users and items."""
    settings, shop = stack.settings, stack.settings.home / "shop"
    summary = generate_shop(shop, SHOP)
    run_command(settings, "ingest", "items", str(shop))
    run_command(settings, "ingest", "replay", str(shop))
    wait_for(lambda: archived_events(settings) >= summary.events, "the archive", 300)
    log.info("training the first model", events=summary.events)
    run_command(settings, "train")
    reviews = csv.read_csv(shop / "reviews.csv")
    users, items = (reviews[name].unique().to_pylist() for name in ("user_id", "item_id"))
    return sorted(users), sorted(items)


def _collect_garbage(record: StackRecord) -> None:
    """A full collection in each Java process: by itself, Java first grows the heap to its limit,
    which looks like a leak for half an hour.
    """
    for part in record.parts:
        for member in process_family(part.pid):
            with suppress(psutil.Error):  # killed meanwhile
                if member.name() == "java":
                    command = ["jcmd", str(member.pid), "GC.run"]
                    subprocess.run(command, check=False, capture_output=True)


def _ids_in_log(settings: Settings) -> set[str]:
    with KafkaLog(settings.kafka) as kafka_log:
        ranges = kafka_log.ranges(settings.kafka.topics.feedback)
        return {
            orjson.loads(message.value() or b"{}").get("id") for message in kafka_log.read(ranges)
        }
