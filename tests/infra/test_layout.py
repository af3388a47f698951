"""Where the parts of a stack are, and what happens when a port is taken."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from afterclick.errors import BadInput, Unavailable
from afterclick.settings import KafkaSettings, RedisSettings, Settings
from infra import reference
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


def test_children_are_told_only_real_settings(tmp_path: Path) -> None:
    assert (
        set(Topology.of(settings(tmp_path), 1000).settings.environment())
        <= reference.setting_names()
    )


def test_servers_elsewhere_are_used_and_not_started(tmp_path: Path) -> None:
    elsewhere = settings(
        tmp_path,
        kafka=KafkaSettings(bootstrap="kafka-1.example:9092,kafka-2.example:9092"),
        redis=RedisSettings(url="rediss://user:secret@redis.example:6380/0"),
    )
    topology = Topology.of(elsewhere, 10)
    assert topology.kafka_port is None
    assert topology.redis_port is None
    env = topology.settings.environment()
    assert env["AFTERCLICK_REDIS__URL"] == "rediss://user:secret@redis.example:6380/0"


def test_a_taken_port_is_named_with_its_part_and_a_way_out(tmp_path: Path) -> None:
    with socket.socket() as squatter:
        squatter.bind(("127.0.0.1", 0))
        squatter.listen()
        port = squatter.getsockname()[1]
        topology = Topology.of(
            settings(tmp_path, redis=RedisSettings(url=f"redis://127.0.0.1:{port}/0"))
        )
        with pytest.raises(Unavailable, match=rf"port {port} \(Valkey\) is in use.*--port-offset"):
            topology.require_free_ports()


def test_two_parts_on_one_port_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="must differ"):
        Topology.of(settings(tmp_path, kafka=KafkaSettings(bootstrap="127.0.0.1:7999")))


def test_an_impossible_offset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="65535"):
        Topology.of(settings(tmp_path), 60_000)
