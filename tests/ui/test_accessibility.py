"""axe finds nothing serious, on any page, light and dark, narrow and wide."""

from __future__ import annotations

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from tests.ui.conftest import Shop
from tests.ui.test_shop import listed, press, visit

PATHS = (
    "/?user=alice",
    "/?user=guest-1",
    "/live",
    "/item?id=G0002&user=alice",
    "/compare?user=alice",
)
GRAVE = {"serious", "critical"}


def faults(page: Page) -> list[str]:
    """What axe finds that is serious or worse."""
    found = Axe().run(page).response["violations"]
    return [f"{v['id']}: {v['nodes'][0]['html']}" for v in found if v["impact"] in GRAVE]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1440])
def test_no_page_has_a_serious_fault(page: Page, shop: Shop, scheme: str, width: int) -> None:
    page.emulate_media(color_scheme=scheme, reduced_motion="reduce")  # type: ignore[arg-type]
    page.set_viewport_size({"width": width, "height": 900})
    for path in PATHS:
        page.goto(shop.url + path)
        expect(page.locator(".ac-pulse")).to_have_text("live")
        assert faults(page) == [], path


def test_drawers_and_a_changed_list_have_no_serious_fault(page: Page, shop: Shop) -> None:
    page.emulate_media(reduced_motion="reduce")
    visit(page, shop, "guest-axe")
    press(page, listed(page)[0], "like")
    expect(page.get_by_test_id("headline")).to_contain_text("Because you liked")
    assert faults(page) == []
    page.locator('[data-action="why"]').first.click()
    expect(page.get_by_test_id("receipt")).to_be_visible()
    assert faults(page) == []
    page.keyboard.press("Escape")
    page.get_by_test_id("api").click()
    expect(page.get_by_test_id("snippets")).to_be_visible()
    assert faults(page) == []


def test_axe_would_find_a_fault(page: Page, shop: Shop) -> None:
    visit(page, shop, "alice")
    page.evaluate(
        "document.querySelector('.ac-main').insertAdjacentHTML('beforeend', '<button></button>')"
    )
    assert any(fault.startswith("button-name") for fault in faults(page))


def test_a_changed_list_is_announced(page: Page, shop: Shop) -> None:
    visit(page, shop, "guest-announced")
    region = page.locator('.ac-headline [aria-live="polite"]')
    press(page, listed(page)[0], "skip")
    expect(region).to_contain_text("Because you skipped")
