"""The admin console in a thread of the test, called over HTTP."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Any

import httpx2
import uvicorn

from afterclick.settings import Settings
from infra.console.admin_app import create_app
from serving.app import bind
from tests.waiting import PATIENCE_S, wait_until


class RunningConsole:
    """A served console on the port of its settings: `http` calls it."""

    def __init__(self, settings: Settings) -> None:
        console = settings.console
        self._socket = bind(console.host, console.port)
        self.url = console.url
        self.app = create_app(settings)
        self._server = uvicorn.Server(uvicorn.Config(self.app, log_level="warning"))
        self._thread = threading.Thread(
            target=self._server.run, args=([self._socket],), daemon=True
        )
        self.http = httpx2.Client(base_url=self.url, timeout=PATIENCE_S)

    def __enter__(self) -> RunningConsole:
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
        assert not self._thread.is_alive(), "the console did not stop"

    def state(self) -> dict[str, Any]:
        """GET /admin/console"""
        response = self.http.get("/admin/console")
        assert response.status_code == 200, response.text
        state: dict[str, Any] = response.json()
        return state

    def post(
        self, path: str, body: dict[str, Any] | None = None, status: int = 200
    ) -> dict[str, Any]:
        response = self.http.post(f"/admin/{path}", json=body or {})
        assert response.status_code == status, response.text
        answer: dict[str, Any] = response.json()
        return answer

    def finished(self, job: str, timeout: float = 180) -> dict[str, Any]:
        """The job after its end."""

        def ended() -> dict[str, Any] | None:
            state: dict[str, Any] | None = self.state()["jobs"].get(job)
            return state if state and state["state"] != "running" else None

        found: dict[str, Any] = wait_until(ended, timeout, what=job)
        return found
