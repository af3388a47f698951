"""What a list of the API takes alone, and while people watch: sockets alone, then pages in a real browser.

Part of `afterclick bench ui`. The viewers' lists change meanwhile, in all three cases alike. The browser
runs on the same processors as everything else, so what it adds is an upper bound.
"""

from __future__ import annotations

import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson
from websockets.sync.client import ClientConnection, connect

from afterclick import events

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext

ASKS = 200
PAUSE_S = 0.05
CHANGES_EVERY = 5
"""After so many lists, one of the viewers likes something."""


def measure(context: BrowserContext, pages_url: str, api_url: str, viewers: int) -> dict[str, Any]:
    """Milliseconds of `ASKS` lists: alone, beside as many sockets as viewers, beside as many open pages."""
    names = [f"viewer-{events.new_id()[:8]}" for _ in range(viewers)]
    alone = _lists(api_url, names)
    with _sockets(api_url, names):
        sockets = _lists(api_url, names)
    for n, name in enumerate(names):
        page = context.new_page()
        page.goto(f"{pages_url}/live" if n % 2 else f"{pages_url}/?user={name}")
        page.locator(".ac-tile, .ac-card").first.wait_for()
    pages = _lists(api_url, names)
    return {
        "viewers": viewers,
        "alone_ms": alone,
        "beside_sockets_ms": sockets,
        "beside_pages_ms": pages,
    }


def _lists(api_url: str, names: list[str]) -> dict[str, float]:
    """Ask for lists at a steady pace, and let a viewer like something now and then."""
    took: list[float] = []
    for n in range(ASKS):
        name = names[n % len(names)]
        began = time.perf_counter()
        body = _call(f"{api_url}/recommendations?user_id={name}&preview=true")
        took.append((time.perf_counter() - began) * 1000)
        if n % CHANGES_EVERY == 0:
            deed = {"user_id": name, "item_id": body["items"][0]["item_id"], "action": "like"}
            _call(f"{api_url}/feedback", orjson.dumps(deed))
        time.sleep(PAUSE_S)
    return {f"p{q}": round(float(np.percentile(took, q)), 1) for q in (50, 95, 99)}


def _call(url: str, body: bytes | None = None) -> Any:
    request = urllib.request.Request(url, data=body, headers={"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=20) as response:
        return orjson.loads(response.read())


@contextmanager
def _sockets(api_url: str, names: list[str]) -> Iterator[None]:
    """What so many browsers would have open: each its list, and one in two the live figures; all read."""
    base = "ws" + api_url.removeprefix("http")
    urls = [f"{base}/ws/recommendations?user_id={name}" for name in names]
    urls += [f"{base}/ws/live"] * (len(names) // 2)
    with ExitStack() as stack:
        for url in urls:
            socket = stack.enter_context(connect(url, open_timeout=30, max_size=2**22))
            threading.Thread(target=_read, args=(socket,), daemon=True).start()
        yield


def _read(socket: ClientConnection) -> None:
    for _ in socket:
        pass
