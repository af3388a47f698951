"""A served shop per test: API, stream and topics of its own on the shared Kafka and Valkey."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from afterclick.settings import KafkaSettings, RedisSettings, Settings
from tests.serving import shop
from tests.serving.mini_stream import MiniStream
from tests.serving.running import Running
from tests.waiting import REDIS_S, wait_until


@pytest.fixture
def api(settings: Settings) -> Iterator[Running]:
    """The API of an empty installation, ready."""
    patient = settings.serving.model_copy(update={"after_s": 10.0})  # the machine may be busy
    with Running(settings.model_copy(update={"serving": patient})) as running:
        running.ready()
        yield running


@pytest.fixture
def stream(settings: Settings) -> Iterator[MiniStream]:
    with MiniStream(settings) as running:
        yield running


@pytest.fixture
def shop_api(settings: Settings, api: Running, stream: MiniStream) -> Running:
    """The API with the shop's catalogue and model `m1`."""
    shop.publish_items(settings, shop.catalogue())
    shop.publish(settings, *shop.write(settings, "m1"))
    wait_until(lambda: api.service.snapshots.current.loaded.version == "m1")
    wait_until(lambda: len(api.service.catalogue) == len(shop.catalogue()))
    return api


@pytest.fixture(scope="module")
def hostile_api(
    broker: str, redis_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    """An API that a whole module may share: its topics do not even exist."""
    settings = Settings(
        home=tmp_path_factory.mktemp("home"),
        kafka=KafkaSettings(bootstrap=broker, prefix="nowhere-"),
        redis=RedisSettings(url=redis_url, prefix="nowhere:", timeout_s=REDIS_S),
    )
    with Running(settings) as running:
        yield running
