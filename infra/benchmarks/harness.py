"""What benchmarks run on: their own Kafka and Valkey, a stream job, an API with a synthetic shop.

reads   redis  {p:<topic>:<partition>}:position, running
writes  topic  state-changes (ShopTraffic)
        redis  {u:<user>}:history, {p:<topic>:<partition>}:position (ShopTraffic)
"""

from __future__ import annotations

import tempfile
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import psutil
import redis
from confluent_kafka import Producer
from prometheus_client.parser import text_string_to_metric_families

from afterclick.errors import Unavailable
from afterclick.events import Action
from afterclick.io.kafka_clients import create_producer
from afterclick.io.kafka_log import lag
from afterclick.io.redis_clients import create_redis
from afterclick.settings import Settings
from afterclick.state import Effect, HistoryEntry, StateChange
from infra.benchmarks import synthetic
from infra.benchmarks.synthetic import SyntheticShop
from infra.embedded.java import KAFKA, ensure_jars
from infra.embedded.kafka import KafkaServer, ensure_topics
from infra.embedded.process import Process, afterclick_command
from infra.embedded.server import LOOPBACK, ValkeyServer, free_port
from infra.stack.services import process_family
from streaming.lease import running_job
from streaming.positions import applied_offsets, log_ranges, topic_partitions

Figures = dict[str, Any]
"""What a benchmark prints with `--json`."""

PERCENTILES = {"p50": 50.0, "p95": 95.0, "p99": 99.0, "p999": 99.9}
READY_S = 300
"""Timeout of an API's start: checking a model of a million items takes minutes."""


class Benchmark(ABC):
    """A measurement. Its fields are its options."""

    @abstractmethod
    def run(self, settings: Settings) -> Figures:
        """Measure on own servers, with `settings` as the base of theirs."""


def percentiles(
    values: Sequence[float], names: Mapping[str, float] = PERCENTILES, digits: int = 2
) -> dict[str, float]:
    """Name → percentile; NaN without values."""
    return {
        name: round(float(np.percentile(values, q)), digits) if len(values) else float("nan")
        for name, q in names.items()
    }


def load_average() -> list[float]:
    """The machine's load over 1, 5 and 15 minutes."""
    return [round(value, 1) for value in psutil.getloadavg()]


def wait_for(
    condition: Callable[[], bool], what: str, timeout_s: float, log: Path | None = None
) -> float:
    """Wait until a condition is true; returns the seconds. Raises Unavailable."""
    started = time.monotonic()
    while not condition():
        if time.monotonic() - started > timeout_s:
            details = f"; see {log}" if log else ""
            raise Unavailable(f"waited {timeout_s:.0f} s for {what}{details}")
        time.sleep(0.05)
    return time.monotonic() - started


@dataclass(frozen=True)
class Servers:
    """Kafka with the topics, Valkey, and the settings to reach them."""

    settings: Settings
    kafka: KafkaServer
    valkey: ValkeyServer


@contextmanager
def own_servers(base: Settings, broker: type[KafkaServer] = KafkaServer) -> Iterator[Servers]:
    """Kafka and Valkey on free ports in a temporary home, during a `with`."""
    with tempfile.TemporaryDirectory(
        prefix="afterclick-bench-", ignore_cleanup_errors=True
    ) as folder:
        home = Path(folder)
        kafka = broker(home / "kafka", ensure_jars(base.jars, KAFKA))
        client = kafka.client_settings
        valkey = ValkeyServer(home / "valkey")
        settings = base.model_copy(
            update={
                "home": home,
                "kafka": base.kafka.model_copy(
                    update={name: getattr(client, name) for name in client.model_fields_set}
                ),
                "redis": base.redis.model_copy(update={"url": valkey.address}),
            }
        )
        try:
            kafka.start()
            valkey.start()
            ensure_topics(settings)
            yield Servers(settings, kafka, valkey)
        finally:
            kafka.kill()
            valkey.kill()


@dataclass
class StreamJob:
    """`afterclick stream` as a process. `env` is added to its environment at each start."""

    settings: Settings
    env: Mapping[str, str] = field(default_factory=dict)
    process: Process = field(init=False)
    _base_env: dict[str, str] = field(init=False)
    _log_start: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.process = afterclick_command(self.settings, "stream", "stream")
        self._base_env = dict(self.process.env) | dict(self.env)

    @property
    def running(self) -> bool:
        return self.process.running

    @property
    def pid(self) -> int | None:
        return self.process.pid

    def start(self, **env: str) -> None:
        self._log_start = len(self.printed())
        self.process.env = self._base_env | env
        self.process.start()

    def stop(self) -> None:
        """SIGTERM, then SIGKILL after 20 s."""
        self.process.stop(20.0)

    def kill(self) -> None:
        """SIGKILL the job and its workers, as if the machine were lost."""
        family = self._family()
        self.process.kill()
        psutil.wait_procs(family, timeout=10)

    def printed(self) -> str:
        log = self.process.log
        return log.read_text(errors="replace") if log.exists() else ""

    def printed_since_start(self) -> str:
        return self.printed()[self._log_start :]

    def cpu_s(self) -> float:
        """CPU seconds of the job's running processes."""
        total = 0.0
        for process in self._family():
            with suppress(psutil.NoSuchProcess):
                total += cpu_s(process)
        return total

    def _family(self) -> list[psutil.Process]:
        """The job's process and its descendants."""
        if not self.running or self.pid is None:
            return []
        job = psutil.Process(self.pid)
        return [job, *job.children(recursive=True)]


@dataclass
class Stack:
    """Servers and a stream job."""

    settings: Settings
    kafka: KafkaServer
    valkey: ValkeyServer
    job: StreamJob

    def client(self) -> redis.Redis:
        return create_redis(self.settings.redis, socket_timeout=30)

    def job_runs(self) -> bool:
        """Whether the queries of the job run (lease.running_job)."""
        with self.client() as client:
            owner = running_job(client, self.settings.redis.keys)
        return owner is not None and owner.split("/")[1] == str(self.job.pid)

    def lag(self) -> int:
        """Unapplied records of the log; −1 while Kafka or Redis is unavailable."""
        kafka, keys = self.settings.kafka, self.settings.redis.keys
        try:
            with self.client() as client:
                applied = applied_offsets(client, keys, topic_partitions(kafka))
            return lag(log_ranges(kafka), applied)
        except (Unavailable, redis.RedisError, ValueError):
            return -1

    def wait_caught_up(self, timeout_s: float = 900.0) -> float:
        """Wait until the whole log is applied; returns the seconds."""
        return self.wait(lambda: self.lag() == 0, "the stream to catch up", timeout_s)

    def wait(self, condition: Callable[[], bool], what: str, timeout_s: float = 300.0) -> float:
        """Wait until a condition is true; returns the seconds. Raises Unavailable."""
        return wait_for(condition, what, timeout_s, self.job.process.log)


@contextmanager
def own_stack(
    base: Settings, env: Mapping[str, str] | None = None, broker: type[KafkaServer] = KafkaServer
) -> Iterator[Stack]:
    """Servers during a `with`, and a stream job that is not started yet.

    The job runs micro-batches unless `env` sets another trigger.
    """
    with own_servers(base, broker) as servers:
        job_env = {"AFTERCLICK_STREAM__TRIGGER": "micro-batch", **(env or {})}
        job = StreamJob(servers.settings, job_env)
        try:
            yield Stack(servers.settings, servers.kafka, servers.valkey, job)
        finally:
            job.kill()


@dataclass(frozen=True)
class RunningApi:
    """An API process under test."""

    port: int
    process: psutil.Process
    workers: int = 1

    def rss_mb(self) -> int:
        """Resident memory, MiB; pages that workers share count for each of them."""
        return round(sum(each.memory_info().rss for each in self._family()) / 2**20)

    def worker_mb(self) -> float | None:
        """What a further worker takes: memory that only one of them uses, MiB, their mean."""
        _, *workers = self._family()
        if not workers:
            return None
        private = [worker.memory_full_info().uss for worker in workers]
        return round(float(np.mean(private)) / 2**20, 1)

    def cpu_s(self) -> float:
        """CPU seconds used so far."""
        return sum(map(cpu_s, self._family()))

    def _family(self) -> list[psutil.Process]:
        """The process, and its workers where there are several."""
        return process_family(self.process.pid)

    def health(self) -> dict[str, Any]:
        """The body of /health/ready; empty while it does not respond."""
        try:
            response = httpx2.get(f"http://{LOOPBACK}:{self.port}/health/ready", timeout=5)
            body: dict[str, Any] = response.json()
        except (httpx2.HTTPError, ValueError):
            return {}
        return body

    def model(self) -> str | None:
        """Version of the served model, if any."""
        health = self.health()
        return health.get("parts", health).get("model") or None

    def serves(self, items: int = 0) -> bool:
        """Whether it is ready with a model, `items` items and their metadata."""
        health = self.health()
        parts = health.get("parts", health)
        rows = parts.get("workers", [parts])
        known = min(int(row.get(name, 0)) for row in rows for name in ("catalogue", "items"))
        models = all(row.get("model") for row in rows)
        ready = health.get("status") == "ready" and len(rows) == self.workers
        return ready and models and known >= items

    def metric(self, name: str, **labels: str) -> int:
        """A Prometheus counter or gauge, summed over the labels not given."""
        text = httpx2.get(f"http://{LOOPBACK}:{self.port}/metrics", timeout=30).text
        return round(
            sum(
                sample.value
                for family in text_string_to_metric_families(text)
                for sample in family.samples
                if sample.name == name and labels.items() <= sample.labels.items()
            )
        )


def responds(api: RunningApi) -> bool:
    """Whether the API is live."""
    try:
        return httpx2.get(f"http://{LOOPBACK}:{api.port}/health/live", timeout=2).is_success
    except httpx2.HTTPError:
        return False


@contextmanager
def running_api(
    settings: Settings,
    ready: Callable[[RunningApi], bool] = responds,
    module: Sequence[str] = ("infra", "serve"),
) -> Iterator[RunningApi]:
    """An API process during a `with`, from the time that `ready` is true."""
    port = free_port()
    serving = settings.serving.model_copy(update={"port": port})
    own = settings.model_copy(update={"serving": serving})
    process = afterclick_command(own, f"api-{port}", "serve")
    process.command = [process.command[0], "-m", *module]
    process.start()
    try:
        assert process.pid is not None
        api = RunningApi(port, psutil.Process(process.pid), settings.serving.workers)
        process.wait_ready(lambda: ready(api), READY_S)
        yield api
    finally:
        process.stop()


def served_shop(settings: Settings, described: int = 0) -> AbstractContextManager[RunningApi]:
    """`running_api` that waits for a model and the metadata of `described` items."""
    return running_api(settings, lambda api: api.serves(described))


def cpu_s(process: psutil.Process) -> float:
    """CPU seconds used by a process."""
    times = process.cpu_times()
    return float(times.user + times.system)


@dataclass
class ShopTraffic:
    """State changes of a synthetic shop: likes, in the histories and on `state-changes`."""

    settings: Settings
    shop: SyntheticShop
    _offset: int = synthetic.APPLIED_OFFSET
    _producer: Producer = field(init=False)

    def __post_init__(self) -> None:
        self._producer = create_producer(self.settings.kafka, {"linger.ms": 0})

    @contextmanager
    def running(self, per_s: float) -> Iterator[None]:
        """Change histories and trends at a steady rate, during a `with`."""
        stop = threading.Event()
        thread = threading.Thread(target=self._run, args=(per_s, stop), daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join(5)

    def publish_like(self, user_id: str, item_id: str) -> str:
        """Write a like to `state-changes` at the next offset of `reviews`; returns its event id."""
        self._offset += 1
        now = time.time() * 1000
        change = StateChange(
            user_id=user_id,
            item_id=item_id,
            action=Action.LIKE,
            event_id=f"c{self._offset}",
            time_ms=int(now),
            topic=self.settings.kafka.topics.reviews,
            partition=0,
            offset=self._offset,
            effect=Effect.APPLIED,
            weight=2.0,
            first_user_item=True,
            log_ms=now,
            read_ms=now,
            applied_ms=now,
        )
        topic = self.settings.kafka.topics.state_changes
        self._producer.produce(topic, change.encode(), user_id, partition=0)
        self._producer.poll(0)
        return change.event_id

    def flush(self) -> None:
        self._producer.flush(5)

    def _run(self, per_s: float, stop: threading.Event) -> None:
        rng, keys = np.random.default_rng(11), self.settings.redis.keys
        topic = self.settings.kafka.topics.reviews
        with create_redis(self.settings.redis) as client:
            while per_s and not stop.wait(1 / per_s):
                user = str(rng.choice(self.shop.users))
                item = self.shop.items[int(self.shop.draw(rng, 1)[0])]
                now, key = int(time.time() * 1000), keys.history(user)
                event_id = f"c{self._offset + 1}"
                entry = HistoryEntry(event_id, item, Action.LIKE, None, now)
                client.zadd(key, {entry.member(): now})
                client.zremrangebyrank(key, 0, -synthetic.HISTORY_LENGTH - 1)
                client.set(keys.applied_offset(topic, 0), self._offset + 1)
                self.publish_like(user, item)
        self.flush()
