"""Every control on the real stack: contributions, search, item page, interests, snippets, theme."""

from __future__ import annotations

import subprocess
import sys

import pytest
from playwright.sync_api import Page, expect

from tests.ui.conftest import Shop, get, new_shopper
from tests.ui.test_shop_page import press, shown_items, visit
from tests.waiting import wait_until


def test_the_receipt_adds_up_and_lists_the_actions(page: Page, shop: Shop) -> None:
    visit(page, shop, new_shopper())
    liked = page.locator(".ac-card .ac-title").first.inner_text()
    press(page, shown_items(page)[0], "like")
    expect(page.get_by_test_id("headline")).to_contain_text(liked)
    page.locator('[data-action="why"]').first.click()
    receipt = page.get_by_test_id("receipt")
    expect(receipt).to_contain_text("sum of the contributions")
    expect(receipt.locator(".ac-user-actions")).to_contain_text(f"liked {liked}")
    expect(receipt.locator(".ac-facts")).to_contain_text("feedback/")
    values = [
        cell.replace("\N{MINUS SIGN}", "-")
        for cell in receipt.locator("tbody .num").all_inner_texts()
    ]
    score = float(receipt.get_by_test_id("receipt-score").inner_text())
    assert abs(sum(map(float, values)) - score) < 0.0006 * len(values)
    page.keyboard.press("Escape")
    expect(receipt).not_to_be_visible()


def test_search_finds_items_while_typing_and_opens_one(page: Page, shop: Shop) -> None:
    user_id = new_shopper()
    visit(page, shop, user_id)
    field = page.get_by_role("combobox", name="Search the shop")
    field.fill("way 8")
    expect(page.locator("[data-result]")).to_have_count(1)
    expect(page.locator("[data-result]")).to_contain_text("Waymark GPS 8")
    field.press("ArrowDown")
    field.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text("Waymark GPS 8")
    history = f"{shop.api_url}/users/{user_id}/history"
    wait_until(lambda: [event["action"] for event in get(history)["events"]] == ["view", "click"])


def test_search_shows_that_there_are_no_results(page: Page, shop: Shop) -> None:
    visit(page, shop, new_shopper())
    page.get_by_role("combobox").fill("zzz")
    expect(page.locator("#search-results")).to_contain_text("No results for “zzz”")


def test_the_item_page_shows_counts_and_trend_and_sends_a_like(page: Page, shop: Shop) -> None:
    user_id = new_shopper()
    page.goto(f"{shop.url}/item?id=G0001&user={user_id}")
    expect(page.get_by_role("heading", level=1)).to_have_text("Northwind quiet fan 1")
    counted = get(f"{shop.api_url}/items/G0001")["interactions"]
    expect(page.locator(".ac-main")).to_contain_text(f"{counted:,} interactions counted")
    expect(page.get_by_test_id("curve").locator("td")).to_have_count(6)
    page.get_by_role("button", name="Like", exact=True).click()
    expect(page.locator(".ac-item .ac-effect")).to_contain_text("in the log at")
    history = f"{shop.api_url}/users/{user_id}/history"
    wait_until(lambda: [event["action"] for event in get(history)["events"]] == ["like", "view"])
    # the count follows the history, and the view may have been in it already
    wait_until(lambda: get(f"{shop.api_url}/items/G0001")["interactions"] > counted)


def test_the_item_page_updates_its_counts_and_shows_a_receipt(page: Page, shop: Shop) -> None:
    user_id = new_shopper()
    page.goto(f"{shop.url}/item?id=G0006&user={user_id}")
    counts = page.locator(".ac-main").get_by_text("interactions counted")
    before = counts.inner_text()
    page.get_by_role("button", name="Add to basket").click()
    expect(counts).not_to_have_text(before)
    page.get_by_role("button", name="Why?").click()
    receipt = page.get_by_test_id("receipt")
    expect(receipt).to_contain_text("sum of the contributions")
    expect(receipt.get_by_test_id("left-out")).to_be_visible()
    page.keyboard.press("Escape")
    for heading in ("Also chosen by users who chose this", "Similar items"):
        expect(page.get_by_role("heading", name=heading)).to_be_visible()
    page.get_by_role("link", name="Back to the list").click()
    expect(page.locator(".ac-card").first).to_be_visible()
    assert page.url.endswith(f"user={user_id}")


def test_an_unknown_item_is_reported(page: Page, shop: Shop) -> None:
    page.goto(f"{shop.url}/item?id=no/such%20item")
    expect(page.get_by_role("heading", level=1)).to_have_text("There is no item no/such item")


def test_interests_of_a_new_user_change_the_list(page: Page, shop: Shop) -> None:
    visit(page, shop, "alice")
    page.locator(".new-user").click()
    page.get_by_test_id("interests").get_by_text("Remote Controls", exact=True).click()
    expect(page.locator(".ac-card .ac-category").first).to_contain_text("Remote Controls")
    expect(page.locator(".ac-card .ac-reason").first).to_contain_text("Remote Controls")


def test_the_comparison_shows_the_lists_of_all_policies(page: Page, shop: Shop) -> None:
    visit(page, shop, new_shopper())
    served = shown_items(page)[:10]
    page.get_by_test_id("compare").click()
    comparison = page.get_by_test_id("comparison")
    names = ["Blend", "ALS", "Sequence model", "NCF", "Trending", "Popular"]
    expect(comparison.locator("section h2")).to_have_text(names)
    expect(comparison.locator('[data-policy="als"] .ac-fallback')).to_contain_text("Instead: ")
    expect(comparison.locator('[data-policy="popular"] .ac-fallback')).to_have_count(0)
    first = comparison.locator('[data-policy="blend"] li a').evaluate_all(
        "links => links.map(link => new URL(link.href).searchParams.get('id'))"
    )
    assert first == served


@pytest.mark.parametrize("title", ["This list", "A like"])
def test_the_python_snippets_run_unchanged(page: Page, shop: Shop, title: str) -> None:
    visit(page, shop, "bob")
    page.get_by_test_id("api").click()
    code = page.locator(f'[data-snippet="{title} python"]').inner_text()
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert ("Northwind" in ran.stdout) if title == "This list" else ("feedback/" in ran.stdout)


def test_the_curl_snippet_runs_unchanged(page: Page, shop: Shop) -> None:
    visit(page, shop, "bob")
    page.get_by_test_id("api").click()
    call = page.locator('[data-snippet="This list curl"]').inner_text()
    ran = subprocess.run(
        ["bash", "-c", call], capture_output=True, text=True, timeout=60, check=True
    )
    assert '"user_id":"bob"' in ran.stdout


def test_the_theme_can_be_chosen_and_is_stored(page: Page, shop: Shop) -> None:
    visit(page, shop, "alice")
    colour = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(colour)
    page.get_by_role("button", name="Light or dark").click()
    dark = page.evaluate(colour)
    assert dark != light
    page.reload()
    expect(page.locator(".ac-card").first).to_be_visible()
    assert page.evaluate(colour) == dark


@pytest.mark.parametrize("width", [360, 768, 1440, 3840])
def test_no_page_overflows_at_any_width(page: Page, shop: Shop, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    for path in (
        "/?user=alice",
        "/?user=guest-1",
        "/live",
        "/item?id=G0002",
        "/compare?user=alice",
    ):
        page.goto(shop.url + path)
        expect(page.locator(".ac-main")).not_to_be_empty()
        page.wait_for_timeout(300)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, path
