"""Load shedding: lists of an overloaded server use fewer candidates and are marked as reduced."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from typing import Any

import httpx2
import orjson
import pytest

from afterclick.settings import Settings
from serving.monitoring import EventLoopLag
from serving.recommender import MAX_WAITING, MAX_WAITING_PER_CALLER
from serving.request import RecommendationRequest
from tests.serving import shop
from tests.serving.mini_stream import MiniStream
from tests.serving.offline import Offline
from tests.serving.running import Running
from tests.serving.test_auth import bearer, guarded
from tests.waiting import PATIENCE_S, wait_until

LIKED = {"ann": ["camera-3", "camera-5"]}


def test_the_lag_is_as_long_as_the_loop_was_blocked() -> None:
    async def found() -> tuple[float, float]:
        pulse = EventLoopLag()
        pulse.start()
        await asyncio.sleep(0)
        time.sleep(0.2)  # blocks the loop
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


def test_an_overloaded_server_searches_no_index_and_recovers() -> None:
    served = Offline(liked=LIKED, model=shop.model("m1"))
    served.busy = True
    reduced = served.answer(RecommendationRequest("ann", 10))
    assert reduced.body["reduced"]
    assert reduced.body["source"] == "personalised"
    rows = orjson.loads(reduced.rendered.items)
    assert rows
    assert not {row["source"] for row in rows} & {"als", "tower", "content"}
    assert all(abs(sum(row["contributions"].values()) - row["score"]) < 1e-6 for row in rows)
    served.busy = False
    assert not served.answer(RecommendationRequest("ann", 10)).body["reduced"]


def test_an_overloaded_server_returns_the_cached_full_list() -> None:
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
def test_batch_and_impersonal_lists_are_never_reduced(
    ask: RecommendationRequest,
) -> None:
    served = Offline(liked=LIKED, model=shop.model("m1"))
    served.busy = True
    assert not served.answer(ask).body["reduced"]


@pytest.fixture
def overloaded(settings: Settings, stream: MiniStream) -> Iterator[Running]:
    """An API that sheds load as soon as its event loop lags."""
    with Running(settings, shed_after_ms=0.001) as api:
        api.ready()
        shop.publish_items(settings, shop.wide_catalogue())
        shop.publish(settings, *shop.write(settings, "m1"))
        wait_until(lambda: api.service.snapshots.current.loaded.version == "m1")
        yield api


def test_concurrent_requests_get_reduced_lists_and_a_batch_does_not(overloaded: Running) -> None:
    users = [f"user-{n}" for n in range(40)]

    def personalised(user: str) -> bool:
        return bool(overloaded.list_for(user, preview=True)["source"] == "personalised")

    for user in users:
        overloaded.feedback(user, "camera-3")
    for user in users:
        wait_until(partial(personalised, user))

    def ask(user: str) -> dict[str, Any]:
        return overloaded.get("/recommendations", user_id=user, n=10, exclude="cable-1")

    def reduced() -> list[dict[str, Any]]:
        with ThreadPoolExecutor(len(users)) as crowd:
            return [answer for answer in crowd.map(ask, users) if answer["reduced"]]

    lists = wait_until(reduced, what="a reduced list")
    assert {answer["source"] for answer in lists} == {"personalised"}
    counted = overloaded.service.metrics.registry.get_sample_value("afterclick_reduced_lists_total")
    assert counted is not None
    assert counted >= len(lists)
    response = overloaded.http.post("/recommendations/batch", json={"user_ids": users, "n": 9})
    assert not any(answer["reduced"] for answer in response.json()["lists"])


def test_searches_of_one_caller_are_bounded_and_leave_room_for_others(settings: Settings) -> None:
    release = threading.Event()
    with (
        Running(guarded(settings)) as api,
        ThreadPoolExecutor(MAX_WAITING_PER_CALLER + 2) as threads,
    ):

        def search(key: str) -> httpx2.Response:
            return api.http.get("/search", params={"q": "camera"}, headers=bearer(key))

        api.service.recommender._worker.submit(release.wait, PATIENCE_S)
        waiting = api.service.recommender.waiting
        try:
            flood = [threads.submit(search, "r-key") for _ in range(MAX_WAITING_PER_CALLER + 1)]
            refused = next(as_completed(flood)).result()
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
            other = threads.submit(search, "a-key")
            wait_until(lambda: waiting.open() == MAX_WAITING_PER_CALLER + 1 < MAX_WAITING)
        finally:
            release.set()
        statuses = Counter(call.result().status_code for call in (*flood, other))
        assert statuses == {200: MAX_WAITING_PER_CALLER + 1, 503: 1}
        assert waiting.open() == 0
        text = api.http.get("/metrics", headers=bearer("a-key")).text
        assert 'afterclick_refused_worker_calls{limit="caller"} 1.0' in text
