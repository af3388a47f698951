"""Pages of other sites reach the pages by no other name, over no socket and in no frame."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import httpx2
import pytest
from playwright.sync_api import BrowserContext, Page, Route, expect
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect
from websockets.typing import Origin

from afterclick.errors import BadInput
from afterclick.settings import Settings, UiSettings
from infra.embedded.kafka import delete_topics, ensure_topics
from infra.embedded.process import Process
from infra.embedded.server import LOOPBACK, free_port
from tests.serving import shop as wares
from tests.serving.mini_stream import MiniStream
from tests.serving.running import Running, installation
from tests.ui.conftest import answers, get, new_shopper
from tests.waiting import PATIENCE_S, wait_until
from ui.page_access import check_page_address

SOCKET = "/_nicegui_ws/socket.io/?EIO=4&transport="
PATHS = ("/", "/item?id=camera-1", "/live", "/static/theme.js", f"{SOCKET}polling")
FOREIGN = "http://evil.example"


class _FramingPage(BaseHTTPRequestHandler):
    """A page with a frame of the URL in its path."""

    def do_GET(self) -> None:
        body = f'<h1>Another site</h1><iframe src="{self.path[1:]}"></iframe>'.encode()
        self.send_response(200)
        self.send_header("content-type", "text/html")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@dataclass(frozen=True)
class Pages:
    """The pages of an API with a catalogue."""

    url: str
    api_url: str


@pytest.fixture(scope="module")
def pages(broker: str, redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pages]:
    home = tmp_path_factory.mktemp("pages")
    settings = installation(broker, redis_url, home)
    ensure_topics(settings)
    with MiniStream(settings), Running(settings) as api:
        api.ready()
        wares.publish_items(settings, wares.catalogue())
        wait_until(lambda: len(api.service.catalogue) == len(wares.catalogue()))
        ui = UiSettings(port=free_port(), api_url=api.url)
        command: list[str | Path] = [Path(sys.executable).with_name("afterclick"), "ui"]
        environment = settings.model_copy(update={"ui": ui}).environment()
        process = Process("ui", command, home / "ui.log", environment)
        process.start()
        try:
            process.wait_ready(lambda: answers(f"{ui.url}/health/live"), 240)
            yield Pages(ui.url, api.url)
        finally:
            process.stop()
    delete_topics(settings.kafka)


@pytest.fixture
def other_site() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _FramingPage) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_pages_answer_under_their_own_names_and_to_their_own_origin_only(pages: Pages) -> None:
    port = pages.url.rsplit(":", 1)[1]
    rebound = {"host": f"evil.example:{port}", "origin": f"{FOREIGN}:{port}"}
    rejected = (rebound, {"host": "evil.example"}, {"origin": FOREIGN}, {"origin": "null"})
    malformed = ({"host": "["}, {"origin": "http://["})
    accepted: tuple[dict[str, str], ...] = (
        {},
        {"host": f"localhost:{port}"},
        {"origin": pages.url},
    )
    with httpx2.Client(base_url=pages.url, timeout=PATIENCE_S) as http:
        for path in PATHS:
            for headers in (*rejected, *malformed):
                assert http.get(path, headers=headers).status_code == 403, (path, headers)
            for headers in accepted:
                response = http.get(path, headers=headers)
                assert response.status_code == 200, (path, headers)
                assert "frame-ancestors 'none'" in response.headers["content-security-policy"]
                assert response.headers["x-content-type-options"] == "nosniff"
        assert http.get("/health/live", headers={"host": "10.0.0.7"}).status_code == 200


def test_another_origin_opens_no_socket(pages: Pages) -> None:
    url = pages.url.replace("http", "ws") + f"{SOCKET}websocket"
    with pytest.raises(InvalidStatus) as refused, connect(url, origin=Origin(FOREIGN)):
        pass
    assert refused.value.response.status_code == 403
    with connect(url, origin=Origin(pages.url)) as socket:
        assert str(socket.recv(PATIENCE_S)).startswith("0{"), "the control: a handshake"


@pytest.mark.parametrize("protected", [True, False], ids=["framed", "control: without the headers"])
def test_a_page_in_a_frame_of_another_site_sends_no_view(
    context: BrowserContext, pages: Pages, other_site: str, protected: bool
) -> None:
    def without_headers(route: Route) -> None:
        response = route.fetch(headers=route.request.headers | {"sec-fetch-site": "none"})
        kept = {
            name: value
            for name, value in response.headers.items()
            if name not in {"content-security-policy", "x-frame-options"}
        }
        route.fulfill(response=response, headers=kept)

    user_id, page = new_shopper(), context.new_page()
    if not protected:
        page.route("**/item?*", without_headers)
    framed = f"{pages.url}/item?id=camera-1&user={user_id}"
    page.goto(f"{other_site}/{framed}")
    frame = page.frame_locator("iframe")
    history = f"{pages.api_url}/users/{user_id}/history"
    if protected:
        page.wait_for_load_state("networkidle")
        assert frame.locator(".ac-item").count() == 0
        _open(context, pages, new_shopper())  # another view reaches the log meanwhile
        assert get(history)["events"] == []
    else:
        wait_until(lambda: [event["action"] for event in get(history)["events"]] == ["view"])


def test_a_link_of_another_site_sends_no_view(context: BrowserContext, pages: Pages) -> None:
    """The control: the link of the page that it gets instead."""
    user_id, page = new_shopper(), context.new_page()
    link = f'<a href="{pages.url}/item?id=camera-1&amp;user={user_id}">Look</a>'
    page.route(f"{FOREIGN}/", lambda route: route.fulfill(body=link, content_type="text/html"))
    page.goto(FOREIGN)
    page.get_by_role("link").click()
    expect(page.get_by_role("link")).to_have_text("Continue to Afterclick")
    history = f"{pages.api_url}/users/{user_id}/history"
    _open(context, pages, new_shopper())  # another view reaches the log meanwhile
    assert get(history)["events"] == []
    page.get_by_role("link").click()
    wait_until(lambda: [event["action"] for event in get(history)["events"]] == ["view"])


def _open(context: BrowserContext, pages: Pages, user_id: str) -> None:
    """Open an item in a tab and wait for its view."""
    page: Page = context.new_page()
    page.goto(f"{pages.url}/item?id=camera-1&user={user_id}")
    expect(page.get_by_role("heading", level=1)).to_contain_text("camera-1")
    history = f"{pages.api_url}/users/{user_id}/history"
    wait_until(lambda: [event["action"] for event in get(history)["events"]] == ["view"])


def test_the_connections_of_the_pages_are_limited_by_their_settings(tmp_path: Path) -> None:
    ui = UiSettings(port=free_port(), max_connections=1)
    command: list[str | Path] = [Path(sys.executable).with_name("afterclick"), "ui"]
    environment = Settings(home=tmp_path, ui=ui).environment()
    process = Process("ui", command, tmp_path / "ui.log", environment)
    process.start()
    try:
        process.wait_ready(lambda: answers(f"{ui.url}/health/live"), 240)
        wait_until(lambda: _the_second_is_refused((LOOPBACK, ui.port)))
    finally:
        process.stop()


def _the_second_is_refused(address: tuple[str, int]) -> bool:
    with (
        socket.create_connection(address, PATIENCE_S),
        socket.create_connection(address, PATIENCE_S) as excess,
    ):
        excess.sendall(b"GET /health/live HTTP/1.1\r\nhost: localhost\r\n\r\n")
        return excess.recv(1000).startswith(b"HTTP/1.1 503")


def test_pages_listen_beyond_loopback_only_under_given_names() -> None:
    for host in ("0.0.0.0", "::", "10.0.0.1", "shop.example"):
        with pytest.raises(BadInput, match="ALLOWED_HOSTS"):
            check_page_address(UiSettings(host=host))
        check_page_address(UiSettings(host=host, allowed_hosts=("shop.example",)))
    for host in ("127.0.0.1", "localhost", "::1"):
        check_page_address(UiSettings(host=host))
