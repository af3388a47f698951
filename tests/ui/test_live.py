"""The dashboard in a real browser on the real stack."""

from __future__ import annotations

import re
import urllib.error
import urllib.request

import orjson
from confluent_kafka import Producer
from playwright.sync_api import Page, expect

from afterclick.events import new_id
from tests.ui.conftest import Shop, get, new_shopper
from tests.waiting import PATIENCE_S, wait_until


def visit(page: Page, shop: Shop) -> None:
    page.goto(f"{shop.url}/live")
    expect(page.locator(".ac-pulse")).to_have_text("live")


def like(shop: Shop, user_id: str, item_id: str, event_id: str) -> None:
    """Send a like, again while Kafka is too slow to take it."""
    body = orjson.dumps(
        {"user_id": user_id, "item_id": item_id, "action": "like", "event_id": event_id}
    )
    request = urllib.request.Request(
        f"{shop.api_url}/feedback", data=body, headers={"content-type": "application/json"}
    )

    def status() -> int | None:
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE_S) as response:
                found: int = response.status
                return found
        except urllib.error.HTTPError as error:
            if error.code == 503:
                return None
            raise

    assert wait_until(status, what="Kafka takes feedback") == 202


def newest(page: Page, chart: str) -> float:
    """The time of the last point of a chart's first curve; 0.0 where there is none."""
    found: float = page.evaluate(
        """chart => {
            const element = document.querySelector(`[data-chart=${chart}] .nicegui-echart`);
            const option = getElement(element.id.slice(1))?.chart?.getOption();
            return option?.dataset?.[0]?.source?.at(-1)?.[0] ?? 0;
        }""",
        chart,
    )
    return found


def points(page: Page, chart: str) -> int:
    """How many points the first curve of a chart has."""
    found: int = page.evaluate(
        """chart => {
            const element = document.querySelector(`[data-chart=${chart}] .nicegui-echart`);
            const option = getElement(element.id.slice(1))?.chart?.getOption();
            return (option?.dataset?.[0]?.source ?? option?.series?.[0]?.data)?.length ?? 0;
        }""",
        chart,
    )
    return found


def test_the_pipeline_shows_every_station_with_its_figures(page: Page, shop: Shop) -> None:
    visit(page, shop)
    pipeline = page.get_by_test_id("pipeline")
    for station in ("Kafka", "Spark", "Redis", "Ranker", "Viewers"):
        expect(pipeline.get_by_role("heading", name=station)).to_be_visible()
    expect(pipeline).to_contain_text("reviews")
    expect(page.locator('[data-tile="interactions"] dd:first-of-type')).not_to_have_text("-")
    expect(page.locator('[data-tile="lag"] .ac-age')).to_contain_text("s ago")
    expect(pipeline.locator('[data-row="lag"] dd')).not_to_have_text("-")
    expect(pipeline.locator('[data-row$="reviews"]')).to_have_attribute(
        "title", re.compile(r"position \d+")
    )
    for stage in ("queue", "apply", "notify", "push"):
        expect(pipeline.locator(f'[data-flow="{stage}"]')).to_contain_text("p50 / p99")


def test_an_event_shows_in_the_feed_as_applied_and_sent_again_as_duplicate(
    page: Page, shop: Shop
) -> None:
    visit(page, shop)
    user_id, event_id = new_shopper(), new_id()
    like(shop, user_id, "G0003", event_id)
    row = page.get_by_test_id("feed").locator("tr", has_text=user_id)
    expect(row.first).to_contain_text("applied")
    like(shop, user_id, "G0003", event_id)
    expect(row).to_have_count(2)
    expect(row.first).to_contain_text("duplicate")
    for figure in ('[data-tile="refused"] dd:first-of-type', '[data-row="duplicates refused"] dd'):
        expect(page.locator(figure)).not_to_have_text(re.compile("^[0-]$"))
    assert len(get(f"{shop.api_url}/users/{user_id}/history")["events"]) == 1


def test_charts_stream_and_pause_holds_them_still(page: Page, shop: Shop) -> None:
    visit(page, shop)
    first = wait_until(lambda: newest(page, "rates"))
    wait_until(lambda: newest(page, "rates") > first, what="the chart goes on")
    page.get_by_test_id("pause").click()
    expect(page.get_by_test_id("pause")).to_have_attribute("aria-pressed", "true")
    expect(page.get_by_test_id("pause")).to_have_text("Go on")
    held = newest(page, "rates")
    page.wait_for_timeout(2500)
    assert newest(page, "rates") == held
    expect(page.locator('[data-chart="rates"] .ac-age')).to_have_text(
        re.compile(r"^\s*([3-9]|\d\d) s ago")
    )
    page.get_by_test_id("pause").click()
    wait_until(lambda: newest(page, "rates") > held, what="the chart goes on")


def test_the_window_shortens_the_charts(page: Page, shop: Shop) -> None:
    visit(page, shop)
    page.locator('[data-key="60"]').click()
    expect(page.locator('[data-key="60"]')).to_have_attribute("aria-pressed", "true")
    wait_until(lambda: 0 < points(page, "rates") <= 62)


def test_the_race_follows_the_chosen_window(page: Page, shop: Shop) -> None:
    visit(page, shop)
    wait_until(lambda: points(page, "race") == 10)
    page.locator('.ac-segments [data-key=""]').click()
    names = """() => getElement(document.querySelector('[data-chart=race] .nicegui-echart').id.slice(1))
        .chart.getOption().yAxis[0].data[0]"""
    best = get(f"{shop.api_url}/popular?n=1")["items"][0]
    wait_until(lambda: page.evaluate(names) == best["title"])


def test_lists_dead_letters_and_models_are_shown(page: Page, shop: Shop) -> None:
    topic = shop.settings.kafka.topics.feedback
    producer = Producer(
        {"bootstrap.servers": shop.settings.kafka.bootstrap, "enable.idempotence": True}
    )
    producer.produce(topic, b"{no event", "somebody")
    assert producer.flush(20) == 0
    get(f"{shop.api_url}/recommendations?user_id={new_shopper()}")
    visit(page, shop)
    expect(page.locator('[data-panel="models"]')).to_have_count(1)
    expect(page.locator('[data-panel="models"]')).to_contain_text("No model yet")
    expect(page.locator('[data-panel="experiments"]')).to_contain_text("No experiment yet")
    expect(page.locator('[data-panel="exposure"]')).to_contain_text("Trending now")
    expect(page.locator('[data-panel="dead-letters"]')).to_contain_text("{no event", timeout=60_000)
    expect(page.locator('[data-panel="dead-letters"]')).to_contain_text("JSON")
    expect(page.locator('[data-tile="dead letters"] dd:first-of-type')).not_to_have_text("0")
    expect(page.locator('[data-panel="requests"]')).to_contain_text(
        "GET /recommendations?user_id=visitor-"
    )
    expect(page.locator('[data-panel="requests"]')).not_to_contain_text("/dead-letters")


def curves(page: Page, chart: str) -> list[str]:
    """The names of a chart's curves."""
    found: list[str] = page.evaluate(
        """chart => {
            const element = document.querySelector(`[data-chart=${chart}] .nicegui-echart`);
            return (getElement(element.id.slice(1))?.chart?.getOption()?.series ?? []).map(one => one.name);
        }""",
        chart,
    )
    return found


def test_clicks_by_source_and_the_shares_of_departments_stream(page: Page, shop: Shop) -> None:
    user_id = new_shopper()
    visit(page, shop)
    shown = get(f"{shop.api_url}/recommendations?user_id={user_id}")
    like(shop, user_id, "G0000", new_id())
    wait_until(
        lambda: "Trending now, no model" in curves(page, "ctr"),
        50,
        what=f"a curve of {shown['source']}",
    )
    wait_until(lambda: "Camera & Photo" in curves(page, "shares"))


def test_pointing_at_a_chart_says_its_values(page: Page, shop: Shop) -> None:
    visit(page, shop)
    wait_until(lambda: points(page, "rates") > 3)
    canvas = page.locator('[data-chart="rates"] canvas').first
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] * 0.7, box["y"] + box["height"] / 2)
    expect(page.locator('[data-chart="rates"]')).to_contain_text(
        re.compile(r"events.*per second", re.S)
    )


def test_looking_at_the_comparison_is_no_list_shown(page: Page, shop: Shop) -> None:
    def lists() -> int:
        return sum(row["lists"] for row in get(f"{shop.api_url}/exposure")["rows"])

    user_id, before = new_shopper(), lists()
    page.goto(f"{shop.url}/compare?user={user_id}")
    expect(page.get_by_test_id("comparison").locator("section")).to_have_count(5)
    assert lists() == before
    page.goto(f"{shop.url}/?user={user_id}")
    wait_until(lambda: lists() == before + 1, what="the shop's list is counted, once")
