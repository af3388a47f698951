"""`afterclick bench ui`: from the click on Like to the changed grid on the screen, in a real
browser.

Starts its own Kafka, Valkey, stream job, API and pages, and clicks in Chromium. The page records
the time of each stage (all clocks are one machine's) and of the painted frame with the new list.
With `viewers`, it also measures list requests alone, with WebSocket viewers and with open pages;
browser and servers share the CPUs, so that the effect of pages is an upper bound.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx2
import numpy as np
import structlog
from websockets.sync.client import ClientConnection, connect

from afterclick import events
from afterclick.errors import Unavailable
from afterclick.events import Action, Interaction
from afterclick.io.kafka_clients import create_producer
from afterclick.settings import Settings
from infra.benchmarks.harness import (
    Benchmark,
    Figures,
    Stack,
    load_average,
    own_stack,
    percentiles,
    running_api,
)
from infra.benchmarks.synthetic import SyntheticShop, build_shop
from infra.embedded.process import afterclick_command
from infra.embedded.server import LOOPBACK, free_port

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext, Page

log = structlog.get_logger()
CHROMIUM_FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
WARM_UP = 8
"""Likes before the measured ones: the browser compiles, connections open."""
FIRST_PAINTS = 8
TIMEOUT_MS = 60_000.0
UI_READY_S = 60.0
QUANTILES = {"p50": 50.0, "p95": 95.0}
LIST_QUANTILES = {"p50": 50.0, "p95": 95.0, "p99": 99.0}
LISTS = 200
LIST_PAUSE_S = 0.05
LIKE_EVERY = 5
"""One viewer likes an item after this many list requests."""
SETTLED = "[...document.querySelectorAll('.ac-card')].every((card) => !card.getAnimations().length)"
FIRST_PAINT = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime"
STAGES = {
    "browser_to_page_server": ("clicked", "handled"),
    "page_server_to_log": ("handled", "log"),
    "log_to_state": ("log", "applied"),
    "state_to_pushed_list": ("applied", "pushed"),
    "push_to_page_server": ("pushed", "received"),
    "page_server": ("received", "shown"),
    "page_server_to_browser": ("shown", "got"),
    "change_of_the_page": ("got", "dom"),
    "wait_for_the_frame": ("dom", "frame"),
    "paint": ("frame", "painted"),
}


@dataclass(frozen=True)
class UiLatencyBenchmark(Benchmark):
    likes: int = 60
    items: int = 5_000
    reviews: int = 2_000
    trigger: str = "real-time"
    viewers: int = 0
    """Viewers during the list requests; 0 skips that part."""
    chromium: str = "chromium"

    def run(self, settings: Settings) -> Figures:
        with own_stack(settings, {"AFTERCLICK_STREAM__TRIGGER": self.trigger}) as stack:
            shop = build_shop(stack.settings, self.items, users=0, state=False)
            _publish_reviews(stack.settings, shop, self.reviews)
            stack.job.start()
            stack.wait_caught_up()
            with _pages(stack) as (url, api_url), _browser(self.chromium) as context:
                rows = _like(context.new_page(), url, self.likes)
                paints = [_first_paint(context, url) for _ in range(FIRST_PAINTS)]
                viewers = Viewers(context, url, api_url)
                watched = viewers.measure(self.viewers) if self.viewers else None

        def durations(first: str, last: str) -> dict[str, float]:
            return percentiles([row[last] - row[first] for row in rows], QUANTILES, 1)

        return {
            "trigger": self.trigger,
            "likes": len(rows),
            "click_to_screen_ms": durations("clicked", "painted"),
            "push_to_screen_ms": durations("pushed", "painted"),
            "stages_ms": {name: durations(*stage) for name, stage in STAGES.items()},
            "first_paint_ms": percentiles(paints, QUANTILES, 1),
            "watched": watched,
            "load_average": load_average(),
        }


def _publish_reviews(settings: Settings, shop: SyntheticShop, count: int) -> None:
    """Reviews with a long tail, so that new visitors get a list."""
    rng = np.random.default_rng(7)
    producer = create_producer(settings.kafka, {"enable.idempotence": True})
    for n, item in enumerate(rng.choice(len(shop.items), count, p=shop.popularity).tolist()):
        user_id = f"reviewer-{n % 200}"
        interaction = Interaction(user_id=user_id, item_id=shop.items[item], action=Action.REVIEW)
        event = events.interaction_event(
            interaction, event_id=events.stable_id("bench", n), time=events.now(), source="/bench"
        )
        producer.produce(settings.kafka.topics.reviews, events.encode(event), user_id)
        producer.poll(0)
    if producer.flush(30):
        raise Unavailable("Kafka did not acknowledge the reviews")


@contextmanager
def _pages(stack: Stack) -> Iterator[tuple[str, str]]:
    """URLs of the pages and of the API, once the model is loaded."""
    with running_api(stack.settings, lambda api: api.model() == "bench") as api:
        port, api_url = free_port(), f"http://{LOOPBACK}:{api.port}"
        ui = stack.settings.ui.model_copy(update={"port": port, "api_url": api_url})
        process = afterclick_command(stack.settings.model_copy(update={"ui": ui}), "ui", "ui")
        process.start()
        try:
            url = f"http://{LOOPBACK}:{port}"
            process.wait_ready(lambda: _responds(url), UI_READY_S)
            yield url, api_url
        finally:
            process.stop()


def _responds(url: str) -> bool:
    try:
        return httpx2.get(f"{url}/health/live", timeout=5).is_success
    except httpx2.HTTPError:
        return False


@contextmanager
def _browser(program: str) -> Iterator[BrowserContext]:
    """Windows of 1440 × 900. Raises Unavailable if the browser is not installed."""
    from playwright.sync_api import sync_playwright

    path = shutil.which(program)
    if path is None:
        raise Unavailable(
            f"browser {program} not found: install Debian's chromium, or set --chromium"
        )
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(CHROMIUM_FLAGS))
        context = browser.new_context(viewport={"width": 1440, "height": 900})
        context.set_default_timeout(TIMEOUT_MS)
        yield context
        browser.close()


def _open_shop(page: Page, url: str) -> None:
    page.goto(f"{url}/?user=bench-{events.new_id()[:8]}")
    page.locator(".ac-card").first.wait_for()


def _like(page: Page, url: str, likes: int) -> list[dict[str, float]]:
    """Like items one by one, each after the previous list is on the screen; the times per like."""
    _open_shop(page, url)
    page.wait_for_function("document.querySelector('.ac-connection')?.innerText.trim() === 'live'")
    for n in range(WARM_UP + likes):
        page.locator(".ac-card").nth(n % 5).locator("[data-action=like]").click()
        page.wait_for_function("n => (window.afterclickStages ?? []).length > n", arg=n)
        page.wait_for_function(SETTLED)
    rows: list[dict[str, float]] = page.evaluate("window.afterclickStages")
    return rows[WARM_UP:]


def _first_paint(context: BrowserContext, url: str) -> float:
    """Milliseconds to the first contentful paint of the shop in a new tab."""
    page = context.new_page()
    _open_shop(page, url)
    paint: float = page.wait_for_function(FIRST_PAINT).json_value()
    page.close()
    return paint


@dataclass(frozen=True)
class Viewers:
    """List requests under WebSocket viewers and open pages, whose lists change meanwhile."""

    context: BrowserContext
    url: str
    api_url: str

    def measure(self, viewers: int) -> Figures:
        names = [f"viewer-{events.new_id()[:8]}" for _ in range(viewers)]
        alone = self._request_lists(names)
        with self._sockets(names):
            with_sockets = self._request_lists(names)
        for n, name in enumerate(names):
            page = self.context.new_page()
            page.goto(f"{self.url}/live" if n % 2 else f"{self.url}/?user={name}")
            page.locator(".ac-tile, .ac-card").first.wait_for()
        return {
            "viewers": viewers,
            "alone_ms": alone,
            "beside_sockets_ms": with_sockets,
            "beside_pages_ms": self._request_lists(names),
        }

    def _request_lists(self, names: list[str]) -> dict[str, float]:
        """Milliseconds of list requests at a steady pace, with a like now and then."""
        took: list[float] = []
        with httpx2.Client(base_url=self.api_url, timeout=20) as client:
            for n in range(LISTS):
                name = names[n % len(names)]
                started = time.perf_counter()
                query: Any = {"user_id": name, "preview": True}
                body = client.get("/recommendations", params=query).raise_for_status().json()
                took.append((time.perf_counter() - started) * 1000)
                if n % LIKE_EVERY == 0:
                    like = {"user_id": name, "action": "like"}
                    like["item_id"] = body["items"][0]["item_id"]
                    client.post("/feedback", json=like).raise_for_status()
                time.sleep(LIST_PAUSE_S)
        return percentiles(took, LIST_QUANTILES, 1)

    @contextmanager
    def _sockets(self, names: list[str]) -> Iterator[None]:
        """The sockets of this many browsers: lists, and in half of them live figures."""
        base = "ws" + self.api_url.removeprefix("http")
        urls = [f"{base}/ws/recommendations?user_id={name}" for name in names]
        urls += [f"{base}/ws/live"] * (len(names) // 2)
        with ExitStack() as stack:
            for url in urls:
                socket = stack.enter_context(connect(url, open_timeout=30, max_size=2**22))
                threading.Thread(target=_read_all, args=(socket,), daemon=True).start()
            yield


def _read_all(socket: ClientConnection) -> None:
    for _ in socket:
        pass
