"""The embedded Kafka and Valkey: durable, and stopped with their parent process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from uuid import uuid4

import psutil
import pytest
import redis
from confluent_kafka import Consumer, Producer

from afterclick.errors import Unavailable
from afterclick.settings import KafkaSettings, Settings
from infra.embedded.kafka import KafkaServer, broker_answers, ensure_topics
from infra.embedded.process import Process
from infra.embedded.server import ValkeyServer
from tests.waiting import wait_until


def produce(bootstrap: str, topic: str, value: bytes) -> None:
    failures = []
    producer = Producer({"bootstrap.servers": bootstrap, "enable.idempotence": True})
    producer.produce(topic, value, on_delivery=lambda error, _: failures.append(error))
    assert producer.flush(20) == 0
    assert failures == [None]


def consume(bootstrap: str, topic: str, n: int) -> list[bytes]:
    consumer = Consumer(
        {"bootstrap.servers": bootstrap, "group.id": uuid4().hex, "auto.offset.reset": "earliest"}
    )
    consumer.subscribe([topic])
    values: list[bytes] = []
    try:
        while len(values) < n:
            records = wait_until(lambda: consumer.consume(n, 0.5), what="records")
            values += [record.value() or b"" for record in records]
    finally:
        consumer.close()
    return values


def test_only_the_owner_reads_what_a_process_writes(tmp_path: Path) -> None:
    process = Process("writer", ["touch", tmp_path / "private"], tmp_path / "log" / "writer.log")
    process.start()
    assert process.wait() == 0
    subprocess.run(["touch", tmp_path / "control"], umask=0o022, check=True)
    assert (tmp_path / "private").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "control").stat().st_mode & 0o777 == 0o644


def test_a_record_survives_a_killed_broker(own_broker: KafkaServer) -> None:
    settings = Settings(kafka=KafkaSettings(bootstrap=own_broker.address, partitions=1))
    ensure_topics(settings)
    produce(own_broker.address, "reviews", b"before")

    own_broker.kill()
    assert not broker_answers(own_broker.client_settings)
    own_broker.start()

    produce(own_broker.address, "reviews", b"after")
    assert consume(own_broker.address, "reviews", 2) == [b"before", b"after"]


def test_a_key_survives_a_killed_valkey(own_redis: ValkeyServer) -> None:
    client = redis.Redis.from_url(own_redis.address)
    client.set("position", 7)
    client.execute_command("WAITAOF", 1, 0, 5000)  # type: ignore[no-untyped-call]

    own_redis.kill()
    with pytest.raises(redis.ConnectionError):
        client.ping()
    own_redis.start()

    assert client.get("position") == b"7"


def test_valkey_never_evicts_and_keeps_an_append_only_file(redis_url: str) -> None:
    config = redis.Redis.from_url(redis_url, decode_responses=True).config_get("*")
    assert config["maxmemory-policy"] == "noeviction"
    assert config["appendonly"] == "yes"


def test_topics_are_created_once(settings: Settings) -> None:
    assert ensure_topics(settings) == []


def test_a_producer_never_creates_a_missing_topic(broker: str) -> None:
    errors = []
    producer = Producer({"bootstrap.servers": broker, "message.timeout.ms": 3000})
    producer.produce(
        f"absent-{uuid4().hex}", b"x", on_delivery=lambda error, _: errors.append(error)
    )
    producer.flush(10)
    assert errors
    assert errors[0] is not None


def test_an_early_exit_is_reported_with_the_end_of_the_log(tmp_path: Path) -> None:
    process = Process(
        "liar", [sys.executable, "-c", "raise SystemExit('no luck')"], tmp_path / "liar.log"
    )
    process.start()
    with pytest.raises(Unavailable, match=r"liar ended with code 1[\s\S]*no luck"):
        process.wait_ready(lambda: False, 10)


BUSY = """
import threading, zlib
for _ in range(12):
    threading.Thread(target=lambda: [zlib.crc32(bytes(50_000_000)) for _ in iter(int, 1)]).start()
print("busy", flush=True)
"""


@pytest.mark.parametrize("waits", [True, False], ids=["suspended", "control: only the signal"])
def test_a_suspended_process_does_nothing(tmp_path: Path, waits: bool) -> None:
    process = Process("busy", [sys.executable, "-c", BUSY], tmp_path / "busy.log")
    process.start()
    try:
        process.wait_ready(lambda: process.log_contains("busy"), 60)
        threads = [thread.id for thread in psutil.Process(process.pid).threads()]
        assert len(threads) >= 12
        running = []
        for _ in range(20):
            if waits:
                process.suspend()
            else:
                psutil.Process(process.pid).suspend()
            states = [psutil.Process(thread).status() for thread in threads]
            running.append(sum(state != psutil.STATUS_STOPPED for state in states))
            process.resume()
        assert (sum(running) == 0) is waits, running
    finally:
        process.kill()


def test_an_ended_process_cannot_be_suspended(tmp_path: Path) -> None:
    process = Process("brief", [sys.executable, "-c", ""], tmp_path / "brief.log")
    process.start()
    wait_until(lambda: not process.running)
    with pytest.raises(Unavailable, match="brief does not run"):
        process.suspend()


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_children_end_with_their_parent(tmp_path: Path, end: signal.Signals) -> None:
    script = f"""
        import time
        from pathlib import Path
        from infra.embedded.process import Process
        child = Process("sleeper", ["sleep", "600"], Path({str(tmp_path)!r}) / "log")
        child.start()
        print(child.pid, flush=True)
        time.sleep(600)
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert psutil.pid_exists(child)
        os.kill(parent.pid, end)
    wait_until(lambda: not alive(child), what="the child has ended")


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


READ_TOPIC = """
import sys
from pyspark.sql import SparkSession

bootstrap, topic, jars = sys.argv[1:]
builder = SparkSession.builder.master("local[1]").config("spark.jars", jars)
for key, value in (
    ("spark.driver.bindAddress", "127.0.0.1"),
    ("spark.driver.host", "127.0.0.1"),
    ("spark.ui.enabled", "false"),
):
    builder = builder.config(key, value)
reader = builder.getOrCreate().read.format("kafka").option("kafka.bootstrap.servers", bootstrap)
rows = reader.option("subscribe", topic).load().select("value").collect()
print([bytes(row.value).decode() for row in rows])
"""


@pytest.mark.spark
def test_spark_reads_a_topic_with_the_cached_jars(settings: Settings) -> None:
    """In a process of its own: a JVM that another test has started has no other jars."""
    topic = settings.kafka.topics.reviews
    produce(settings.kafka.bootstrap, topic, b"seen")
    arguments = [settings.kafka.bootstrap, topic, settings.spark_jars]
    done = subprocess.run(
        [sys.executable, "-c", READ_TOPIC, *arguments], capture_output=True, text=True, check=False
    )
    assert done.stdout.splitlines()[-1:] == ["['seen']"], done.stderr[-2000:]
