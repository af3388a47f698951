"""The API in a thread of the test, on a free port, with real HTTP between."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Any

import httpx2
import orjson
import uvicorn
from websockets.sync.client import ClientConnection

from afterclick.events import new_id
from afterclick.settings import Settings
from serving.app import bind, config_of
from serving.service import Service, ServingTimings
from tests.waiting import PATIENCE_S, wait_until

NEVER_SHED_MS = 1e6
"""The tests' machine may be slow: lists are made in full all the same."""


class Running:
    """A served application: `get` and `post` speak to it, `service` is its inside."""

    def __init__(
        self,
        settings: Settings,
        port: int = 0,
        shed_after_ms: float = NEVER_SHED_MS,
        timings: ServingTimings | None = None,
    ) -> None:
        serving = settings.serving.model_copy(update={"shed_after_ms": shed_after_ms})
        settings = settings.model_copy(update={"serving": serving})
        self._socket = bind("127.0.0.1", port)
        self.port: int = self._socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.ws = f"ws://127.0.0.1:{self.port}"
        config = config_of(settings, timings)
        self.service: Service = config.app.state.service  # type: ignore[union-attr]
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._server.run, args=([self._socket],), daemon=True
        )
        self.http = httpx2.Client(base_url=self.url, timeout=PATIENCE_S)

    def __enter__(self) -> Running:
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
        assert not self._thread.is_alive(), "the server did not stop"

    def get(self, path: str, **query: Any) -> dict[str, Any]:
        """The JSON of a 200 answer."""
        response = self.http.get(path, params=query)
        assert response.status_code == 200, (response.status_code, response.text)
        body: dict[str, Any] = response.json()
        return body

    def list_for(self, user_id: str, n: int = 10, **query: Any) -> dict[str, Any]:
        """A user's recommendations, with its receipt checked."""
        body = self.get("/recommendations", user_id=user_id, n=n, **query)
        for item in body["items"]:
            assert abs(sum(item["contributions"].values()) - item["score"]) < 1e-6, item
        scores = [item["score"] for item in body["items"]]
        assert scores == sorted(scores, reverse=True)
        assert len({item["item_id"] for item in body["items"]}) == len(body["items"])
        return body

    def tell(self, user_id: str, item_id: str, action: str = "like", **more: Any) -> str:
        """Send feedback, again while Kafka is too slow to take it; the position it was given."""
        body = {
            "user_id": user_id,
            "item_id": item_id,
            "action": action,
            "event_id": new_id(),
            **more,
        }

        def answer() -> httpx2.Response | None:
            response = self.http.post("/feedback", json=body)
            return None if response.status_code == 503 else response

        response = wait_until(answer, what="Kafka takes feedback")
        assert response.status_code == 202, (response.status_code, response.text)
        position: str = response.json()["position"]
        return position

    def ready(self) -> None:
        """Wait until the trends are loaded."""
        wait_until(lambda: self.http.get("/health/ready").status_code == 200)


def received(socket: ClientConnection) -> dict[str, Any]:
    """The next message of a WebSocket."""
    message: dict[str, Any] = orjson.loads(socket.recv(PATIENCE_S))
    return message
