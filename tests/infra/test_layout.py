"""The topology of a stack: ports, external servers, and conflicts."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from afterclick.errors import BadInput, Unavailable
from afterclick.settings import KafkaSettings, RedisSettings, Settings
from infra.cli import reference
from infra.stack.services import Topology


def settings(tmp_path: Path, **changes: object) -> Settings:
    return Settings(home=tmp_path).model_copy(update=changes)


def test_every_port_moves_by_the_offset(tmp_path: Path) -> None:
    topology = Topology.of(settings(tmp_path), 1000)
    assert topology.listeners == [
        (9000, "the API"),
        (9090, "the admin console"),
        (9080, "the page"),
        (10092, "Kafka"),
        (10093, "Kafka's controller"),
        (7379, "Valkey"),
    ]
    env = topology.settings.environment()
    assert env["AFTERCLICK_KAFKA__BOOTSTRAP"] == "127.0.0.1:10092"
    assert env["AFTERCLICK_REDIS__URL"] == "redis://127.0.0.1:7379/0"
    assert env["AFTERCLICK_UI__API_URL"] == "http://127.0.0.1:9000"
    assert env["AFTERCLICK_UI__CONSOLE_URL"] == "http://127.0.0.1:9090"


def test_the_environment_of_children_contains_only_known_settings(tmp_path: Path) -> None:
    assert (
        set(Topology.of(settings(tmp_path), 1000).settings.environment())
        <= reference.setting_names()
    )


def test_external_servers_are_used_and_not_started(tmp_path: Path) -> None:
    external = settings(
        tmp_path,
        kafka=KafkaSettings(bootstrap="kafka-1.example:9092,kafka-2.example:9092"),
        redis=RedisSettings(url="rediss://user:secret@redis.example:6380/0"),
    )
    topology = Topology.of(external, 10)
    assert topology.kafka_port is None
    assert topology.redis_port is None
    env = topology.settings.environment()
    assert env["AFTERCLICK_REDIS__URL"] == "rediss://user:secret@redis.example:6380/0"
    shown = topology.addresses["AFTERCLICK_REDIS__URL"]  # in stack.json and `status --json`
    assert shown == "rediss://user:***@redis.example:6380/0"


def test_a_port_in_use_is_reported_with_its_service_and_the_fix(tmp_path: Path) -> None:
    with socket.socket() as squatter:
        squatter.bind(("127.0.0.1", 0))
        squatter.listen()
        port = squatter.getsockname()[1]
        topology = Topology.of(
            settings(tmp_path, redis=RedisSettings(url=f"redis://127.0.0.1:{port}/0"))
        )
        with pytest.raises(Unavailable, match=rf"port {port} \(Valkey\) is in use.*--port-offset"):
            topology.require_free_ports()


def test_two_services_on_one_port_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="must differ"):
        Topology.of(settings(tmp_path, kafka=KafkaSettings(bootstrap="127.0.0.1:7999")))


def test_an_offset_beyond_the_valid_ports_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="65535"):
        Topology.of(settings(tmp_path), 60_000)
