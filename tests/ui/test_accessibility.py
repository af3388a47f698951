"""axe reports no serious violation on any page: light and dark, narrow and wide."""

from __future__ import annotations

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from tests.ui.conftest import Shop
from tests.ui.test_shop_page import press, shown_items, visit

PATHS = (
    "/?user=alice",
    "/?user=guest-1",
    "/live",
    "/item?id=G0002&user=alice",
    "/compare?user=alice",
)
SERIOUS = {"serious", "critical"}


def violations(page: Page) -> list[str]:
    """Violations that axe rates as serious or critical."""
    found = Axe().run(page).response["violations"]
    return [f"{v['id']}: {v['nodes'][0]['html']}" for v in found if v["impact"] in SERIOUS]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1440])
def test_no_page_has_a_serious_violation(page: Page, shop: Shop, scheme: str, width: int) -> None:
    page.emulate_media(color_scheme=scheme, reduced_motion="reduce")  # type: ignore[arg-type]
    page.set_viewport_size({"width": width, "height": 900})
    for path in PATHS:
        page.goto(shop.url + path)
        expect(page.locator(".ac-connection")).to_have_text("live")
        assert violations(page) == [], path


def test_drawers_and_a_changed_list_have_no_serious_violation(page: Page, shop: Shop) -> None:
    page.emulate_media(reduced_motion="reduce")
    visit(page, shop, "guest-axe")
    press(page, shown_items(page)[0], "like")
    expect(page.get_by_test_id("headline")).to_contain_text("Because you liked")
    assert violations(page) == []
    page.locator('[data-action="why"]').first.click()
    expect(page.get_by_test_id("receipt")).to_be_visible()
    assert violations(page) == []
    page.keyboard.press("Escape")
    page.get_by_test_id("api").click()
    expect(page.get_by_test_id("snippets")).to_be_visible()
    assert violations(page) == []


def test_axe_finds_a_violation(page: Page, shop: Shop) -> None:
    visit(page, shop, "alice")
    page.evaluate(
        "document.querySelector('.ac-main').insertAdjacentHTML('beforeend', '<button></button>')"
    )
    assert any(v.startswith("button-name") for v in violations(page))


def test_a_changed_list_is_announced(page: Page, shop: Shop) -> None:
    visit(page, shop, "guest-announced")
    region = page.locator('.ac-headline [aria-live="polite"]')
    press(page, shown_items(page)[0], "skip")
    expect(region).to_contain_text("Because you skipped")
