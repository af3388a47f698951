"""The API calls of the page as curl and Python code."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlencode

from afterclick.arrays import Json

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
