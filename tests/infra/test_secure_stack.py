"""The whole stack on a Kafka and a Redis that demand TLS, a user name and a password."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import httpx2
import pytest

from afterclick.io.home import StackProgress, StackRecord
from afterclick.settings import (
    ConsoleSettings,
    RedisSettings,
    ServingSettings,
    Settings,
    StreamSettings,
    UiSettings,
)
from infra.embedded.java import KAFKA, ensure_jars
from infra.embedded.kafka import SecureKafkaServer, ensure_topics
from infra.embedded.process import afterclick_command
from infra.embedded.server import free_port
from ingest.producer import EventProducer
from streaming.proof.dead_letters import count_by_error, read_dead_letters, redrive
from streaming.proof.forget_requests import forget
from streaming.proof.rebuild import rebuild
from streaming.proof.reconcile import reconcile
from tests.secure_servers import ENCODED, PASSWORD, AclValkeyServer, secure_redis
from tests.waiting import wait_until

pytestmark = [pytest.mark.long, pytest.mark.spark, pytest.mark.timeout(900)]
START_S = 240.0


@pytest.fixture
def kafka(jars: Path, tmp_path: Path) -> Iterator[SecureKafkaServer]:
    server = SecureKafkaServer(tmp_path / "kafka", ensure_jars(jars, KAFKA))
    server.start()
    yield server
    server.kill()


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[tuple[AclValkeyServer, RedisSettings]]:
    with secure_redis(tmp_path / "valkey") as server:
        yield server


@pytest.fixture(params=["real-time", "micro-batch"])
def stack(
    request: pytest.FixtureRequest,
    kafka: SecureKafkaServer,
    valkey: tuple[AclValkeyServer, RedisSettings],
    jars: Path,
    tmp_path: Path,
) -> Settings:
    """The settings of a stack; its topics exist."""
    trigger: Literal["real-time", "micro-batch"] = request.param
    settings = Settings(
        home=tmp_path / "home",
        jars=jars,
        kafka=kafka.client_settings.model_copy(update={"partitions": 2}),
        redis=valkey[1],
        stream=StreamSettings(trigger=trigger, archive_seconds=1.0),
        serving=ServingSettings(port=free_port(), limit="6000/minute", limit_shared=True),
        console=ConsoleSettings(port=free_port()),
        ui=UiSettings(port=free_port()),
    )
    ensure_topics(settings)
    return settings


def test_an_event_reaches_the_list_over_tls(
    stack: Settings, kafka: SecureKafkaServer, valkey: tuple[AclValkeyServer, RedisSettings]
) -> None:
    process = afterclick_command(stack, "up", "up")
    process.start()
    try:
        with httpx2.Client(base_url=stack.serving.url, timeout=60) as api:
            _wait_for_the_stack(stack, api)
            _like_reaches_the_list(api)
        _a_malformed_record_is_a_dead_letter(stack)
        assert reconcile(stack, wait_s=60).differences == 0
        wait_until(lambda: _figures(stack).archived_events >= 2, what="the event in the archive")
        assert _figures(stack).applied_events >= 2
    finally:
        process.stop(60.0)
    assert rebuild(stack).events == 1
    assert forget(stack, "bob").events == 1
    assert redrive(stack.kafka) == 1
    assert valkey[0].rejected() == []
    _no_file_holds(stack.home, kafka.password.get_secret_value())
    _no_file_holds(stack.home / "logs", PASSWORD, ENCODED)


def _wait_for_the_stack(stack: Settings, api: httpx2.Client) -> None:
    def ready() -> bool:
        record = StackRecord.read(stack.home)
        return record is not None and all(part.state == "ready" for part in record.parts)

    wait_until(ready, START_S, every=0.5, what="every process to be ready")
    wait_until(lambda: api.get("/health/ready").status_code == 200, what="the API to be ready")


def _like_reaches_the_list(api: httpx2.Client) -> None:
    like = {"user_id": "bob", "item_id": "lamp", "action": "like", "event_id": "like-1"}
    # until Kafka accepts it: the event id makes it one event
    answer = wait_until(lambda: _accepted(api.post("/feedback", json=like)), what="a 202")
    query = {"user_id": "bob", "after": answer.json()["position"]}
    wait_until(lambda: api.get("/recommendations", params=query).json()["fresh"])
    history = api.get("/users/bob/history").json()
    assert "lamp" in str(history)
    wait_until(lambda: "lamp" in api.get("/popular").text, what="the item among the popular ones")


def _accepted(answer: httpx2.Response) -> httpx2.Response | None:
    return answer if answer.status_code == 202 else None


def _a_malformed_record_is_a_dead_letter(stack: Settings) -> None:
    with EventProducer(stack.kafka) as producer:
        producer.send(stack.kafka.topics.feedback, [{"key": b"k", "value": b"{"}], 1)
    wait_until(lambda: any(count_by_error(read_dead_letters(stack.kafka)).values()))


def _figures(stack: Settings) -> StackProgress:
    record = StackRecord.read(stack.home)
    assert record is not None
    return record.figures


def _no_file_holds(folder: Path, *secrets: str) -> None:
    found = [
        path
        for path in folder.rglob("*")
        if path.is_file() and any(secret.encode() in path.read_bytes() for secret in secrets)
    ]
    assert found == []
