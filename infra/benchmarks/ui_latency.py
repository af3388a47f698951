"""`afterclick bench ui`: from the click on Like to the changed grid on the screen, in a real browser.

Starts its own Kafka, Valkey, stream job, API and pages, and clicks in Chromium. The page notes when the event
passed each stage (the clocks are one machine's) and when the frame that shows the new list had been painted.
"""

from __future__ import annotations

import shutil
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson
import psutil
from confluent_kafka import Producer

from afterclick import events
from afterclick.errors import Unavailable
from afterclick.events import Action, Interaction
from afterclick.settings import ServingSettings, Settings, StreamSettings, UiSettings
from infra.benchmarks import synthetic
from infra.benchmarks.stream_stack import Stack, own_stack
from infra.benchmarks.viewers import measure
from infra.embedded.ports import free_port
from infra.embedded.process import Process

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext, Page

FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
WARM_UP = 8
"""Likes before the measured ones: the browser compiles, the connections open."""
PAINTS = 8
TIMEOUT_MS = 60_000.0
STILL = "[...document.querySelectorAll('.ac-card')].every((card) => !card.getAnimations().length)"
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
class Bench:
    """What to run."""

    likes: int = 60
    items: int = 5_000
    reviews: int = 2_000
    trigger: str = "real-time"
    viewers: int = 0
    """People who watch while lists are asked for; 0 leaves that part out."""
    chromium: str = "chromium"


def run(bench: Bench, jars: Path) -> dict[str, Any]:
    """Run it all; milliseconds per stage."""
    with own_stack(jars, AFTERCLICK_STREAM__TRIGGER=bench.trigger) as stack:
        shop = synthetic.make(stack.settings, bench.items, users=0, state=False)
        _review(stack.settings, shop, bench.reviews)
        stack.job.start()
        stack.wait_caught_up()
        with _pages(stack) as (url, api_url), _browser(bench.chromium) as context:
            rows = _like(context.new_page(), url, bench.likes)
            paints = [_first_paint(context, url) for _ in range(PAINTS)]
            watched = measure(context, url, api_url, bench.viewers) if bench.viewers else None
    totals = [row["painted"] - row["clicked"] for row in rows]
    return {
        "trigger": bench.trigger,
        "likes": len(rows),
        "click_to_screen_ms": _quantiles(totals),
        "push_to_screen_ms": _quantiles([row["painted"] - row["pushed"] for row in rows]),
        "stages_ms": {
            name: _quantiles([row[last] - row[first] for row in rows])
            for name, (first, last) in STAGES.items()
        },
        "first_paint_ms": _quantiles(paints),
        "watched": watched,
        "load_average": [round(value, 1) for value in psutil.getloadavg()],
    }


def _review(settings: Settings, shop: synthetic.Shop, count: int) -> None:
    """Reviews with a long tail, so that there is something to show to a stranger."""
    rng = np.random.default_rng(7)
    producer = Producer({"bootstrap.servers": settings.kafka.bootstrap, "enable.idempotence": True})
    chosen = rng.choice(len(shop.items), count, p=shop.popularity).tolist()
    for n, at in enumerate(chosen):
        user_id = f"reviewer-{n % 200}"
        interaction = Interaction(user_id=user_id, item_id=shop.items[at], action=Action.REVIEW)
        event = events.interaction_event(
            interaction, event_id=events.stable_id("bench", n), time=events.now(), source="/bench"
        )
        producer.produce(settings.kafka.topics.reviews, events.encode(event), user_id)
        producer.poll(0)
    if producer.flush(30):
        raise Unavailable("Kafka did not take the bench's reviews")


@contextmanager
def _pages(stack: Stack) -> Iterator[tuple[str, str]]:
    """The pages and the API, once the model is loaded; their addresses."""
    api_port, ui_port = free_port(), free_port()
    api_url, url = f"http://127.0.0.1:{api_port}", f"http://127.0.0.1:{ui_port}"
    settings = stack.settings.model_copy(
        update={
            "serving": ServingSettings(port=api_port),
            "ui": UiSettings(port=ui_port, api_url=api_url),
            "stream": StreamSettings(),
        }
    )
    with ExitStack() as running:
        for name in ("serve", "ui"):
            command = [sys.executable, "-m", "infra", name]
            process = Process(name, command, settings.home / f"{name}.log", settings.environment())
            process.start()
            running.callback(process.stop)
        stack.wait(lambda: _served(api_url), "the API to serve the model")
        stack.wait(lambda: _get(f"{url}/health/live") is not None, "the pages")
        yield url, api_url


def _served(api_url: str) -> bool:
    ready = _get(f"{api_url}/health/ready")
    return ready is not None and ready["parts"]["model"] == "bench"


def _get(url: str) -> Any:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return orjson.loads(response.read())
    except (urllib.error.URLError, OSError, ValueError):
        return None


@contextmanager
def _browser(program: str) -> Iterator[BrowserContext]:
    """Windows of 1440 × 900. Raises Unavailable where there is no such browser."""
    from playwright.sync_api import sync_playwright

    found = shutil.which(program)
    if found is None:
        raise Unavailable(
            f"there is no browser {program}: install Debian's chromium, or give --chromium"
        )
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=list(FLAGS))
        context = browser.new_context(viewport={"width": 1440, "height": 900})
        context.set_default_timeout(TIMEOUT_MS)
        yield context
        browser.close()


def _like(page: Page, url: str, likes: int) -> list[dict[str, float]]:
    """Like one item after the other, each once its predecessor's list is on the screen."""
    page.goto(f"{url}/?user=bench-{events.new_id()[:8]}")
    page.locator(".ac-card").first.wait_for()
    page.wait_for_function("document.querySelector('.ac-pulse')?.innerText.trim() === 'live'")
    for n in range(WARM_UP + likes):
        place = n % 5
        page.locator(".ac-card").nth(place).locator("[data-action=like]").click()
        page.wait_for_function("n => (window.afterclickStages ?? []).length > n", arg=n)
        page.wait_for_function(STILL)
    rows: list[dict[str, float]] = page.evaluate("window.afterclickStages")
    return rows[WARM_UP:]


PAINT = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime"


def _first_paint(context: BrowserContext, url: str) -> float:
    """Milliseconds to the first contentful paint of somebody's shop, the list in it, in a new tab."""
    page = context.new_page()
    page.goto(f"{url}/?user=bench-{events.new_id()[:8]}")
    page.locator(".ac-card").first.wait_for()
    paint: float = page.wait_for_function(
        PAINT
    ).json_value()  # it is told a moment after it has happened
    page.close()
    return paint


def _quantiles(values: list[float]) -> dict[str, float]:
    return {
        name: round(float(np.percentile(values, q)), 1) for name, q in (("p50", 50), ("p95", 95))
    }
