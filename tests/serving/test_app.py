"""The API process: imports, start, stop."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from functools import partial
from typing import Any

import httpx2
import pytest
from confluent_kafka import Consumer, TopicPartition

from afterclick import events
from afterclick.errors import Unavailable
from afterclick.settings import Settings
from infra.embedded.server import free_port
from serving.app import bind, config_of
from tests.waiting import PATIENCE_S, wait_until

HEAVY = ("torch", "pyspark", "mlflow", "sklearn", "pandas")


def environment(settings: Settings, port: int) -> dict[str, str]:
    return {
        **os.environ,
        "AFTERCLICK_HOME": str(settings.home),
        "AFTERCLICK_KAFKA__BOOTSTRAP": settings.kafka.bootstrap,
        "AFTERCLICK_KAFKA__PREFIX": settings.kafka.prefix,
        "AFTERCLICK_KAFKA__PARTITIONS": str(settings.kafka.partitions),
        "AFTERCLICK_REDIS__URL": settings.redis.url,
        "AFTERCLICK_REDIS__PREFIX": settings.redis.prefix,
        "AFTERCLICK_SERVING__PORT": str(port),
    }


def answers(url: str) -> bool:
    try:
        return httpx2.get(f"{url}/recommendations?user_id=bob", timeout=5).status_code == 200
    except httpx2.HTTPError:
        return False


def _accepted(http: httpx2.Client, body: dict[str, Any]) -> bool:
    return http.post("/feedback", json=body).status_code == 202


def busy(url: str) -> tuple[set[str], set[str]]:
    """Request lists and send feedback until the API stops; ids of accepted events and lists."""
    accepted, shown = set(), set()
    with httpx2.Client(base_url=url, timeout=PATIENCE_S) as http:
        for n in range(50):
            body = {"user_id": "bob", "item_id": f"i{n}", "action": "view", "event_id": f"e{n}"}
            wait_until(partial(_accepted, http, body))
            accepted.add(f"e{n}")
            shown.add(http.get("/recommendations?user_id=bob").json()["impression_id"])
    return accepted, shown


def kept(settings: Settings, topic: str) -> set[str]:
    """The ids of the events on a topic."""
    consumer = Consumer({"bootstrap.servers": settings.kafka.bootstrap, "group.id": "none"})
    parts = [TopicPartition(topic, p, 0) for p in range(settings.kafka.partitions)]
    left = sum(consumer.get_watermark_offsets(part, timeout=PATIENCE_S)[1] for part in parts)
    consumer.assign(parts)
    found: set[str] = set()
    while left > 0:
        messages = consumer.consume(min(left, 500), PATIENCE_S)
        assert messages, "the topic ends early"
        left -= len(messages)
        decoded = [events.decode(message.value()) for message in messages]
        found |= {getattr(event.data, "impression_id", None) or event.id for event in decoded}
    consumer.close()
    return found


def test_the_command_stops_on_sigterm_without_losing_records(settings: Settings) -> None:
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "infra", "serve"],
        env=environment(settings, port),
        stderr=subprocess.PIPE,
    )
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until(lambda: answers(url))
        accepted, shown = busy(url)
        process.send_signal(signal.SIGTERM)
        code = process.wait(PATIENCE_S)
    finally:
        process.kill()
    assert code in {0, -signal.SIGTERM}
    topics = settings.kafka.topics
    assert accepted <= kept(settings, topics.feedback), "an accepted event is lost"
    assert shown <= kept(settings, topics.impressions), "an impression is lost"


def test_idle_connections_outlive_those_of_proxies(settings: Settings) -> None:
    """Proxies keep idle connections for up to a minute."""
    assert config_of(settings).timeout_keep_alive > 60


def test_a_port_in_use_is_one_line_of_error() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(Unavailable, match="set --port"):
            bind("127.0.0.1", taken.getsockname()[1])


def test_the_command_imports_nothing_heavy() -> None:
    code = f"import sys, infra.cli, serving.app; print([m for m in {HEAVY!r} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def held_for(listener: socket.socket) -> int:
    """The number of bytes that a connection accepts if its client never reads."""
    listener.listen()
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(listener.getsockname())
        connection, _ = listener.accept()
        with connection:
            connection.setblocking(False)
            taken = 0
            with suppress(BlockingIOError):
                while taken < 64 << 20:
                    taken += connection.send(bytes(16_384))
            return taken


def test_little_is_buffered_for_a_client_that_does_not_read() -> None:
    with bind("127.0.0.1", 0) as listener:
        assert held_for(listener) < 600_000
    with socket.create_server(("127.0.0.1", 0)) as plain:  # the control
        assert held_for(plain) > 1_000_000
