"""What the API pushes, as async iterators that reconnect for ever.

reads   websocket  /ws/recommendations?user_id=U, /ws/live
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from urllib.parse import urlencode

import orjson
import structlog
from pydantic import ValidationError
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidURI

from afterclick.api import PushedList
from afterclick.arrays import Json
from ui.api import Api

log = structlog.get_logger()

_FIRST_PAUSE_S = 0.25
_LONGEST_PAUSE_S = 5.0


async def messages(url: str, headers: Mapping[str, str]) -> AsyncIterator[Json | None]:
    """Every JSON message that comes from `url`; None each time the connection is lost. Never ends."""
    pause = _FIRST_PAUSE_S
    while True:
        try:
            async with connect(
                url, max_size=2**22, open_timeout=5, compression=None, additional_headers=headers
            ) as socket:
                pause = _FIRST_PAUSE_S
                async for raw in socket:
                    yield orjson.loads(raw)
        except (OSError, TimeoutError, ConnectionClosed, InvalidHandshake, ValueError) as error:
            log.info("feed lost", url=url, error=str(error) or type(error).__name__)
        except InvalidURI:
            raise
        yield None
        await asyncio.sleep(pause)
        pause = min(pause * 2, _LONGEST_PAUSE_S)


async def pushed_lists(
    api: Api, user_id: str, n: int, interests: tuple[str, ...] = ()
) -> AsyncIterator[PushedList | None]:
    """The user's list each time it changes; None while the connection is lost."""
    query = [
        ("user_id", user_id),
        ("n", str(n)),
        *(("interests", interest) for interest in interests),
    ]
    async for message in messages(
        f"{_ws(api.url)}/ws/recommendations?{urlencode(query)}", api.headers
    ):
        if message is None:
            yield None
        elif message.get("type") == "recommendations":
            try:
                yield PushedList.model_validate(message)
            except ValidationError as error:
                log.warning("a pushed list could not be read", error=str(error))


async def live_messages(api: Api) -> AsyncIterator[Json | None]:
    """Everything on /ws/live; None while the connection is lost."""
    async for message in messages(f"{_ws(api.url)}/ws/live", api.headers):
        yield message


def _ws(api_url: str) -> str:
    return "ws" + api_url.rstrip("/").removeprefix("http")
