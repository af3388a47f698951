"""The calls behind what is on the screen, ready to paste: curl and Python."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlencode

from ui.api_types import JsonObject


@dataclass(frozen=True)
class Snippet:
    """One call."""

    title: str
    curl: str
    python: str


def list_snippet(api_url: str, user_id: str, n: int, interests: Sequence[str]) -> Snippet:
    """The list on the screen."""
    query = urlencode([("user_id", user_id), ("n", n), *(("interests", taste) for taste in interests)])
    url = f"{api_url}/recommendations?{query}"
    return Snippet(
        "This list",
        f"curl -s {shlex.quote(url)}",
        "import json, urllib.request\n\n"
        f"with urllib.request.urlopen({url!r}) as response:\n"
        "    for item in json.load(response)['items']:\n"
        "        print(round(item['score'], 3), item['title'] or item['item_id'], item['reason'])\n",
    )


def feedback_snippet(api_url: str, user_id: str, item_id: str) -> Snippet:
    """A like of the first item."""
    body: JsonObject = {"user_id": user_id, "item_id": item_id, "action": "like"}
    return Snippet(
        "A like",
        f"curl -s {shlex.quote(f'{api_url}/feedback')} -H 'content-type: application/json' "
        f"-d {shlex.quote(json.dumps(body))}",
        "import json, urllib.request\n\n"
        f"request = urllib.request.Request({f'{api_url}/feedback'!r}, method='POST',\n"
        "    headers={'content-type': 'application/json'},\n"
        f"    data=json.dumps({body!r}).encode())\n"
        "print(json.load(urllib.request.urlopen(request)))\n",
    )


def watch_snippet(api_url: str, user_id: str) -> Snippet:
    """The list each time it changes."""
    url = "ws" + api_url.removeprefix("http") + "/ws/recommendations?" + urlencode({"user_id": user_id})
    return Snippet(
        "Watch it change",
        f"python -m websockets {shlex.quote(url)}",
        "import asyncio, json\nfrom websockets.asyncio.client import connect\n\n\n"
        "async def main():\n"
        f"    async with connect({url!r}) as socket:\n"
        "        async for message in socket:\n"
        "            pushed = json.loads(message)\n"
        "            print(pushed['cause'], [item['item_id'] for item in pushed['items']])\n\n\n"
        "asyncio.run(main())\n",
    )
