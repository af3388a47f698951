"""A degraded or model-less list is pushed again without a new event."""

from __future__ import annotations

import pytest
from websockets.sync.client import connect

from afterclick.settings import Settings
from infra.embedded.server import ValkeyServer
from serving.recommender import MAX_WAITING
from serving.service import ServingTimings
from tests.serving import shop
from tests.serving.mini_stream import MiniStream
from tests.serving.running import Running, after, received
from tests.waiting import PATIENCE_S, wait_until

NEVER_S = 10 * PATIENCE_S


@pytest.mark.parametrize("retries", [True, False], ids=["retried", "control: at the next event"])
def test_a_list_without_history_is_pushed_again_once_redis_responds(
    settings: Settings, own_redis: ValkeyServer, retries: bool
) -> None:
    timings = ServingTimings(push_retry_s=0.2 if retries else NEVER_S)
    redis = settings.redis.model_copy(update={"url": own_redis.address, "timeout_s": 1.0})
    settings = settings.model_copy(update={"redis": redis})
    with Running(settings, timings=timings) as api, MiniStream(settings):
        api.ready()
        after(api, "bob", api.feedback("bob", "camera-1"))
        own_redis.process.suspend()
        with connect(f"{api.ws}/ws/recommendations?user_id=bob") as socket:
            try:
                assert received(socket)["degraded"] is True
            finally:
                own_redis.process.resume()
            wait_until(lambda: not api.list_for("bob")["degraded"])
            if not retries:
                api.feedback("bob", "camera-2")
            whole = received(socket)
            assert (whole["cause"] is None) is retries
            assert not retries or whole["degraded"] is False


@pytest.mark.parametrize("retries", [True, False], ids=["retried", "control: at the next event"])
def test_a_socket_opened_before_the_first_model_receives_its_list(
    settings: Settings, stream: MiniStream, retries: bool
) -> None:
    timings = ServingTimings(push_retry_s=0.2 if retries else NEVER_S)
    with Running(settings, timings=timings) as api:
        api.ready()
        with connect(f"{api.ws}/ws/recommendations?user_id=bob") as socket:
            assert received(socket)["model_version"] is None
            shop.publish_items(settings, shop.catalogue())
            shop.publish(settings, *shop.write(settings, "m1"))
            wait_until(lambda: api.service.snapshots.current.loaded.version == "m1")
            if not retries:
                api.feedback("bob", "camera-2")
            modelled = received(socket)
            assert modelled["model_version"] == "m1"
            assert (modelled["cause"] is None) is retries


@pytest.mark.parametrize("retries", [True, False], ids=["retried", "control: at the next event"])
def test_a_list_that_is_not_made_under_load_is_pushed_later(
    settings: Settings, stream: MiniStream, retries: bool
) -> None:
    timings = ServingTimings(push_retry_s=0.2 if retries else NEVER_S)
    calls = [{"caller": str(number), "total": ""} for number in range(MAX_WAITING)]
    with Running(settings, timings=timings) as api:
        api.ready()
        waiting = api.service.recommender.waiting
        assert {waiting.take(**call) for call in calls} == {None}
        with connect(f"{api.ws}/ws/recommendations?user_id=bob&category=Cameras") as socket:
            wait_until(lambda: waiting.refused["total"])
            for call in calls:
                waiting.release(**call)
            if not retries:
                api.feedback("bob", "camera-2")
            assert (received(socket)["cause"] is None) is retries
