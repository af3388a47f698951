"""What the embedded servers have in common: one process, whose port and data survive restarts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from infra.embedded.ports import free_port
from infra.embedded.process import Process


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
        """Start and wait until it answers."""
        self.prepare()
        self.process.start()
        self.process.wait_ready(self.ready, timeout_s)

    def stop(self) -> None:
        """End it in order: what it holds in memory is written."""
        self.process.stop()

    def kill(self) -> None:
        """SIGKILL, as in a crash."""
        self.process.kill()
