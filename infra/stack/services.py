"""The processes of a stack, their ports, and their readiness checks."""

from __future__ import annotations

import re
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psutil
import redis

from afterclick.errors import BadInput, Unavailable, redact
from afterclick.io.background import HEARTBEAT_LIMIT_S
from afterclick.io.home import PartRecord, TrainingStatus
from afterclick.io.redis_clients import create_redis
from afterclick.settings import Settings
from infra.embedded.java import KAFKA, ensure_jars
from infra.embedded.kafka import KafkaServer
from infra.embedded.process import Process, afterclick_command
from infra.embedded.server import EmbeddedServer, ValkeyServer, is_free

_LOOPBACK = {"127.0.0.1", "localhost", "::1"}
_ADDRESS = re.compile(
    r"^AFTERCLICK_(HOME|JARS|KAFKA__BOOTSTRAP|REDIS__URL|\w+__PORT|UI__(API|CONSOLE)_URL)$"
).match
_MAX_PAUSE_S = 30.0
_HEALTHY_S = 60.0
OnOutput = Callable[[str], None] | None


class State(StrEnum):
    """The state of a service."""

    WAITING = "waiting"
    STARTING = "starting"
    READY = "ready"
    RESTARTING = "restarting"
    STOPPED = "stopped"


@dataclass
class ManagedService:
    """A process that the supervisor keeps running."""

    name: str
    process: Process
    ready: Callable[[], bool]
    warn_after_s: float = 60.0
    url: str | None = None
    port: int | None = None
    prepare: Callable[[], None] = lambda: None
    essential: bool = False
    """The stack fails if this service cannot start."""
    heartbeat_s: Callable[[], float | None] = lambda: None
    """Seconds since its last heartbeat, if it has one."""
    state: State = State.WAITING
    restarts: int = 0
    _failures: int = field(default=0, init=False)
    _started: float = field(default=0.0, init=False)

    def launch(self) -> None:
        """Start the process; `prepare` has run."""
        self.state = State.STARTING
        self._started = time.monotonic()
        self.process.start()

    def pause_after_crash(self) -> float:
        """Count a crash; the seconds until the next start: 0.5, 1, 2, … 30."""
        healthy = time.monotonic() - self._started > _HEALTHY_S
        self._failures = 1 if healthy else self._failures + 1
        self.state = State.RESTARTING
        self.restarts += 1
        return min(_MAX_PAUSE_S, 0.25 * 2.0**self._failures)

    def record(self) -> PartRecord:
        pid = self.process.pid if self.process.running else None
        return PartRecord(
            name=self.name,
            state=str(self.state),
            pid=pid,
            port=self.port,
            url=self.url,
            restarts=self.restarts,
            log=str(self.process.log),
            memory_mib=memory_mib(pid),
            heartbeat_s=self.heartbeat_s(),
            frozen=self.frozen,
        )

    @property
    def frozen(self) -> bool:
        """Whether it is ready, but its last heartbeat is too long ago."""
        age_s = self.heartbeat_s() if self.state is State.READY else None
        return age_s is not None and age_s > HEARTBEAT_LIMIT_S


@dataclass(frozen=True)
class Topology:
    """The settings of one stack: its home is absolute, its ports are moved by an offset."""

    settings: Settings

    @classmethod
    def of(cls, settings: Settings, port_offset: int = 0) -> Topology:
        """Raises BadInput for ports that collide or exceed 65535."""
        base = cls(settings.model_copy(update={"home": settings.home.absolute()}))
        ports = [port + port_offset for port, _ in base.listeners]
        if len(set(ports)) < len(ports) or not all(0 < port < 65536 for port in ports):
            raise BadInput(f"the ports of the stack must differ and lie in 1…65535: {ports}")
        return cls(_linked(_moved(base, port_offset)))

    @property
    def home(self) -> Path:
        return self.settings.home

    @property
    def kafka_port(self) -> int | None:
        """The port of the embedded Kafka; None: the settings name others, or have a password."""
        kafka = self.settings.kafka
        host, _, port = kafka.bootstrap.partition(":")
        embedded = host in _LOOPBACK and kafka.security_protocol == "PLAINTEXT"
        return int(port) if embedded and "," not in port else None

    @property
    def redis_port(self) -> int | None:
        """The port of the embedded Valkey; None: the URL is of another, or has a password."""
        url = urlsplit(self.settings.redis.url)
        embedded = url.scheme == "redis" and url.hostname in _LOOPBACK and "@" not in url.netloc
        return (url.port or 6379) if embedded else None

    @property
    def listeners(self) -> list[tuple[int, str]]:
        """Every port of this stack, with the name of its service."""
        found = [
            (self.settings.serving.port, "the API"),
            (self.settings.console.port, "the admin console"),
            (self.settings.ui.port, "the page"),
        ]
        if self.kafka_port:
            found += [(self.kafka_port, "Kafka"), (self.kafka_port + 1, "Kafka's controller")]
        if self.redis_port:
            found.append((self.redis_port, "Valkey"))
        return found

    @property
    def addresses(self) -> dict[str, str]:
        """The variables by which other processes reach this stack, without passwords."""
        variables = self.settings.environment()
        return {name: redact(value) for name, value in variables.items() if _ADDRESS(name)}

    def require_free_ports(self) -> None:
        """Raise Unavailable for a port that is in use, with the process that uses it."""
        for port, name in self.listeners:
            if not is_free(port):
                raise Unavailable(
                    f"port {port} ({name}) is in use{_user_of(port)}: stop that process, or move "
                    "this stack with `--port-offset 1000`"
                )

    def command(self, name: str, *arguments: str, on_output: OnOutput = None) -> Process:
        """An `afterclick` command with the settings of this stack."""
        return afterclick_command(self.settings, name, *arguments, on_output=on_output)

    def servers(self) -> list[ManagedService]:
        """Kafka and Valkey, unless the settings name others."""
        servers: list[EmbeddedServer] = []
        if self.kafka_port:
            jars = ensure_jars(self.settings.jars, KAFKA)
            folder = self.home / "kafka"
            servers.append(KafkaServer(folder, jars, self.kafka_port, self.kafka_port + 1))
        if self.redis_port:
            servers.append(ValkeyServer(self.home / "valkey", self.redis_port))
        return [
            ManagedService(
                server.name.lower(),
                server.process,
                server.ready,
                url=server.address,
                port=server.port,
                prepare=server.prepare,
                essential=True,
            )
            for server in servers
        ]

    def applications(self, retrain: bool = False) -> list[ManagedService]:
        """The API, the admin console, the stream job, the pages and optionally training."""
        settings = self.settings
        services = [
            self._web("serve", settings.serving.url),
            self._web("console", settings.console.url),
            self._stream(),
            self._web("ui", settings.ui.url),
        ]
        if retrain:
            ready = partial(_is_scheduling, settings.home)
            services.append(
                ManagedService(
                    "retrain",
                    self.command("retrain", "retrain"),
                    ready,
                    heartbeat_s=partial(TrainingStatus.seconds_since_write, settings.home),
                )
            )
        return services

    def _web(self, name: str, url: str) -> ManagedService:
        ready = partial(http_ok, f"{url}/health/live")
        return ManagedService(
            name, self.command(name, name), ready, url=url, port=urlsplit(url).port
        )

    def _stream(self) -> ManagedService:
        process = self.command("stream", "stream")
        ready = partial(_runs_queries, self.settings, process)
        return ManagedService("stream", process, ready, warn_after_s=120)


def memory_mib(pid: int | None) -> float | None:
    """Resident memory of a process and all of its children, MiB; None after its end."""
    family, total = process_family(pid), 0
    for member in family:
        try:
            total += member.memory_info().rss
        except psutil.Error:
            continue
    return round(total / 2**20, 1) if family else None


def process_family(pid: int | None) -> list[psutil.Process]:
    """A process and all of its children; none after its end."""
    if pid is None:
        return []
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.Error:
        return []


def http_ok(url: str, timeout_s: float = 1.0) -> bool:
    """Whether a GET returns a status below 400."""
    try:
        with urllib.request.urlopen(url, timeout=timeout_s) as response:
            return int(response.status) < 400
    except (OSError, ValueError):
        return False


def _runs_queries(settings: Settings, job: Process) -> bool:
    """Whether this stream job has marked its queries as running."""
    client = create_redis(
        settings.redis, socket_timeout=1, socket_connect_timeout=1, decode_responses=True
    )
    try:
        owner = client.get(settings.redis.keys.running)
    except redis.RedisError:
        return False
    finally:
        client.close()
    return owner is not None and str(owner).split("/")[1] == str(job.pid)


def _is_scheduling(home: Path) -> bool:
    """Whether the schedule runs: an older file is of an earlier process."""
    status, age_s = TrainingStatus.read(home), TrainingStatus.seconds_since_write(home)
    fresh = age_s is not None and age_s < HEARTBEAT_LIMIT_S
    return fresh and status is not None and status.state != "stopped"


def _moved(topology: Topology, offset: int) -> Settings:
    settings = topology.settings
    update: dict[str, object] = {}
    for name in ("serving", "console", "ui"):
        section = getattr(settings, name)
        update[name] = section.model_copy(update={"port": section.port + offset})
    if topology.kafka_port:
        host = settings.kafka.bootstrap.partition(":")[0]
        bootstrap = f"{host}:{topology.kafka_port + offset}"
        update["kafka"] = settings.kafka.model_copy(update={"bootstrap": bootstrap})
    if topology.redis_port:
        url = urlsplit(settings.redis.url)
        netloc = f"{url.hostname}:{topology.redis_port + offset}"
        moved = {"url": urlunsplit(url._replace(netloc=netloc))}
        update["redis"] = settings.redis.model_copy(update=moved)
    return settings.model_copy(update=update)


def _linked(settings: Settings) -> Settings:
    """Point the pages to the API and the console of this stack."""
    urls = {"api_url": settings.serving.url, "console_url": settings.console.url}
    return settings.model_copy(update={"ui": settings.ui.model_copy(update=urls)})


def _user_of(port: int) -> str:
    """' by redis-server (pid 7)', or an empty string if the system does not report it."""
    try:
        for connection in psutil.net_connections("tcp"):
            if connection.laddr and connection.laddr.port == port and connection.status == "LISTEN":
                pid = connection.pid
                name = psutil.Process(pid).name() if pid else "another user's process"
                return f" by {name} (pid {pid})"
    except psutil.Error:
        pass
    return ""
