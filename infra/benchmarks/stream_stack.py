"""A stack of a bench's own: Kafka, Valkey, and the stream job as a process that can be killed.

reads   redis  {p:<topic>:<partition>}:position
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import redis

from afterclick.errors import Unavailable
from afterclick.io.kafka_log import lag
from afterclick.settings import Settings
from infra.benchmarks.servers import environment, own_servers, wait
from infra.embedded.kafka import KafkaServer
from infra.embedded.valkey import ValkeyServer
from streaming.positions import applied_offsets, log_ranges, topic_partitions


@dataclass
class StreamJob:
    """`afterclick stream` as a process; its output is appended to `log`."""

    settings: Settings
    log: Path
    env: dict[str, str] = field(default_factory=dict)
    popen: subprocess.Popen[bytes] | None = None
    _log_start: int = field(default=0, init=False)

    @property
    def running(self) -> bool:
        return self.popen is not None and self.popen.poll() is None

    @property
    def pid(self) -> int | None:
        return self.popen.pid if self.popen else None

    @property
    def code(self) -> int | None:
        """The exit code; None while it runs or was never started."""
        return self.popen.poll() if self.popen else None

    def start(self, **more: str) -> None:
        command = [sys.executable, "-m", "infra", "stream"]
        self._log_start = len(self.printed())
        with self.log.open("ab") as log:
            self.popen = subprocess.Popen(
                command,
                env=environment(self.settings) | self.env | more,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def family(self) -> list[psutil.Process]:
        """The job's process and every one under it."""
        if self.popen is None or not self.running:
            return []
        job = psutil.Process(self.popen.pid)
        return [job, *job.children(recursive=True)]

    def kill(self) -> None:
        """SIGKILL all of it at once, as when a machine goes away."""
        family = self.family()
        for process in family:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        if self.popen is not None:
            self.popen.wait()
        psutil.wait_procs(family, timeout=10)

    def stop(self) -> None:
        """SIGTERM; SIGKILL where that does not do."""
        if self.popen is None or not self.running:
            return
        self.popen.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self.popen.wait(20)
        self.kill()

    def printed(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def printed_since_start(self) -> str:
        return self.printed()[self._log_start :]

    def cpu_s(self) -> float:
        """CPU seconds that the living processes of the job have used."""
        total = 0.0
        for process in self.family():
            with suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                total += times.user + times.system
        return total


@dataclass
class Stack:
    """What a bench runs on."""

    settings: Settings
    kafka: KafkaServer
    valkey: ValkeyServer
    job: StreamJob

    def client(self) -> redis.Redis:
        return redis.Redis.from_url(self.settings.redis.url, socket_timeout=30)

    def behind(self) -> int:
        """Records of the log that the state has not applied yet; −1 where it cannot be asked now."""
        try:
            with self.client() as client:
                at = applied_offsets(
                    client, self.settings.redis.keys, topic_partitions(self.settings.kafka)
                )
            return lag(log_ranges(self.settings.kafka), at)
        except (Unavailable, redis.RedisError, ValueError):
            return -1

    def wait_caught_up(self, timeout_s: float = 300.0) -> float:
        """Wait until the state has the whole log; the seconds it took."""
        return self.wait(lambda: self.behind() == 0, "the stream to catch up", timeout_s)

    def wait(self, condition: Callable[[], bool], what: str, timeout_s: float = 300.0) -> float:
        """Wait until a condition holds; the seconds it took."""
        return wait(condition, what, timeout_s, self.job.log)


@contextmanager
def own_stack(jars: Path, **env: str) -> Iterator[Stack]:
    """Kafka and Valkey on free ports in a temporary folder, the topics, and a stream job not yet started.

    The job runs micro-batches unless `env`, or what it is started with, says otherwise.
    """
    env = {"AFTERCLICK_STREAM__TRIGGER": "micro-batch"} | env
    with own_servers(jars) as servers:
        job = StreamJob(servers.settings, servers.settings.home / "stream.log", env)
        try:
            yield Stack(servers.settings, servers.kafka, servers.valkey, job)
        finally:
            job.kill()
