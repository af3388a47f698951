"""The rate limit: a moving window per caller, weighted by lists, whatever the number of callers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from limits import parse
from limits.aio.storage import MemoryStorage
from limits.aio.strategies import MovingWindowRateLimiter
from websockets.sync.client import connect

from afterclick.errors import BadInput
from afterclick.settings import RedisSettings, Settings
from serving.control.auth import _address
from serving.control.rate_limit import CallerWindows, RateLimit
from tests.serving.mini_stream import MiniStream
from tests.serving.running import Running, received
from tests.serving.test_auth import bearer, guarded
from tests.traced_lines import traced_lines
from tests.waiting import PATIENCE_S

Hit = Callable[[str], Awaitable[Any]]


class Clock:
    """Seconds that the test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def lines_of_a_call(hit: Hit, callers: int) -> int:
    """Lines of Python that one call runs in the event loop's thread, after so many callers."""

    async def measured() -> int:
        for caller in range(callers):
            await hit(f"caller-{caller}")
        if background := asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.gather(*background)
        with traced_lines() as lines:
            await asyncio.create_task(_with_background(hit))
        return lines.count

    return asyncio.run(measured())


async def _with_background(hit: Hit) -> None:
    before = asyncio.all_tasks()
    await hit("caller-0")
    if started := asyncio.all_tasks() - before:
        await asyncio.gather(*started)


def test_a_call_costs_the_same_with_100_000_callers() -> None:
    def ours() -> Hit:
        return RateLimit("600/minute").allows

    assert lines_of_a_call(ours(), 100_000) == lines_of_a_call(ours(), 10) > 0


def test_control_the_storage_that_walks_all_callers_costs_more_with_more_callers() -> None:
    def of_the_library() -> Hit:
        limiter, item = MovingWindowRateLimiter(MemoryStorage()), parse("600/minute")
        return lambda caller: limiter.hit(item, caller)

    few, many = (lines_of_a_call(of_the_library(), callers) for callers in (10, 200))
    assert many > 5 * few


def test_the_window_moves() -> None:
    clock = Clock()
    windows = CallerWindows(10, 60.0, clock=clock)
    assert [windows.hit("bob") for _ in range(12)] == [True] * 10 + [False] * 2
    assert windows.hit("ann"), "callers are counted apart"
    clock.now += 59.0
    assert not windows.hit("bob")
    clock.now += 31.0  # half of the window before still counts
    assert [windows.hit("bob") for _ in range(6)] == [True] * 5 + [False]
    clock.now += 120.0
    assert [windows.hit("bob") for _ in range(11)] == [True] * 10 + [False]


def test_a_weighted_request_is_counted_whole_or_not_at_all() -> None:
    windows = CallerWindows(10, 60.0, clock=Clock())
    assert [windows.hit("bob", cost) for cost in (8, 3, 2, 1)] == [True, False, True, False]
    assert not windows.hit("ann", 11)


def test_the_number_of_callers_is_bounded_and_the_newest_are_counted() -> None:
    clock = Clock()
    windows = CallerWindows(1, 60.0, max_callers=100, clock=clock)
    for caller in range(1000):
        assert windows.hit(f"caller-{caller}")
    assert len(windows) == 100
    assert not windows.hit("caller-999")
    assert windows.hit("caller-0"), "forgotten: the caller idle longest"


def test_callers_that_no_longer_count_are_removed() -> None:
    clock = Clock()
    windows = CallerWindows(1, 60.0, clock=clock)
    for caller in range(1000):
        windows.hit(f"caller-{caller}")
    clock.now += 119.0
    windows.hit("early")
    assert len(windows) == 1001, "their last window still counts"
    clock.now += 1.0
    for caller in range(1000):
        windows.hit(f"new-{caller}")
    assert len(windows) == 1001


def test_batches_and_long_lists_count_as_their_lists(settings: Settings) -> None:
    with Running(guarded(settings, limit="10/minute")) as api:

        def batch(users: int, key: str) -> int:
            body = {"user_ids": [f"u{number}" for number in range(users)]}
            path = "/recommendations/batch"
            return api.http.post(path, json=body, headers=bearer(key)).status_code

        assert [batch(8, "r-key"), batch(2, "r-key"), batch(1, "r-key")] == [200, 200, 429]
        long_lists = [
            api.http.get("/popular", params={"n": n}, headers=bearer("a-key"))
            for n in (200, 200, 50, 51, 10)
        ]
        assert [response.status_code for response in long_lists] == [200, 200, 200, 429, 429]
        assert "counts as 2" in long_lists[3].json()["detail"]


def test_lists_on_a_websocket_count_as_those_by_rest(
    settings: Settings, stream: MiniStream
) -> None:
    with Running(guarded(settings, limit="10/hour")) as api:
        api.ready()
        api.http.headers.update(bearer("f-key"))
        url = f"{api.ws}/ws/recommendations?user_id=bob&n=200"
        with connect(url, additional_headers=bearer("r-key")) as socket:
            assert received(socket)["cause"] is None
            api.feedback("bob", "camera-1")
            assert received(socket)["cause"]["item_id"] == "camera-1"

            def status(n: int) -> int:
                reader = bearer("r-key")
                return api.http.get("/popular", params={"n": n}, headers=reader).status_code

            assert [status(150), status(1), status(1)] == [429, 200, 429], "two lists count as 8"
            api.feedback("bob", "camera-2")
            assert socket.ping().wait(PATIENCE_S), "a list over the limit is pushed later"


def test_processes_that_share_their_limit_weigh_batches_too(settings: Settings) -> None:
    body = {"user_ids": [f"u{number}" for number in range(6)]}
    shared = guarded(settings, limit="10/minute", limit_shared=True)
    with Running(shared) as one, Running(shared) as other:
        found = [
            api.http.post("/recommendations/batch", json=body, headers=bearer("r-key")).status_code
            for api in (one, other)
        ]
    assert found == [200, 429]


@pytest.mark.parametrize(
    ("client", "caller"),
    [
        ("203.0.113.7", "address:203.0.113.7"),
        ("2001:db8:1:2:aaaa::1", "address:2001:db8:1:2::/64"),
        ("2001:db8:1:2:bbbb::9", "address:2001:db8:1:2::/64"),
        ("fe80::1%eth0", "address:fe80::/64"),
        ("a:name", "address:a:name"),
    ],
)
def test_the_addresses_of_one_network_are_one_caller(client: str, caller: str) -> None:
    assert _address({"client": (client, 1234)}) == caller


def test_a_malformed_limit_is_named_in_the_error() -> None:
    with pytest.raises(BadInput, match="AFTERCLICK_SERVING__LIMIT"):
        RateLimit("many per day")
    with pytest.raises(BadInput, match="cluster"):
        RateLimit("5/minute", RedisSettings(cluster=True))
