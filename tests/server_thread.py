"""A uvicorn server in a thread of the test."""

from __future__ import annotations

import threading
from socket import socket
from types import TracebackType
from typing import Self

import httpx2
import uvicorn

from tests.waiting import PATIENCE_S, wait_until


class ServerThread:
    """Serves from entry to exit of the context; `http` calls it."""

    def __init__(self, config: uvicorn.Config, listener: socket) -> None:
        self.port: int = listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        # without a key the API requires JSON for every change, also without a body
        json = {"content-type": "application/json"}
        self.http = httpx2.Client(base_url=self.url, timeout=PATIENCE_S, headers=json)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([listener],), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        wait_until(lambda: self._server.started)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.http.close()
        self._server.should_exit = True
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive(), f"the server at {self.url} did not stop"
