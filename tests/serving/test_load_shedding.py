"""When requests queue up, lists are made from fewer candidates and say so; never those nobody
waits for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import orjson
import pytest

from afterclick.settings import Settings
from serving.monitoring import EventLoopLag
from serving.request import RecommendationRequest
from tests.serving import shop
from tests.serving.mini_stream import MiniStream
from tests.serving.offline import Offline
from tests.serving.running import Running
from tests.waiting import wait_until

LIKED = {"ann": ["camera-3", "camera-5"]}


def test_the_lag_is_as_long_as_the_loop_was_blocked() -> None:
    async def found() -> tuple[float, float]:
        pulse = EventLoopLag()
        pulse.start()
        await asyncio.sleep(0)
        time.sleep(0.2)  # holds the loop: that is what is measured
        held = pulse.lag_ms(time.monotonic())
        pulse.stop()
        return held, pulse.lag_ms(time.monotonic())

    held, after = asyncio.run(found())
    assert held >= 190
    assert after < held


def test_the_lag_includes_the_wait_of_the_request() -> None:
    assert EventLoopLag().lag_ms(time.monotonic() - 0.2) >= 200


def test_the_lag_recovers() -> None:
    async def found() -> float:
        pulse = EventLoopLag()
        pulse.start()
        time.sleep(0.2)
        late = pulse.lag_ms(time.monotonic())
        while pulse.lag_ms(time.monotonic()) > late / 2:
            await asyncio.sleep(0.001)
        pulse.stop()
        return late

    assert asyncio.run(asyncio.wait_for(found(), 30)) >= 190


def test_a_busy_server_searches_no_index_and_the_next_list_is_whole() -> None:
    served = Offline(liked=LIKED, model=shop.model("m1"))
    served.busy = True
    brief = served.answer(RecommendationRequest("ann", 10))
    assert brief.body["reduced"]
    assert brief.body["source"] == "personalised"
    rows = orjson.loads(brief.rendered.items)
    assert rows
    assert not {row["source"] for row in rows} & {"als", "tower", "content"}
    assert all(abs(sum(row["contributions"].values()) - row["score"]) < 1e-6 for row in rows)
    served.busy = False
    assert not served.answer(RecommendationRequest("ann", 10)).body["reduced"]


def test_a_list_made_in_time_is_still_there_when_the_server_is_busy() -> None:
    served = Offline(liked=LIKED, model=shop.model("m1"))
    whole = served.answer(RecommendationRequest("ann", 10))
    served.busy = True
    again = served.answer(RecommendationRequest("ann", 10))
    assert not again.body["reduced"]
    assert again.rendered == whole.rendered


@pytest.mark.parametrize(
    "ask",
    [
        RecommendationRequest("ann", 10, never_shed=True),
        RecommendationRequest("", 10),
        RecommendationRequest("a-stranger", 10),
    ],
)
def test_lists_that_nobody_waits_for_or_that_cost_nothing_are_made_in_full(
    ask: RecommendationRequest,
) -> None:
    served = Offline(liked=LIKED, model=shop.model("m1"))
    served.busy = True
    assert not served.answer(ask).body["reduced"]


@pytest.fixture
def hurried(settings: Settings, stream: MiniStream) -> Iterator[Running]:
    """An API that is busy as soon as its loop is late at all."""
    with Running(settings, shed_after_ms=0.001) as api:
        api.ready()
        shop.publish_items(settings, shop.wide_catalogue())
        shop.publish(settings, *shop.write(settings, "m1"))
        wait_until(lambda: api.service.snapshots.current.loaded.version == "m1")
        yield api


def test_a_crowd_gets_reduced_lists_a_batch_does_not_and_they_are_counted(hurried: Running) -> None:
    users = [f"user-{n}" for n in range(40)]
    for user in users:
        hurried.tell(user, "camera-3")
    for user in users:
        wait_until(
            lambda user=user: hurried.list_for(user, preview=True)["source"] == "personalised"
        )

    def ask(user: str) -> dict[str, Any]:
        return hurried.get("/recommendations", user_id=user, n=10, exclude="cable-1")

    def brief() -> list[dict[str, Any]]:
        with ThreadPoolExecutor(len(users)) as crowd:
            return [answer for answer in crowd.map(ask, users) if answer["reduced"]]

    lists = wait_until(brief, what="a list made in a hurry")
    assert {answer["source"] for answer in lists} == {"personalised"}
    counted = hurried.service.metrics.registry.get_sample_value("afterclick_reduced_lists_total")
    assert counted is not None
    assert counted >= len(lists)
    response = hurried.http.post("/recommendations/batch", json={"user_ids": users, "n": 9})
    assert not any(answer["reduced"] for answer in response.json()["lists"])
