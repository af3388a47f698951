"""Which parts the stack has, on which ports, and what each child is told about the others."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psutil

from afterclick.errors import BadInput, Unavailable
from afterclick.settings import Settings
from infra.embedded.ports import is_free

_ADDRESS = re.compile(
    r"^AFTERCLICK_(HOME|JARS|KAFKA__BOOTSTRAP|REDIS__URL|\w+__PORT|UI__(API|CONSOLE)_URL)$"
).match
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
        return self.settings.serving.url

    @property
    def ui_url(self) -> str:
        return f"http://{_reachable(self.settings.ui.host)}:{self.settings.ui.port}"

    @property
    def listeners(self) -> list[tuple[int, str]]:
        """Every port this stack listens on, with the name of the part."""
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


def addresses(settings: Settings) -> dict[str, str]:
    """The variables that lead other processes to this stack; no secrets but those of its URLs."""
    variables = settings.environment()
    return {name: value for name, value in variables.items() if _ADDRESS(name)}


def lay_out(settings: Settings, port_offset: int = 0) -> Layout:
    """The layout for these settings, each local port moved by `port_offset`. Raises BadInput past 65535."""
    layout = Layout(settings.model_copy(update={"home": settings.home.absolute()}))
    ports = [port + port_offset for port, _ in layout.listeners]
    if len(set(ports)) < len(ports) or not all(0 < port < 65536 for port in ports):
        raise BadInput(f"the ports of the stack must differ and lie in 1…65535: {ports}")
    return Layout(_linked(_moved(layout, port_offset) if port_offset else layout.settings))


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
    console = settings.console.model_copy(update={"port": settings.console.port + offset})
    ui = settings.ui.model_copy(update={"port": settings.ui.port + offset})
    servers = {"kafka": kafka, "redis": redis}
    return settings.model_copy(update={**servers, "serving": serving, "console": console, "ui": ui})


def _linked(settings: Settings) -> Settings:
    """The pages call the API and the console of this stack."""
    urls = {"api_url": settings.serving.url, "console_url": settings.console.url}
    return settings.model_copy(update={"ui": settings.ui.model_copy(update=urls)})


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
