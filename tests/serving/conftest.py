"""Served shops with their own topics and keys on the shared Kafka and Valkey."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from afterclick.settings import KafkaSettings, RedisSettings, Settings
from infra.embedded.java import KAFKA, ensure_jars
from infra.embedded.kafka import KafkaServer, delete_topics, ensure_topics
from tests.serving import shop
from tests.serving.mini_stream import MiniStream
from tests.serving.running import Running, installation
from tests.waiting import REDIS_S, wait_until


def patient(settings: Settings) -> Settings:
    """Settings whose requests wait longer for a position in the log."""
    serving = settings.serving.model_copy(update={"after_s": 10.0})
    return settings.model_copy(update={"serving": serving})


def stock(settings: Settings, api: Running) -> None:
    """Publish the shop's catalogue and model `m1`; wait until the API has both."""
    shop.publish_items(settings, shop.catalogue())
    shop.publish(settings, *shop.write(settings, "m1"))
    wait_until(lambda: api.service.snapshots.current.loaded.version == "m1")
    wait_until(lambda: len(api.service.catalogue) == len(shop.catalogue()))


@pytest.fixture
def api(settings: Settings) -> Iterator[Running]:
    """The API of an empty installation, ready."""
    with Running(patient(settings)) as running:
        running.ready()
        yield running


@pytest.fixture
def stream(settings: Settings) -> Iterator[MiniStream]:
    with MiniStream(settings) as running:
        yield running


@pytest.fixture
def shop_api(settings: Settings, api: Running, stream: MiniStream) -> Running:
    """The API with the shop's catalogue and model `m1`."""
    stock(settings, api)
    return api


@pytest.fixture(scope="module")
def shared_shop_api(
    broker: str, redis_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    """The API with catalogue, model and stream for the tests of a module, each with its users."""
    settings = installation(broker, redis_url, tmp_path_factory.mktemp("home"))
    ensure_topics(settings)
    with Running(patient(settings)) as api, MiniStream(settings):
        api.ready()
        stock(settings, api)
        yield api
    delete_topics(settings.kafka)


@pytest.fixture(scope="module")
def hostile_api(
    broker: str, redis_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    """An API without topics that the tests of a module share."""
    settings = Settings(
        home=tmp_path_factory.mktemp("home"),
        kafka=KafkaSettings(bootstrap=broker, prefix="nowhere-"),
        redis=RedisSettings(url=redis_url, prefix="nowhere:", timeout_s=REDIS_S),
    )
    with Running(settings) as running:
        yield running


@pytest.fixture(scope="module")
def module_broker(jars: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaServer]:
    server = KafkaServer(tmp_path_factory.mktemp("kafka"), ensure_jars(jars, KAFKA))
    yield server
    server.kill()


@pytest.fixture
def own_broker(module_broker: KafkaServer) -> KafkaServer:
    """A running Kafka to kill and start again; tests of a module share it, one after the other."""
    if not module_broker.process.running:
        module_broker.start()
    return module_broker
