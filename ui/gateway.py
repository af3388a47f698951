"""The pages' access to the API: the typed client with previews, and the WebSocket feeds.

reads   http       GET /popular, /similar-items, /search, /categories, /items/{id}, /models,
                   /exposure, /users/{id}/history, /requests, /dead-letters, /experiments;
                   POST /recommendations
        websocket  /ws/recommendations?user_id=U, /ws/live
writes  http       POST /feedback
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Generator, Mapping, Sequence
from urllib.parse import urlencode

import orjson
import structlog
from pydantic import ValidationError
from websockets.asyncio.client import connect
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


async def messages(url: str, headers: Mapping[str, str]) -> AsyncIterator[Json | None]:
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


async def pushed_lists(
    client: ShopClient, user_id: str, n: int, interests: tuple[str, ...] = ()
) -> AsyncIterator[PushedList | None]:
    """The user's list each time it changes; None each time the connection is lost."""
    query = [
        ("user_id", user_id),
        ("n", str(n)),
        *(("interests", interest) for interest in interests),
    ]
    url = f"{_websocket_url(client.url)}/ws/recommendations?{urlencode(query)}"
    async for message in messages(url, client.headers):
        if message is None:
            yield None
        elif message.get("type") == "recommendations":
            try:
                yield PushedList.model_validate(message)
            except ValidationError as error:
                log.warning("invalid pushed list", error=str(error))


async def live_messages(client: ShopClient) -> AsyncIterator[Json | None]:
    """Messages of /ws/live; None each time the connection is lost."""
    async for message in messages(f"{_websocket_url(client.url)}/ws/live", client.headers):
        yield message


def _websocket_url(api_url: str) -> str:
    return "ws" + api_url.rstrip("/").removeprefix("http")
