"""The real stack for a browser: Kafka, Valkey, stream job, API, pages, Chromium."""

from __future__ import annotations

import json
import shutil
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from afterclick.settings import (
    KafkaSettings,
    RedisSettings,
    ServingSettings,
    Settings,
    UiSettings,
)
from infra.benchmarks.ui_latency import CHROMIUM_FLAGS
from infra.embedded.kafka import delete_topics, ensure_topics
from infra.embedded.process import Process
from infra.embedded.server import free_port
from tests.ui.generated_shop import GeneratedShop, publish_shop
from tests.waiting import REDIS_S, wait_until

CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"


@dataclass(frozen=True)
class Shop:
    """A running stack with a generated shop."""

    url: str
    api_url: str
    settings: Settings
    generated: GeneratedShop
    processes: dict[str, Process]


@pytest.fixture(scope="session")
def shop(
    broker: str, redis_url: str, jars: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Shop]:
    """`afterclick stream`, `serve` and `ui` on the session's Kafka and Valkey."""
    home = tmp_path_factory.mktemp("shop")
    settings = _settings(broker, redis_url, jars, home)
    ensure_topics(settings)
    generated = publish_shop(settings)
    with ExitStack() as stack:
        processes = {name: _run(stack, name, settings, home) for name in ("stream", "serve", "ui")}
        shop = Shop(_ui_url(settings), settings.ui.api_url, settings, generated, processes)
        processes["serve"].wait_ready(lambda: answers(f"{shop.api_url}/health/live"), 240)
        processes["ui"].wait_ready(lambda: answers(f"{shop.url}/health/live"), 240)
        wait_until(lambda: _counted(shop) == generated.reviews, 240, what="every review counted")
        yield shop
    delete_topics(settings.kafka)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """A browser per module: Playwright occupies the event loop of this thread while it runs."""
    with sync_playwright() as playwright:
        expect.set_options(timeout=45_000)
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(CHROMIUM_FLAGS))
        yield browser
        browser.close()


@pytest.fixture
def context(chromium: Browser) -> Iterator[BrowserContext]:
    """A browser context per test."""
    context = chromium.new_context(
        viewport={"width": 1440, "height": 900}, reduced_motion="no-preference"
    )
    context.set_default_timeout(45_000)
    yield context
    context.close()


@pytest.fixture
def page(context: BrowserContext) -> Iterator[Page]:
    """A tab; the test fails on console errors and on requests to other hosts."""
    page = context.new_page()
    errors: list[str] = []
    hosts: set[str] = set()
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on(
        "console", lambda message: errors.append(message.text) if message.type == "error" else None
    )
    page.on("request", lambda request: hosts.add(request.url.split("/")[2].split(":")[0]))
    yield page
    assert not errors
    assert hosts <= {"127.0.0.1", ""}, f"requests to {hosts}"


def get(url: str) -> Any:
    """The JSON of a GET."""
    with urllib.request.urlopen(url, timeout=10) as response:
        return json.load(response)


def answers(url: str) -> bool:
    try:
        get(url)
    except (urllib.error.URLError, OSError, ValueError):
        return False
    return True


def new_shopper() -> str:
    """A new user id."""
    return f"visitor-{uuid4().hex[:8]}"


def _settings(broker: str, redis_url: str, jars: Path, home: Path) -> Settings:
    unique = uuid4().hex[:8]
    api_port = free_port()
    return Settings(
        home=home,
        jars=jars,
        kafka=KafkaSettings(bootstrap=broker, prefix=f"ui{unique}-", partitions=2),
        redis=RedisSettings(url=redis_url, prefix=f"ui{unique}:", timeout_s=REDIS_S),
        serving=ServingSettings(port=api_port, shed_after_ms=1e6),
        ui=UiSettings(port=free_port(), api_url=f"http://127.0.0.1:{api_port}"),
    )


def _run(stack: ExitStack, name: str, settings: Settings, home: Path) -> Process:
    command: list[str | Path] = [Path(sys.executable).with_name("afterclick"), name]
    process = Process(name, command, home / f"{name}.log", settings.environment())
    process.start()
    stack.callback(process.stop)
    return process


def _ui_url(settings: Settings) -> str:
    return f"http://127.0.0.1:{settings.ui.port}"


def _counted(shop: Shop) -> int:
    """The sum of the interactions of all items."""
    ids = [item.item_id for item in shop.generated.items]
    try:
        return sum(get(f"{shop.api_url}/items/{item_id}")["interactions"] for item_id in ids)
    except (urllib.error.URLError, OSError):
        return -1
