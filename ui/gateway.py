"""The pages' access to the API: the typed client with previews, and the WebSocket feeds.

reads   http       GET /popular, /similar-items, /search, /categories, /items/{id}, /models,
                   /exposure, /users/{id}/history, /requests, /dead-letters, /experiments;
                   POST /recommendations
        websocket  /ws/recommendations?user_id=U, /ws/live
writes  http       POST /feedback
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Generator, Mapping, Sequence
from contextlib import suppress
from urllib.parse import urlencode

import orjson
import structlog
from pydantic import ValidationError
from websockets.asyncio.client import ClientConnection, connect
from websockets.client import backoff
from websockets.exceptions import ConnectionClosed, InvalidURI

from afterclick.api import PushedList, Recommendations
from afterclick.arrays import Json
from afterclick.io.client import AsyncClient

log = structlog.get_logger()

_MAX_MESSAGE_BYTES = 2**22


class ShopClient(AsyncClient):
    """The API client without retries: pages show a failure and repeat the call later."""

    def __init__(self, url: str, key: str | None = None) -> None:
        super().__init__(url, key, attempts=1)

    async def preview(
        self, user_id: str, n: int, interests: Sequence[str] = (), policy: str | None = None
    ) -> Recommendations:
        """A user's list that is not counted as shown, ranked by `policy` if given."""
        return await self.recommendations(
            user_id, n, interests=interests, policy=policy, preview=True
        )

    async def explain_item(self, user_id: str, item_id: str) -> Recommendations:
        """A preview with this item only, and the user's actions that changed its score."""
        return await self.recommendations(
            user_id, 1, filters=[f"item:{item_id}"], preview=True, explain=True
        )


async def messages(
    url: str,
    headers: Mapping[str, str],
    on_open: Callable[[ClientConnection], None] = lambda socket: None,
) -> AsyncIterator[Json | None]:
    """JSON messages from `url`; None each time the connection is lost. Reconnects with back-off."""
    sockets = connect(
        url,
        max_size=_MAX_MESSAGE_BYTES,
        open_timeout=5,
        compression=None,
        additional_headers=headers,
        process_exception=_retry,
        reconnect_delays=_reconnect_delays,
    )
    async for socket in sockets:
        try:
            async with socket:
                on_open(socket)
                async for raw in socket:
                    yield orjson.loads(raw)
        except (ConnectionClosed, ValueError) as error:
            log.info("feed lost", url=url, error=str(error))
        yield None


def _reconnect_delays() -> Generator[float]:
    return backoff(initial_delay=0.25, min_delay=0.25, max_delay=5.0)


def _retry(error: Exception) -> Exception | None:
    """Retry everything except an invalid URL: also 401 and 403, while the API loads its keys."""
    return error if isinstance(error, InvalidURI) else None


class ListFeed:
    """A user's lists as the API pushes them."""

    def __init__(
        self, client: ShopClient, user_id: str, n: int, interests: tuple[str, ...] = ()
    ) -> None:
        query = [("user_id", user_id), ("n", str(n)), *(("interests", i) for i in interests)]
        self._url = f"{_websocket_url(client.url)}/ws/recommendations?{urlencode(query)}"
        self._headers = client.headers
        self._socket: ClientConnection | None = None

    async def lists(self) -> AsyncIterator[PushedList | None]:
        """The list each time it changes; None each time the connection is lost."""
        async for message in messages(self._url, self._headers, self._on_open):
            if message is None:
                yield None
            elif message.get("type") == "recommendations":
                try:
                    yield PushedList.model_validate(message)
                except ValidationError as error:
                    log.warning("invalid pushed list", error=str(error))

    async def report_seen(self, impression_id: str) -> None:
        """Tell the API that the user has seen a list; not if the connection was lost."""
        if self._socket is not None:
            with suppress(ConnectionClosed):
                seen = {"type": "seen", "impression_id": impression_id}
                await self._socket.send(orjson.dumps(seen).decode())

    def _on_open(self, socket: ClientConnection) -> None:
        self._socket = socket


async def live_messages(client: ShopClient) -> AsyncIterator[Json | None]:
    """Messages of /ws/live; None each time the connection is lost."""
    async for message in messages(f"{_websocket_url(client.url)}/ws/live", client.headers):
        yield message


def _websocket_url(api_url: str) -> str:
    return "ws" + api_url.rstrip("/").removeprefix("http")
