"""What benches start for themselves, Kafka, Valkey, an API process; and how they wait for something."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2

from afterclick.errors import Unavailable
from afterclick.settings import KafkaSettings, RedisSettings, Settings
from infra.embedded.jars import KAFKA, ensure_jars
from infra.embedded.kafka import KafkaServer
from infra.embedded.ports import LOOPBACK, free_port
from infra.embedded.process import Process
from infra.embedded.valkey import ValkeyServer
from infra.topics_admin import ensure_topics

API = ("-m", "infra", "serve")
READY_S = 300
"""How long an API may take until its model serves: of a million items it has gigabytes to check."""


@dataclass(frozen=True)
class Servers:
    """Kafka and Valkey with the topics, and settings that lead there."""

    settings: Settings
    kafka: KafkaServer
    valkey: ValkeyServer


@contextmanager
def own_servers(jars: Path) -> Iterator[Servers]:
    """Kafka and Valkey on free ports in a temporary folder, for the time of a `with`."""
    with tempfile.TemporaryDirectory(
        prefix="afterclick-bench-", ignore_cleanup_errors=True
    ) as folder:
        home = Path(folder)
        kafka, valkey = (
            KafkaServer(home / "kafka", ensure_jars(jars, KAFKA)),
            ValkeyServer(home / "valkey"),
        )
        try:
            kafka.start()
            valkey.start()
            settings = Settings(
                home=home,
                jars=jars,
                kafka=KafkaSettings(bootstrap=kafka.address),
                redis=RedisSettings(url=valkey.address),
            )
            ensure_topics(settings)
            yield Servers(settings, kafka, valkey)
        finally:
            kafka.kill()
            valkey.kill()


def environment(settings: Settings) -> dict[str, str]:
    """The environment that gives a process these settings."""
    values = {
        "HOME": settings.home,
        "JARS": settings.jars,
        "KAFKA__BOOTSTRAP": settings.kafka.bootstrap,
        "KAFKA__PARTITIONS": settings.kafka.partitions,
        "REDIS__URL": settings.redis.url,
    }
    return os.environ | {f"AFTERCLICK_{name}": str(value) for name, value in values.items()}


def answers(port: int) -> bool:
    """Whether the API of a port is alive."""
    try:
        return httpx2.get(f"http://{LOOPBACK}:{port}/health/live", timeout=2).status_code == 200
    except httpx2.HTTPError:
        return False


@contextmanager
def running_api(
    settings: Settings, command: tuple[str, ...] = API, ready: Callable[[int], bool] = answers
) -> Iterator[tuple[int, int]]:
    """An API process for the time of a `with`, once `ready` says so of its port: its port and process id."""
    port = free_port()
    env = environment(settings) | {"AFTERCLICK_SERVING__PORT": str(port)}
    process = Process("API", [sys.executable, *command], settings.home / f"api-{port}.log", env)
    process.start()
    try:
        process.wait_ready(lambda: ready(port), READY_S)
        assert process.pid is not None
        yield port, process.pid
    finally:
        process.stop()


def wait(
    condition: Callable[[], bool], what: str, timeout_s: float, log: Path | None = None
) -> float:
    """Wait until a condition holds; the seconds it took. Raises Unavailable, which names `what` and `log`."""
    started = time.monotonic()
    while not condition():
        if time.monotonic() - started > timeout_s:
            raise Unavailable(
                f"waited {timeout_s:.0f} s for {what}" + (f"; see {log}" if log else "")
            )
        time.sleep(0.05)
    return time.monotonic() - started
