"""The pages /docs and /redoc load nothing from other hosts."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Page, Response, expect, sync_playwright

from afterclick.settings import Settings
from infra.benchmarks.ui_latency import CHROMIUM_FLAGS
from infra.console.admin_app import create_app
from serving.control.auth import DOCS_ASSETS, DOCS_FILES
from tests.serving.running import Running
from tests.serving.test_auth import guarded
from tests.ui.conftest import CHROMIUM

REFERENCE = re.compile(r"""(?:src|href|url)\s*[=:]\s*["']([^"']+)["']""")


def test_the_documentation_is_complete_without_other_hosts_and_without_a_key(
    settings: Settings,
) -> None:
    with Running(guarded(settings)) as api:
        start = api.http.get("/")
        assert (start.status_code, start.headers["location"]) == (307, "/docs")
        for page in ("/docs", "/redoc"):
            response = api.http.get(page)
            references = REFERENCE.findall(response.text)
            assert references, page
            assert all(url.startswith("/") and url[1] != "/" for url in references), references
            policy = response.headers["content-security-policy"]
            assert "frame-ancestors 'none'" in policy
            assert "unsafe-inline" not in policy.partition("script-src")[2].partition(";")[0]
        for name in DOCS_FILES:
            assert api.http.get(f"{DOCS_ASSETS}/{name}").status_code == 200, name
        assert api.http.get(f"{DOCS_ASSETS}/other.js").status_code == 401
        for path, status in (("/popular", 401), ("/health/live", 200), ("/docs", 200)):
            response = api.http.get(path)
            assert response.status_code == status
            assert response.headers["x-content-type-options"] == "nosniff"


def test_a_browser_shows_the_documentation_under_its_policy(settings: Settings) -> None:
    with Running(settings) as api, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(CHROMIUM_FLAGS))
        for path in ("/docs", "/redoc"):
            assert _hosts_of(browser.new_page(), api.url + path) == {f"127.0.0.1:{api.port}"}, path
        browser.close()


def _hosts_of(page: Page, url: str) -> set[str]:
    """The hosts that answer to a page until it shows the documentation."""
    hosts = set()

    def answered(response: Response) -> None:
        hosts.add(urlsplit(response.url.removeprefix("blob:")).netloc)

    page.on("response", answered)
    page.goto(url)
    described = page.get_by_text("The list changes after the click.").first
    expect(described).to_be_visible(timeout=60_000)
    return hosts


@pytest.mark.parametrize("path", ["/docs", "/redoc"])
def test_the_admin_console_has_the_same_pages(settings: Settings, path: str) -> None:
    app = create_app(settings)
    assert path in {getattr(route, "path", "") for route in app.routes}
    assert app.docs_url is None
    assert app.redoc_url is None
