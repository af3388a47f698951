"""The calls behind what is on the screen, ready to paste: curl and Python."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlencode

from afterclick.arrays import Json

KEY = "AFTERCLICK_UI__API_KEY"
"""The variable in which a snippet expects the key."""


@dataclass(frozen=True)
class Snippet:
    """One call."""

    title: str
    curl: str
    python: str


@dataclass(frozen=True)
class Endpoint:
    """Where the API answers, and whether it asks for a key; the key itself is never shown."""

    url: str
    keyed: bool = False

    @property
    def curl(self) -> str:
        """`curl`, with the key where one is needed."""
        return f'curl -s -H "authorization: Bearer ${KEY}"' if self.keyed else "curl -s"

    @property
    def imports(self) -> str:
        return "import json, os, urllib.request" if self.keyed else "import json, urllib.request"

    def headers(self, **more: str) -> str:
        """A Python dict of headers, as source."""
        rows = [f"{name.replace('_', '-')!r}: {value!r}" for name, value in more.items()]
        if self.keyed:
            rows.append(f"'authorization': 'Bearer ' + os.environ[{KEY!r}]")
        return "{" + ", ".join(rows) + "}"


def list_snippet(api: Endpoint, user_id: str, n: int, interests: Sequence[str]) -> Snippet:
    """The list on the screen."""
    query = urlencode(
        [("user_id", user_id), ("n", n), *(("interests", taste) for taste in interests)]
    )
    url = f"{api.url}/recommendations?{query}"
    call = f"urllib.request.Request({url!r}, headers={api.headers()})" if api.keyed else repr(url)
    return Snippet(
        "This list",
        f"{api.curl} {shlex.quote(url)}",
        f"{api.imports}\n\n"
        f"with urllib.request.urlopen({call}) as response:\n"
        "    for item in json.load(response)['items']:\n"
        "        print(round(item['score'], 3), item['title'] or item['item_id'], item['reason'])\n",
    )


def feedback_snippet(api: Endpoint, user_id: str, item_id: str) -> Snippet:
    """A like of the first item."""
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
    """The list each time it changes."""
    url = (
        "ws"
        + api.url.removeprefix("http")
        + "/ws/recommendations?"
        + urlencode({"user_id": user_id})
    )
    more = f", additional_headers={api.headers()}" if api.keyed else ""
    plain = f"python -m websockets {shlex.quote(url)}"
    return Snippet(
        "Watch it change",
        "# see the Python call: this client sends no key" if api.keyed else plain,
        f"import asyncio, json{', os' if api.keyed else ''}\n"
        "from websockets.asyncio.client import connect\n\n\n"
        "async def main():\n"
        f"    async with connect({url!r}{more}) as socket:\n"
        "        async for message in socket:\n"
        "            pushed = json.loads(message)\n"
        "            print(pushed['cause'], [item['item_id'] for item in pushed['items']])\n\n\n"
        "asyncio.run(main())\n",
    )
