"""The pages' access to the API: the typed client with previews, the WebSocket feeds, and the calls
as curl and Python code.

reads   http       GET /popular, /similar-items, /search, /categories, /items/{id}, /models,
                   /exposure, /users/{id}/history, /requests, /dead-letters, /experiments;
                   POST /recommendations
        websocket  /ws/recommendations?user_id=U, /ws/live
writes  http       POST /feedback
"""

from __future__ import annotations

import json
import shlex
from collections.abc import AsyncIterator, Callable, Generator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
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


KEY = "AFTERCLICK_UI__API_KEY"
"""Environment variable with the API key that the snippets use."""


@dataclass(frozen=True)
class Snippet:
    """One call."""

    title: str
    curl: str
    python: str


@dataclass(frozen=True)
class Endpoint:
    """URL of the API, and whether it requires a key. The key itself is never shown."""

    url: str
    keyed: bool = False

    @property
    def curl(self) -> str:
        """The curl command, with the key if required."""
        return f'curl -s -H "authorization: Bearer ${KEY}"' if self.keyed else "curl -s"

    @property
    def imports(self) -> str:
        return "import json, os, urllib.request" if self.keyed else "import json, urllib.request"

    def headers(self, **values: str) -> str:
        """Source code of a dict of headers."""
        rows = [f"{name.replace('_', '-')!r}: {value!r}" for name, value in values.items()]
        if self.keyed:
            rows.append(f"'authorization': 'Bearer ' + os.environ[{KEY!r}]")
        return "{" + ", ".join(rows) + "}"


def list_snippet(api: Endpoint, user_id: str, n: int, interests: Sequence[str]) -> Snippet:
    """The list of the page."""
    query = urlencode(
        [("user_id", user_id), ("n", n), *(("interests", interest) for interest in interests)]
    )
    url = f"{api.url}/recommendations?{query}"
    call = f"urllib.request.Request({url!r}, headers={api.headers()})" if api.keyed else repr(url)
    return Snippet(
        "This list",
        f"{api.curl} {shlex.quote(url)}",
        f"{api.imports}\n\n"
        f"with urllib.request.urlopen({call}) as response:\n"
        "    for item in json.load(response)['items']:\n"
        "        name = item['title'] or item['item_id']\n"
        "        print(round(item['score'], 3), name, item['reason'])\n",
    )


def feedback_snippet(api: Endpoint, user_id: str, item_id: str) -> Snippet:
    """A like of an item."""
    body: Json = {"user_id": user_id, "item_id": item_id, "action": "like"}
    return Snippet(
        "A like",
        f"{api.curl} {shlex.quote(f'{api.url}/feedback')} -H 'content-type: application/json' "
        f"-d {shlex.quote(json.dumps(body))}",
        f"{api.imports}\n\n"
        f"request = urllib.request.Request({f'{api.url}/feedback'!r}, method='POST',\n"
        f"    headers={api.headers(content_type='application/json')},\n"
        f"    data=json.dumps({body!r}).encode())\n"
        "print(json.load(urllib.request.urlopen(request)))\n",
    )


def watch_snippet(api: Endpoint, user_id: str) -> Snippet:
    """The list, after each change."""
    url = (
        "ws"
        + api.url.removeprefix("http")
        + "/ws/recommendations?"
        + urlencode({"user_id": user_id})
    )
    headers = f", additional_headers={api.headers()}" if api.keyed else ""
    command = f"python -m websockets {shlex.quote(url)}"
    return Snippet(
        "Watch the list",
        "# use the Python code: this client cannot send a key" if api.keyed else command,
        f"import asyncio, json{', os' if api.keyed else ''}\n"
        "from websockets.asyncio.client import connect\n\n\n"
        "async def main():\n"
        f"    async with connect({url!r}{headers}) as socket:\n"
        "        async for message in socket:\n"
        "            pushed = json.loads(message)\n"
        "            print(pushed['cause'], [item['item_id'] for item in pushed['items']])\n"
        "            seen = {'type': 'seen', 'impression_id': pushed['impression_id']}\n"
        "            await socket.send(json.dumps(seen))  # now it counts as shown\n\n\n"
        "asyncio.run(main())\n",
    )
