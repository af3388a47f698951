"""Limits on open WebSockets: per user, per address and in total."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from afterclick.settings import ServingSettings, Settings
from tests.serving.mini_stream import MiniStream
from tests.serving.running import Running, received
from tests.waiting import wait_until

LIKERS = 16


def limited(settings: Settings, **limits: int) -> Settings:
    return settings.model_copy(update={"serving": ServingSettings(**limits)})


def refusal(api: Running, path: str) -> int:
    """The status of a connection that is refused."""
    with pytest.raises(InvalidStatus) as refused, connect(f"{api.ws}{path}"):
        pass
    assert refused.value.response.headers["retry-after"] == "1"
    return refused.value.response.status_code


def watch(user_id: str) -> str:
    return f"/ws/recommendations?user_id={user_id}"


def test_one_user_leaves_room_for_others(settings: Settings) -> None:
    with Running(limited(settings, max_websockets_per_user=2)) as api, ExitStack() as stack:
        first, _ = (
            stack.enter_context(connect(f"{api.ws}{watch('ann')}", close_timeout=1))
            for _ in range(2)
        )
        assert refusal(api, watch("ann")) == 429
        with connect(f"{api.ws}{watch('bob')}") as other, connect(f"{api.ws}/ws/live") as live:
            assert received(other)["type"] == "recommendations"
            assert received(live)["type"] == "figures"
        first.close()
        wait_until(lambda: api.service.websockets.open("user", "ann") == 1)
        with connect(f"{api.ws}{watch('ann')}") as again:
            assert received(again)["type"] == "recommendations"
        text = api.http.get("/metrics").text
        assert 'afterclick_refused_websockets{limit="user"} 1.0' in text
        assert 'afterclick_connections{state="open"}' in text


@pytest.mark.parametrize(("limit", "status"), [("_per_address", 429), ("", 503)])
def test_the_excess_of_an_address_and_in_total_is_refused(
    settings: Settings, limit: str, status: int
) -> None:
    bounded = limited(settings, **{f"max_websockets{limit}": 2})
    with Running(bounded) as api, ExitStack() as stack:
        for user_id in ("ann", "bob"):
            stack.enter_context(connect(f"{api.ws}{watch(user_id)}"))
        assert [refusal(api, watch("cid")), refusal(api, "/ws/live")] == [status, status]
        assert api.http.get("/popular").status_code == 200


def test_the_list_for_all_connections_of_a_user_is_made_once(
    settings: Settings, shop_api: Running, stream: MiniStream
) -> None:
    with ExitStack() as stack:
        open_one = f"{shop_api.ws}{watch('ann')}"
        sockets = [stack.enter_context(connect(open_one)) for _ in range(LIKERS)]
        for socket in sockets:
            assert received(socket)["cause"] is None
        cached = shop_api.service.metrics.cached
        before = cached._value.get()
        shop_api.feedback("ann", "camera-1")
        for socket in sockets:
            assert received(socket)["cause"]["item_id"] == "camera-1"
        assert cached._value.get() - before == LIKERS - 1
        assert refusal(shop_api, watch("ann")) == 429
