"""The dashboard in a real browser on the real stack."""

from __future__ import annotations

import re
import urllib.error
import urllib.request
from contextlib import ExitStack, closing

import orjson
from confluent_kafka import Producer
from playwright.sync_api import Page, expect
from websockets.sync.client import connect

from afterclick.events import new_id
from afterclick.exposures import LISTS
from afterclick.io.kafka_log import KafkaLog
from afterclick.io.redis_clients import create_redis
from serving.events.exposures import ExposureReader
from streaming.exposures import exposed_offsets
from tests.ui.conftest import Shop, get, new_shopper
from tests.ui.test_shop_page import visit as visit_shop
from tests.waiting import PATIENCE_S, wait_until

VIEWERS = 20


def visit(page: Page, shop: Shop) -> None:
    page.goto(f"{shop.url}/live")
    expect(page.locator(".ac-connection")).to_have_text("live")


def like(shop: Shop, user_id: str, item_id: str, event_id: str) -> None:
    """Send a like; repeat it while Kafka is too slow to accept it."""
    body = orjson.dumps(
        {"user_id": user_id, "item_id": item_id, "action": "like", "event_id": event_id}
    )
    request = urllib.request.Request(
        f"{shop.api_url}/feedback", data=body, headers={"content-type": "application/json"}
    )

    def status() -> int | None:
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE_S) as response:
                code: int = response.status
                return code
        except urllib.error.HTTPError as error:
            if error.code == 503:
                return None
            raise

    assert wait_until(status, what="Kafka accepts feedback") == 202


def newest(page: Page, chart: str) -> float:
    """The time of the last point of a chart's first curve; 0.0 without points."""
    time: float = page.evaluate(
        """chart => {
            const element = document.querySelector(`[data-chart=${chart}] .nicegui-echart`);
            const option = getElement(element.id.slice(1))?.chart?.getOption();
            return option?.dataset?.[0]?.source?.at(-1)?.[0] ?? 0;
        }""",
        chart,
    )
    return time


def points(page: Page, chart: str) -> int:
    """The number of points of a chart's first curve."""
    count: int = page.evaluate(
        """chart => {
            const element = document.querySelector(`[data-chart=${chart}] .nicegui-echart`);
            const option = getElement(element.id.slice(1))?.chart?.getOption();
            return (option?.dataset?.[0]?.source ?? option?.series?.[0]?.data)?.length ?? 0;
        }""",
        chart,
    )
    return count


def test_the_pipeline_shows_every_stage_with_its_figures(page: Page, shop: Shop) -> None:
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


def test_the_feed_shows_an_event_as_applied_and_a_resent_one_as_duplicate(
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


def test_charts_stream_until_paused(page: Page, shop: Shop) -> None:
    visit(page, shop)
    first = wait_until(lambda: newest(page, "rates"))
    wait_until(lambda: newest(page, "rates") > first, what="the chart continues")
    page.get_by_test_id("pause").click()
    expect(page.get_by_test_id("pause")).to_have_attribute("aria-pressed", "true")
    expect(page.get_by_test_id("pause")).to_have_text("Resume")
    paused_at = newest(page, "rates")
    page.wait_for_timeout(2500)
    assert newest(page, "rates") == paused_at
    expect(page.locator('[data-chart="rates"] .ac-age')).to_have_text(
        re.compile(r"^\s*([3-9]|\d\d) s ago")
    )
    page.get_by_test_id("pause").click()
    wait_until(lambda: newest(page, "rates") > paused_at, what="the chart continues")


def test_the_window_shortens_the_charts(page: Page, shop: Shop) -> None:
    visit(page, shop)
    page.locator('[data-key="60"]').click()
    expect(page.locator('[data-key="60"]')).to_have_attribute("aria-pressed", "true")
    wait_until(lambda: 0 < points(page, "rates") <= 62)


def test_the_leaderboard_follows_the_selected_window(page: Page, shop: Shop) -> None:
    visit(page, shop)
    wait_until(lambda: points(page, "leaderboard") == 10)
    page.locator('.ac-segments [data-key=""]').click()
    names = """() => {
        const element = document.querySelector('[data-chart=leaderboard] .nicegui-echart');
        return getElement(element.id.slice(1)).chart.getOption().yAxis[0].data[0];
    }"""
    top = get(f"{shop.api_url}/popular?n=1")["items"][0]
    wait_until(lambda: page.evaluate(names) == top["title"])


def test_lists_dead_letters_and_models_are_shown(page: Page, shop: Shop) -> None:
    topic = shop.settings.kafka.topics.feedback
    producer = Producer(
        {"bootstrap.servers": shop.settings.kafka.bootstrap, "enable.idempotence": True}
    )
    producer.produce(topic, b"{no event", "user-1")
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
    names: list[str] = page.evaluate(
        """chart => {
            const element = document.querySelector(`[data-chart=${chart}] .nicegui-echart`);
            const option = getElement(element.id.slice(1))?.chart?.getOption();
            return (option?.series ?? []).map(series => series.name);
        }""",
        chart,
    )
    return names


def test_ctr_by_source_and_department_shares_stream(page: Page, shop: Shop) -> None:
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


def test_the_tooltip_of_a_chart_shows_its_values(page: Page, shop: Shop) -> None:
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


def test_the_comparison_does_not_count_as_shown(page: Page, shop: Shop) -> None:
    user_id, before = new_shopper(), lists_shown(shop)
    page.goto(f"{shop.url}/compare?user={user_id}")
    expect(page.get_by_test_id("comparison").locator("section")).to_have_count(6)
    assert lists_shown(shop) == before
    page.goto(f"{shop.url}/?user={user_id}")
    wait_until(lambda: lists_shown(shop) == before + 1, what="the shop's list is counted, once")


def lists_shown(shop: Shop) -> int:
    """Lists shown, once the stream has counted all that are in the log."""
    wait_until(lambda: _is_counted(shop), what="every list in the log is counted")
    with closing(ExposureReader(shop.settings)) as reader:
        (today, yesterday) = reader.read(2)
    return sum(n for cell, n in (today + yesterday).items() if cell.column == LISTS)


def _is_counted(shop: Shop) -> bool:
    settings = shop.settings
    with KafkaLog(settings.kafka) as log, closing(create_redis(settings.redis)) as client:
        ranges = log.ranges(settings.kafka.topics.impressions)
        exposed = exposed_offsets(client, settings.redis.keys, ranges)
    return all(exposed[name] + 1 >= held.end for name, held in ranges.items())


def test_a_list_in_a_hidden_tab_counts_when_the_user_returns_to_it(page: Page, shop: Shop) -> None:
    def lists_sent() -> int:
        return sum(row["sent"] for row in get(f"{shop.api_url}/exposure")["rows"])

    page.add_init_script(
        "window.tabState = 'hidden';"
        "Object.defineProperty(document, 'visibilityState', {get: () => window.tabState});"
    )
    sent, lists = lists_sent(), lists_shown(shop)
    page.goto(f"{shop.url}/?user={new_shopper()}")
    expect(page.locator(".ac-card").first).to_be_visible()
    wait_until(lambda: lists_sent() == sent + 1, what="the list is sent")
    assert lists_shown(shop) == lists
    page.evaluate("tabState = 'visible'; document.dispatchEvent(new Event('visibilitychange'))")
    wait_until(lambda: lists_shown(shop) == lists + 1, what="the list is counted as seen")
    assert lists_sent() == sent + 1


def test_pages_and_sockets_watch_lists_and_pages_share_one_live_connection(
    page: Page, shop: Shop
) -> None:
    url = "ws" + shop.api_url.removeprefix("http") + "/ws/recommendations?user_id=viewer-"
    with ExitStack() as stack:
        sockets = [
            stack.enter_context(connect(f"{url}{n}", open_timeout=30)) for n in range(VIEWERS - 2)
        ]
        assert all(orjson.loads(socket.recv(PATIENCE_S))["items"] for socket in sockets)
        for n in (1, 2):
            context = page.context.browser.new_context()  # type: ignore[union-attr]
            stack.callback(context.close)
            visit_shop(context.new_page(), shop, f"viewer-page-{n}")
        visit(page, shop)
        station = page.locator(".ac-station", has_text="Viewers")
        expect(station.locator('[data-row="watching"] dd')).to_have_text(str(VIEWERS))
        expect(station.locator('[data-row="live"] dd')).to_have_text("1")
        assert get(f"{shop.api_url}/recommendations?user_id=viewer-1")["items"]
