"""The process of the pages: builds the clients, registers the pages, serves until stopped.

reads   http, websocket  the API (settings.ui.api_url)
        http             the admin console (settings.ui.console_url)
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import uvicorn
from fastapi import FastAPI
from fastapi.staticfiles import StaticFiles
from nicegui import ui

from afterclick.io.client import AsyncClient
from afterclick.io.connections import ConnectionLimits
from afterclick.settings import UiSettings
from ui.gateway import ShopClient
from ui.live_state import LiveState
from ui.page_access import PageAccess, check_page_address
from ui.pages import compare_page, item_page, live_page, shop_page

STATIC = Path(__file__).parent / "static"


def build(settings: UiSettings) -> FastAPI:
    """The application: the NiceGUI pages, /static and /health/live."""
    client = ShopClient(settings.api_url, settings.api_key)
    console = AsyncClient(settings.console_url, settings.api_key, attempts=1)
    state = LiveState(client)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        state.start()
        yield
        await state.stop()
        await client.close()
        await console.close()

    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(PageAccess, allowed_hosts=settings.allowed_hosts)
    app.mount("/static", StaticFiles(directory=STATIC))

    @app.get("/health/live")
    async def live() -> dict[str, str]:
        return {"status": "live"}

    shop_page.register(client, state)
    item_page.register(client, state)
    compare_page.register(client, state)
    live_page.register(client, state, console if settings.shows_admin else None)
    ui.run_with(
        app,
        title="Afterclick",
        favicon=STATIC / "favicon.svg",
        dark=None,
        language="en-US",
        tailwind=False,
        show_welcome_message=False,
        reconnect_timeout=20.0,
        message_history_length=200,
    )
    return app


def serve(settings: UiSettings) -> None:
    """Serve the pages until SIGINT or SIGTERM.

    Raises BadInput for an address beyond loopback without allowed hosts.
    """
    check_page_address(settings)
    config = uvicorn.Config(
        build(settings),
        host=settings.host,
        port=settings.port,
        log_level="warning",
        server_header=False,
        timeout_graceful_shutdown=2,
        **ConnectionLimits.of(settings).protocols(),
    )
    uvicorn.Server(config).run()
