"""The API in a thread of the test, on a free port, called over HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx2
import orjson
from websockets.sync.client import ClientConnection

from afterclick.events import new_id
from afterclick.settings import KafkaSettings, RedisSettings, Settings
from serving.app import bind, config_of
from serving.service import Service, ServingTimings
from tests.server_thread import ServerThread
from tests.waiting import PATIENCE_S, REDIS_S, wait_until

SETTLE_S = 2.0
"""Experiments count a reaction this soon: long after its impression, on one machine."""
NEVER_SHED_MS = 1e6
"""Disables load shedding, so that a slow machine still returns full lists."""


class Running(ServerThread):
    """A served API; `service` gives access to its state."""

    def __init__(
        self,
        settings: Settings,
        port: int = 0,
        shed_after_ms: float = NEVER_SHED_MS,
        timings: ServingTimings | None = None,
    ) -> None:
        serving = settings.serving.model_copy(update={"shed_after_ms": shed_after_ms})
        timings = timings or ServingTimings(settle_s=SETTLE_S)
        config = config_of(settings.model_copy(update={"serving": serving}), timings)
        super().__init__(config, bind("127.0.0.1", port))
        self.ws = f"ws://127.0.0.1:{self.port}"
        self.service: Service = config.app.state.service  # type: ignore[union-attr]

    def get(self, path: str, **query: Any) -> dict[str, Any]:
        """The JSON body of a response, which must be 200."""
        response = self.http.get(path, params=query)
        assert response.status_code == 200, (response.status_code, response.text)
        body: dict[str, Any] = response.json()
        return body

    def list_for(self, user_id: str, n: int = 10, **query: Any) -> dict[str, Any]:
        """A user's list; its scores, order and contributions are checked."""
        body = self.get("/recommendations", user_id=user_id, n=n, **query)
        for item in body["items"]:
            assert abs(sum(item["contributions"].values()) - item["score"]) < 1e-6, item
        scores = [item["score"] for item in body["items"]]
        assert scores == sorted(scores, reverse=True)
        assert len({item["item_id"] for item in body["items"]}) == len(body["items"])
        return body

    def feedback(self, user_id: str, item_id: str, action: str = "like", **more: Any) -> str:
        """Send feedback, repeated after 503; returns its log position."""
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

    def figures(self) -> dict[str, Any]:
        """The current live statistics."""
        stats = self.service.stats
        return stats.now([stats.of_worker()])

    def ready(self) -> None:
        """Wait until the trends are loaded."""
        wait_until(lambda: self.http.get("/health/ready").status_code == 200)


def received(socket: ClientConnection) -> dict[str, Any]:
    """The next message of a WebSocket."""
    message: dict[str, Any] = orjson.loads(socket.recv(PATIENCE_S))
    return message


def ids(body: dict[str, Any]) -> list[str]:
    """The item ids of a list, in order."""
    return [item["item_id"] for item in body["items"]]


def kinds(body: dict[str, Any]) -> set[str]:
    """The kinds of a list's items: `camera` of `camera-3`."""
    return {item.split("-")[0] for item in ids(body)}


def after(api: Running, user: str, position: str) -> dict[str, Any]:
    """The user's list with the event at `position` applied."""

    def fresh() -> dict[str, Any] | None:
        body = api.list_for(user, after=position)
        return body if body["fresh"] else None

    body = wait_until(fresh)
    partition, offset = position.rsplit("/", 1)
    assert body["as_of"][partition] >= int(offset)
    return body


def installation(broker: str, redis_url: str, home: Path, redis_s: float = REDIS_S) -> Settings:
    """Settings with new topic and key prefixes on the given servers."""
    unique = uuid4().hex[:8]
    return Settings(
        home=home,
        kafka=KafkaSettings(bootstrap=broker, prefix=f"f{unique}-", partitions=2),
        redis=RedisSettings(url=redis_url, prefix=f"f{unique}:", timeout_s=redis_s),
    )
