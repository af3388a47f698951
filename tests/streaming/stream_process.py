"""The stream job as a process to stop and kill, and a producer of events for it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import redis
from confluent_kafka import Producer

from afterclick.events import ImpressionEvent, InteractionEvent, encode
from afterclick.settings import Settings
from streaming.positions import applied_offsets, log_ranges
from tests.waiting import wait_until


@dataclass
class StreamProcess:
    """`afterclick stream` with its own environment; its output is appended to `log`."""

    settings: Settings
    log: Path
    popen: subprocess.Popen[bytes] | None = None

    def start(self, **more: str) -> None:
        command = [sys.executable, "-c", "from infra.cli import main; main()", "stream"]
        with self.log.open("ab") as log:
            self.popen = subprocess.Popen(
                command,
                env=environment(self.settings) | more,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    @property
    def running(self) -> bool:
        return self.popen is not None and self.popen.poll() is None

    def kill(self) -> None:
        """SIGKILL the job and its descendants, as if the machine were lost."""
        assert self.popen
        family = psutil.Process(self.popen.pid).children(recursive=True) if self.running else []
        self.popen.kill()
        self.popen.wait()
        for process in family:
            with _gone_already():
                process.kill()
        psutil.wait_procs(family, timeout=10)

    def stop(self, timeout: float = 20.0) -> int:
        """SIGTERM, and the exit code."""
        assert self.popen
        self.popen.send_signal(signal.SIGTERM)
        return self.popen.wait(timeout)

    def wait_applied(self, timeout: float = 600.0) -> None:
        """Wait until the whole log is applied."""
        client: redis.Redis = redis.Redis.from_url(self.settings.redis.url)
        keys = self.settings.redis.keys

        def caught_up() -> bool:
            assert self.running, self.output()
            spans = log_ranges(self.settings.kafka)
            positions = applied_offsets(client, keys, spans)
            return all(positions[place] >= span.end - 1 for place, span in spans.items())

        wait_until(caught_up, timeout, every=0.2, what="the whole log to be applied")
        client.close()

    def output(self) -> str:
        """The log of all starts."""
        return self.log.read_text() if self.log.exists() else ""


@contextmanager
def _gone_already() -> Iterator[None]:
    try:
        yield
    except psutil.NoSuchProcess:
        return


def environment(settings: Settings) -> dict[str, str]:
    """The environment of a process with these settings."""
    prefix = "AFTERCLICK_"
    values = {
        "HOME": settings.home,
        "JARS": settings.jars,
        "KAFKA__BOOTSTRAP": settings.kafka.bootstrap,
        "KAFKA__PREFIX": settings.kafka.prefix,
        "KAFKA__PARTITIONS": settings.kafka.partitions,
        "REDIS__URL": settings.redis.url,
        "REDIS__PREFIX": settings.redis.prefix,
        "STREAM__BATCH_EVENTS": settings.stream.batch_events,
        "STREAM__ARCHIVE_SECONDS": "1",
        "STREAM__TRIGGER": "micro-batch",
    }
    return os.environ | {prefix + name: str(value) for name, value in values.items()}


def produce(
    settings: Settings,
    events: Iterable[InteractionEvent | ImpressionEvent | bytes],
    topic: str = "reviews",
) -> int:
    """Write events (or raw bytes) to a topic and wait for their acknowledgement; their number."""
    failed: list[object] = []
    producer = Producer(
        {"bootstrap.servers": settings.kafka.bootstrap, "enable.idempotence": True, "linger.ms": 5}
    )
    number = 0
    for one in events:
        number += 1
        raw, key = (one, None) if isinstance(one, bytes) else (encode(one), one.data.user_id)
        producer.produce(
            settings.kafka.prefix + topic,
            key=key,
            value=raw,
            on_delivery=lambda error, _: failed.append(error) if error else None,
        )
        producer.poll(0)
    assert producer.flush(30) == 0
    assert not failed, failed
    return number
