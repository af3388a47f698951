"""Which parts the stack has, on which ports, and what each child is told about the others."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psutil

from afterclick.errors import BadInput, Unavailable
from afterclick.settings import Settings
from infra.embedded.ports import is_free

_LOOPBACK = {"127.0.0.1", "localhost", "::1"}


@dataclass(frozen=True)
class Layout:
    """The settings of one stack, its home absolute and its ports moved."""

    settings: Settings

    @property
    def home(self) -> Path:
        return self.settings.home

    @property
    def kafka_port(self) -> int | None:
        """The port of the embedded Kafka; None where the settings name brokers elsewhere."""
        host, _, port = self.settings.kafka.bootstrap.partition(":")
        return int(port) if host in _LOOPBACK and "," not in port else None

    @property
    def redis_port(self) -> int | None:
        """The port of the embedded Valkey; None where the settings name a server elsewhere."""
        url = urlsplit(self.settings.redis.url)
        return (url.port or 6379) if url.scheme == "redis" and url.hostname in _LOOPBACK else None

    @property
    def api_url(self) -> str:
        return f"http://{_reachable(self.settings.serving.host)}:{self.settings.serving.port}"

    @property
    def ui_url(self) -> str:
        return f"http://{_reachable(self.settings.ui.host)}:{self.settings.ui.port}"

    @property
    def listeners(self) -> list[tuple[int, str]]:
        """Every port this stack listens on, with the name of the part."""
        found = [(self.settings.serving.port, "the API"), (self.settings.ui.port, "the page")]
        if self.kafka_port:
            found += [(self.kafka_port, "Kafka"), (self.kafka_port + 1, "Kafka's controller")]
        if self.redis_port:
            found.append((self.redis_port, "Valkey"))
        return found

    @property
    def env(self) -> Mapping[str, str]:
        """What every child is told: where everything is."""
        settings = self.settings
        return {
            "AFTERCLICK_HOME": str(settings.home),
            "AFTERCLICK_JARS": str(settings.jars),
            "AFTERCLICK_KAFKA__BOOTSTRAP": settings.kafka.bootstrap,
            "AFTERCLICK_REDIS__URL": settings.redis.url,
            "AFTERCLICK_SERVING__PORT": str(settings.serving.port),
            "AFTERCLICK_SERVING__BREAK_IT": str(settings.serving.break_it).lower(),
            "AFTERCLICK_SERVING__QUARANTINE_SLACK": str(settings.serving.quarantine_slack),
            "AFTERCLICK_UI__PORT": str(settings.ui.port),
            "AFTERCLICK_UI__API_URL": settings.ui.api_url,
            "PYSPARK_PYTHON": sys.executable,
            "PYSPARK_DRIVER_PYTHON": sys.executable,
            "PYTHONUNBUFFERED": "1",
            "SPARK_LOCAL_IP": "127.0.0.1",
        }


def lay_out(settings: Settings, port_offset: int = 0) -> Layout:
    """The layout for these settings, each local port moved by `port_offset`. Raises BadInput past 65535."""
    layout = Layout(settings.model_copy(update={"home": settings.home.absolute()}))
    ports = [port + port_offset for port, _ in layout.listeners]
    if len(set(ports)) < len(ports) or not all(0 < port < 65536 for port in ports):
        raise BadInput(f"the ports of the stack must differ and lie in 1…65535: {ports}")
    return Layout(_moved(layout, port_offset)) if port_offset else layout


def require_free_ports(layout: Layout) -> None:
    """Raise Unavailable, naming who has it, when a port of the stack is taken."""
    for port, name in layout.listeners:
        if not is_free(port):
            raise Unavailable(
                f"port {port} ({name}) is taken{_owner(port)}: stop that, or move this stack with "
                "`--port-offset 1000`"
            )


def _moved(layout: Layout, offset: int) -> Settings:
    settings = layout.settings
    kafka, redis = settings.kafka, settings.redis
    if layout.kafka_port:
        bootstrap = f"{kafka.bootstrap.partition(':')[0]}:{layout.kafka_port + offset}"
        kafka = kafka.model_copy(update={"bootstrap": bootstrap})
    if layout.redis_port:
        url = urlsplit(redis.url)
        credentials, at, _ = url.netloc.rpartition("@")
        netloc = f"{credentials}{at}{url.hostname}:{layout.redis_port + offset}"
        redis = redis.model_copy(update={"url": urlunsplit(url._replace(netloc=netloc))})
    serving = settings.serving.model_copy(update={"port": settings.serving.port + offset})
    moved = Layout(settings.model_copy(update={"serving": serving}))
    ui = settings.ui.model_copy(
        update={"port": settings.ui.port + offset, "api_url": moved.api_url}
    )
    return moved.settings.model_copy(update={"kafka": kafka, "redis": redis, "ui": ui})


def _reachable(host: str) -> str:
    return "127.0.0.1" if host in {"0.0.0.0", "::"} else host


def _owner(port: int) -> str:
    """' by redis-server (pid 7)', or nothing where the system does not tell."""
    try:
        for connection in psutil.net_connections("tcp"):
            if connection.laddr and connection.laddr.port == port and connection.status == "LISTEN":
                name = (
                    psutil.Process(connection.pid).name()
                    if connection.pid
                    else "another user's process"
                )
                return f" by {name} (pid {connection.pid})"
    except psutil.Error:
        pass
    return ""
