"""The shop in a real browser on the real stack."""

from __future__ import annotations

import re

from playwright.sync_api import Page, expect

from tests.ui.conftest import Shop, get, new_shopper
from tests.waiting import wait_until


def visit(page: Page, shop: Shop, user_id: str) -> None:
    """Open the shop as a user and wait for the list and the live connection."""
    page.goto(f"{shop.url}/?user={user_id}")
    expect(page.locator(".ac-card").first).to_be_visible()
    expect(page.locator(".ac-pulse")).to_have_text("live")


def listed(page: Page) -> list[str]:
    """The item ids on the screen, in order."""
    cards = page.locator(".ac-card")
    return [str(x) for x in cards.evaluate_all("cards => cards.map(card => card.dataset.item)")]


def press(page: Page, item_id: str, action: str) -> None:
    page.locator(f'[data-item="{item_id}"] [data-action="{action}"]').click()


def test_a_like_changes_the_list_on_the_screen_and_says_why(page: Page, shop: Shop) -> None:
    user_id = new_shopper()
    visit(page, shop, user_id)
    before = listed(page)
    title = page.locator(f'[data-item="{before[2]}"] .ac-title').inner_text()
    press(page, before[2], "like")
    expect(page.locator(f'[data-item="{before[2]}"]')).to_have_count(0)
    expect(page.get_by_test_id("headline")).to_contain_text(f"Because you liked {title}")
    after = listed(page)
    assert after != before
    assert len(after) == len(before)
    expect(page.get_by_test_id("timeline").locator("li").first).to_contain_text(f"liked {title}")
    events = get(f"{shop.api_url}/users/{user_id}/history")["events"]
    assert [(event["item_id"], event["action"]) for event in events] == [(before[2], "like")]


def test_cards_move_in_place_and_each_says_what_moved_it(page: Page, shop: Shop) -> None:
    visit(page, shop, new_shopper())
    page.evaluate(
        """() => {
            window.moves = [];
            const animate = Element.prototype.animate;
            Element.prototype.animate = function (frames, ...more) {
                if (this.matches('.ac-card')) window.moves.push(JSON.stringify(frames));
                return animate.call(this, frames, ...more);
            };
            for (const card of document.querySelectorAll('.ac-card')) card.seenBefore = true;
        }"""
    )
    first, second = listed(page)[:2]
    title = page.locator(f'[data-item="{first}"] .ac-title').inner_text()
    press(page, first, "like")
    moved = page.locator(".ac-card .ac-moved").first
    expect(moved).to_have_attribute(
        "title", re.compile(rf"^(up|down) \d+: you liked {re.escape(title)}|came in")
    )
    moves = page.evaluate("window.moves")
    assert any("translate" in move for move in moves), "cards that stay slide to their new place"
    assert any("opacity" in move for move in moves), "cards that come in fade in"
    kept = page.locator(f'[data-item="{second}"]')
    if kept.count():
        assert kept.evaluate("card => card.seenBefore"), "a card that stays is the same element"


def test_what_everybody_reaches_for_is_marked_as_trending_now(page: Page, shop: Shop) -> None:
    visit(page, shop, new_shopper())
    expect(page.locator(".ac-badge", has_text="trending now").first).to_be_visible()
    expect(page.locator(".ac-sure").first).to_have_text("not personal")


def test_every_button_sends_its_event(page: Page, shop: Shop) -> None:
    user_id = new_shopper()
    visit(page, shop, user_id)
    for action in ("like", "skip", "basket", "purchase"):
        item_id = listed(page)[0]
        press(page, item_id, action)
        expect(page.locator(f'[data-item="{item_id}"]')).to_have_count(0)
    events = get(f"{shop.api_url}/users/{user_id}/history")["events"]
    assert [event["action"] for event in events] == ["purchase", "basket", "skip", "like"]


def test_the_timeline_says_where_in_the_log_a_deed_lies(page: Page, shop: Shop) -> None:
    visit(page, shop, new_shopper())
    press(page, listed(page)[0], "skip")
    row = page.get_by_test_id("timeline").locator("li").first
    expect(row.locator("code").first).to_have_text(re.compile(r"feedback/\d+/\d+"))
    expect(row).to_contain_text(re.compile(r"\d+ ms"))


def test_the_last_action_can_be_undone_and_the_list_goes_back(page: Page, shop: Shop) -> None:
    user_id = new_shopper()
    visit(page, shop, user_id)
    before = listed(page)
    title = page.locator(f'[data-item="{before[1]}"] .ac-title').inner_text()
    press(page, before[1], "skip")
    expect(page.locator(f'[data-item="{before[1]}"]')).to_have_count(0)
    page.get_by_test_id("undo-last").click()
    expect(page.get_by_test_id("headline")).to_contain_text(f"Because you took back {title}")
    expect(page.locator(f'[data-item="{before[1]}"]')).to_have_count(1)
    assert sorted(listed(page)) == sorted(before)
    expect(page.get_by_test_id("undo-last")).to_have_count(0)
    expect(page.get_by_test_id("timeline").locator("li.did-skip")).to_have_class(
        re.compile("undone")
    )
    events = get(f"{shop.api_url}/users/{user_id}/history")["events"]
    assert [(event["item_id"], event["action"]) for event in events] == [
        (before[1], "undo"),
        (before[1], "skip"),
    ]


def test_each_entry_of_the_timeline_can_be_undone(page: Page, shop: Shop) -> None:
    visit(page, shop, new_shopper())
    first, second = listed(page)[:2]
    for item_id in (first, second):
        press(page, item_id, "like")
        expect(page.locator(f'[data-item="{item_id}"]')).to_have_count(0)
    rows = page.get_by_test_id("timeline").locator("li")
    rows.nth(1).get_by_role("button", name="Undo").click()
    expect(rows).to_have_count(3)
    expect(page.locator(f'[data-item="{first}"]')).to_have_count(1)
    expect(page.locator(f'[data-item="{second}"]')).to_have_count(0)
    page.reload()
    expect(rows).to_have_count(3)
    expect(page.locator(".ac-timeline li.undone")).to_have_count(1)
    page.locator(".ac-card").first.focus()
    page.keyboard.press("u")
    expect(page.locator(f'[data-item="{second}"]')).to_have_count(1)


def test_picking_another_user_shows_their_list_and_story(page: Page, shop: Shop) -> None:
    visit(page, shop, "alice")
    expect(page.get_by_test_id("story")).to_contain_text("birds")
    lenses = [page.locator(".ac-card .ac-category").nth(n).inner_text() for n in range(3)]
    assert all("Lenses" in category for category in lenses), lenses
    page.locator('[data-user="bob"]').click()
    expect(page.get_by_test_id("story")).to_contain_text("PCs")
    expect(page.locator(".ac-card .ac-category").first).to_contain_text("Case Fans")
    assert page.url.endswith("user=bob")


def test_a_toy_user_has_a_past_that_counts_once(page: Page, shop: Shop) -> None:
    history = f"{shop.api_url}/users/chiara/history"
    for _ in range(2):
        visit(page, shop, "chiara")
        wait_until(lambda: len(get(history)["events"]) == 2)
    assert {event["action"] for event in get(history)["events"]} == {"like"}
    expect(page.get_by_test_id("timeline").locator("li")).to_have_count(2)


def test_someone_new_starts_without_a_past(page: Page, shop: Shop) -> None:
    visit(page, shop, "alice")
    page.locator(".someone-new").click()
    expect(page.get_by_test_id("story")).to_contain_text("guest-")
    expect(page.locator(".ac-timeline .ac-empty")).to_be_visible()
    expect(page.locator(".ac-card").first).to_be_visible()


def test_any_user_id_can_be_typed_and_their_past_is_shown(page: Page, shop: Shop) -> None:
    visit(page, shop, "alice")
    page.get_by_label("Any user id").fill("shopper-1")
    page.get_by_role("button", name="Go").click()
    expect(page.get_by_test_id("story")).to_contain_text("shopper-1")
    expect(page.get_by_test_id("timeline").locator("li").first).to_contain_text("reviewed")


def test_what_is_done_elsewhere_shows_here_too(page: Page, shop: Shop) -> None:
    user_id = new_shopper()
    visit(page, shop, user_id)
    other = page.context.new_page()
    visit(other, shop, user_id)
    item_id = listed(page)[1]
    press(other, item_id, "purchase")
    expect(page.locator(f'[data-item="{item_id}"]')).to_have_count(0)
    expect(page.get_by_test_id("timeline").locator("li").first).to_contain_text("bought")


def test_the_keyboard_alone_is_enough(page: Page, shop: Shop) -> None:
    visit(page, shop, new_shopper())
    first, second = listed(page)[:2]
    page.locator(".ac-card").first.focus()
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.dataset.item") == second
    page.keyboard.press("l")
    expect(page.locator(f'[data-item="{second}"]')).to_have_count(0)
    wait_until(lambda: page.evaluate("document.activeElement.classList.contains('ac-card')"))
    assert first in listed(page)


def test_the_strip_shows_live_figures(page: Page, shop: Shop) -> None:
    visit(page, shop, new_shopper())
    for figure in ("events/s", "lag", "model"):
        expect(page.locator(f'[data-figure="{figure}"] dd')).not_to_be_empty()
    for item_id in listed(page)[:3]:
        press(page, item_id, "skip")
    wait_until(lambda: page.locator('[data-figure="events/s"] dd').inner_text() not in {"0", "-"})


def test_when_the_api_goes_the_list_stays_and_when_it_comes_back_the_page_mends(
    page: Page, shop: Shop
) -> None:
    visit(page, shop, new_shopper())
    before = listed(page)
    board = page.context.new_page()
    board.clock.install()
    board.goto(f"{shop.url}/live")
    aged = (
        '[data-tile="lag"] .ac-age',
        ".ac-pipeline",
        '[data-chart="rates"] .ac-age',
        '[data-panel="requests"] .ac-age',
    )
    for place in aged[2:]:
        expect(board.locator(place)).to_contain_text("s ago")
    api = shop.processes["serve"]
    api.kill()
    try:
        expect(page.locator(".ac-notice")).to_contain_text("The API is away")
        board.clock.fast_forward(12_000)
        for place in aged:
            expect(board.locator(place)).to_contain_text("stale")
        board.close()
        expect(page.locator(".ac-pulse")).to_have_text("connecting…")
        assert listed(page) == before
        press(page, before[0], "like")
        expect(page.locator(".ac-notice")).to_contain_text("did not arrive")
        expect(page.get_by_test_id("timeline").locator("li").first).to_contain_text(
            "did not arrive"
        )
    finally:
        api.start()
    expect(page.locator(".ac-pulse")).to_have_text("live", timeout=90_000)
    expect(page.locator(".ac-notice")).to_have_text("", timeout=90_000)
    press(page, listed(page)[0], "skip")
    expect(page.get_by_test_id("headline")).to_contain_text("Because you skipped")
