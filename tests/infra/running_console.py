"""The admin console in a thread of the test, called over HTTP."""

from __future__ import annotations

from typing import Any

from afterclick.settings import Settings
from infra.console.admin_app import config_of
from serving.app import bind
from tests.server_thread import ServerThread
from tests.waiting import wait_until


class RunningConsole(ServerThread):
    """A served console on the port of its settings."""

    def __init__(self, settings: Settings) -> None:
        config = config_of(settings)
        self.app: Any = config.app
        super().__init__(config, bind(settings.console.host, settings.console.port))

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
