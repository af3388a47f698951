"""The shop in a real browser on the real stack."""

from __future__ import annotations

import re
import urllib.request

from playwright.sync_api import Page, expect

from tests.ui.conftest import Shop, get, new_shopper
from tests.waiting import PATIENCE_S, wait_until


def visit(page: Page, shop: Shop, user_id: str) -> None:
    """Open the shop as a user and wait for the list and the live connection."""
    page.goto(f"{shop.url}/?user={user_id}")
    expect(page.locator(".ac-card").first).to_be_visible()
    expect(page.locator(".ac-connection")).to_have_text("live")


def shown_items(page: Page) -> list[str]:
    """The item ids of the cards, in order."""
    cards = page.locator(".ac-card")
    return [str(x) for x in cards.evaluate_all("cards => cards.map(card => card.dataset.item)")]


def press(page: Page, item_id: str, action: str) -> None:
    page.locator(f'[data-item="{item_id}"] [data-action="{action}"]').click()


def test_a_like_changes_the_list_and_shows_the_cause(page: Page, shop: Shop) -> None:
    user_id = new_shopper()
    visit(page, shop, user_id)
    before = shown_items(page)
    title = page.locator(f'[data-item="{before[2]}"] .ac-title').inner_text()
    press(page, before[2], "like")
    expect(page.locator(f'[data-item="{before[2]}"]')).to_have_count(0)
    expect(page.get_by_test_id("headline")).to_contain_text(f"Because you liked {title}")
    after = shown_items(page)
    assert after != before
    assert len(after) == len(before)
    expect(page.get_by_test_id("timeline").locator("li").first).to_contain_text(f"liked {title}")
    events = get(f"{shop.api_url}/users/{user_id}/history")["events"]
    assert [(event["item_id"], event["action"]) for event in events] == [(before[2], "like")]


def test_cards_move_in_place_and_show_the_cause(page: Page, shop: Shop) -> None:
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
    first, second = shown_items(page)[:2]
    title = page.locator(f'[data-item="{first}"] .ac-title').inner_text()
    press(page, first, "like")
    moved = page.locator(".ac-card .ac-moved").first
    expect(moved).to_have_attribute(
        "title", re.compile(rf"^(up|down) \d+: you liked {re.escape(title)}|added")
    )
    moves = page.evaluate("window.moves")
    assert any("translate" in move for move in moves), "cards that stay slide to their new rank"
    assert any("opacity" in move for move in moves), "cards that enter fade in"
    staying = page.locator(f'[data-item="{second}"]')
    if staying.count():
        assert staying.evaluate("card => card.seenBefore"), "a card that stays is the same element"


def test_popular_items_are_marked_as_trending_now(page: Page, shop: Shop) -> None:
    visit(page, shop, new_shopper())
    expect(page.locator(".ac-badge", has_text="trending now").first).to_be_visible()
    expect(page.locator(".ac-confidence").first).to_have_text("not personal")


def test_every_button_sends_its_event(page: Page, shop: Shop) -> None:
    user_id = new_shopper()
    visit(page, shop, user_id)
    for action in ("like", "skip", "basket", "purchase"):
        item_id = shown_items(page)[0]
        press(page, item_id, action)
        expect(page.locator(f'[data-item="{item_id}"]')).to_have_count(0)
    events = get(f"{shop.api_url}/users/{user_id}/history")["events"]
    assert [event["action"] for event in events] == ["purchase", "basket", "skip", "like"]


def test_the_timeline_shows_the_log_position_of_each_action(page: Page, shop: Shop) -> None:
    visit(page, shop, new_shopper())
    press(page, shown_items(page)[0], "skip")
    row = page.get_by_test_id("timeline").locator("li").first
    expect(row.locator("code").first).to_have_text(re.compile(r"feedback/\d+/\d+"))
    expect(row).to_contain_text(re.compile(r"\d+ ms"))


def test_undoing_the_last_action_restores_the_list(page: Page, shop: Shop) -> None:
    user_id = new_shopper()
    visit(page, shop, user_id)
    before = shown_items(page)
    title = page.locator(f'[data-item="{before[1]}"] .ac-title').inner_text()
    press(page, before[1], "skip")
    expect(page.locator(f'[data-item="{before[1]}"]')).to_have_count(0)
    page.get_by_test_id("undo-last").click()
    expect(page.get_by_test_id("headline")).to_contain_text(f"Because you undid {title}")
    expect(page.locator(f'[data-item="{before[1]}"]')).to_have_count(1)
    assert sorted(shown_items(page)) == sorted(before)
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
    first, second = shown_items(page)[:2]
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
    for n in range(3):  # the first visit sends the history, which the list then follows
        expect(page.locator(".ac-card .ac-category").nth(n)).to_contain_text("Lenses")
    page.locator('[data-user="bob"]').click()
    expect(page.get_by_test_id("story")).to_contain_text("PCs")
    expect(page.locator(".ac-card .ac-category").first).to_contain_text("Case Fans")
    assert page.url.endswith("user=bob")


def test_a_demo_user_gets_a_history_that_counts_once(page: Page, shop: Shop) -> None:
    history = f"{shop.api_url}/users/chiara/history"
    for _ in range(2):
        visit(page, shop, "chiara")
        wait_until(lambda: len(get(history)["events"]) == 2)
    assert {event["action"] for event in get(history)["events"]} == {"like"}
    expect(page.get_by_test_id("timeline").locator("li")).to_have_count(2)


def test_a_new_user_starts_without_a_history(page: Page, shop: Shop) -> None:
    visit(page, shop, "alice")
    page.locator(".new-user").click()
    expect(page.get_by_test_id("story")).to_contain_text("guest-")
    expect(page.locator(".ac-timeline .ac-empty")).to_be_visible()
    expect(page.locator(".ac-card").first).to_be_visible()


def test_any_user_id_can_be_typed_and_its_history_is_shown(page: Page, shop: Shop) -> None:
    visit(page, shop, "alice")
    page.get_by_label("Any user id").fill("shopper-1")
    page.get_by_role("button", name="Go").click()
    expect(page.get_by_test_id("story")).to_contain_text("shopper-1")
    expect(page.get_by_test_id("timeline").locator("li").first).to_contain_text("reviewed")


def test_an_action_in_another_tab_changes_the_list_here(page: Page, shop: Shop) -> None:
    user_id = new_shopper()
    visit(page, shop, user_id)
    other = page.context.new_page()
    visit(other, shop, user_id)
    item_id = shown_items(page)[1]
    press(other, item_id, "purchase")
    expect(page.locator(f'[data-item="{item_id}"]')).to_have_count(0)
    expect(page.get_by_test_id("timeline").locator("li").first).to_contain_text("bought")


def test_the_shop_works_with_the_keyboard(page: Page, shop: Shop) -> None:
    visit(page, shop, new_shopper())
    first, second = shown_items(page)[:2]
    page.locator(".ac-card").first.focus()
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.dataset.item") == second
    page.keyboard.press("l")
    expect(page.locator(f'[data-item="{second}"]')).to_have_count(0)
    wait_until(lambda: page.evaluate("document.activeElement.classList.contains('ac-card')"))
    assert first in shown_items(page)


def test_the_stats_bar_shows_live_figures(page: Page, shop: Shop) -> None:
    visit(page, shop, new_shopper())
    for figure in ("events/s", "lag", "model"):
        expect(page.locator(f'[data-figure="{figure}"] dd')).not_to_be_empty()
    for item_id in shown_items(page)[:3]:
        press(page, item_id, "skip")
    wait_until(lambda: page.locator('[data-figure="events/s"] dd').inner_text() not in {"0", "-"})


def test_the_list_stays_while_the_api_is_down_and_the_page_recovers(page: Page, shop: Shop) -> None:
    visit(page, shop, new_shopper())
    before = shown_items(page)
    dashboard = page.context.new_page()
    dashboard.clock.install()
    dashboard.goto(f"{shop.url}/live")
    aged = (
        '[data-tile="lag"] .ac-age',
        ".ac-pipeline",
        '[data-chart="rates"] .ac-age',
        '[data-panel="requests"] .ac-age',
    )
    for selector in aged[2:]:
        expect(dashboard.locator(selector)).to_contain_text("s ago")
    api = shop.processes["serve"]
    api.kill()
    try:
        expect(page.locator(".ac-notice")).to_contain_text("The API is unavailable")
        dashboard.clock.fast_forward(12_000)
        for selector in aged:
            expect(dashboard.locator(selector)).to_contain_text("stale")
        dashboard.close()
        expect(page.locator(".ac-connection")).to_have_text("connecting…")
        assert shown_items(page) == before
        press(page, before[0], "like")
        expect(page.locator(".ac-notice")).to_contain_text("Not sent")
        expect(page.get_by_test_id("timeline").locator("li").first).to_contain_text("not sent")
    finally:
        api.start()
    expect(page.locator(".ac-connection")).to_have_text("live", timeout=90_000)
    expect(page.locator(".ac-notice")).to_have_text("", timeout=90_000)
    press(page, shown_items(page)[0], "skip")
    expect(page.get_by_test_id("headline")).to_contain_text("Because you skipped")


def test_the_first_response_contains_the_list(page: Page, shop: Shop) -> None:
    visit(page, shop, "bob")
    titles = page.locator(".ac-card .ac-title").all_inner_texts()

    def response() -> str:
        with urllib.request.urlopen(f"{shop.url}/?user=bob", timeout=PATIENCE_S) as answer:
            return str(answer.read(), "utf-8")

    wait_until(lambda: any(title in response() for title in titles), what="a response with cards")


def test_each_action_reports_its_latency(page: Page, shop: Shop) -> None:
    """The latency on the screen includes the page server's, and the stages are complete."""
    visit(page, shop, new_shopper())
    for n in range(3):
        press(page, shown_items(page)[n], "like")
        page.wait_for_function("n => (window.afterclickLatencies ?? []).length > n", arg=n)
        row = page.get_by_test_id("timeline").locator("li").first
        expect(row.locator("code").last).to_contain_text(" ms")
        server_ms = int(row.locator("code").last.inner_text().split()[-2])
        assert page.evaluate("window.afterclickLatencies.at(-1)") > server_ms - 1
    stages = page.evaluate("window.afterclickStages.at(-1)")
    assert {"clicked", "handled", "received", "shown", "got", "dom", "frame"} < set(stages)
    assert stages["clicked"] < stages["got"] <= stages["dom"] <= stages["frame"] < stages["painted"]
