"""The producer delivers events to Kafka in order; an unreachable Kafka is an error."""

from __future__ import annotations

from collections import defaultdict

import pytest

from afterclick.errors import BadInput, Unavailable
from afterclick.io.kafka_log import KafkaLog
from afterclick.settings import KafkaSettings, Settings
from infra.embedded.kafka import KafkaServer
from infra.embedded.server import free_port
from ingest.producer import EventProducer


def read_topic(bootstrap: str, topic: str) -> list[tuple[int, bytes, bytes]]:
    """Partition, key and value of every record of a topic, partition by partition."""
    with KafkaLog(KafkaSettings(bootstrap=bootstrap)) as log:
        records = list(log.read(log.ranges(topic)))
    rows = [(r.partition() or 0, r.key() or b"", r.value() or b"") for r in records]
    return sorted(rows, key=lambda row: row[0])


def messages(count: int, size: int = 0, keys: int = 20) -> list[dict[str, object]]:
    return [{"key": f"u{n % keys}", "value": str(n).encode().rjust(size)} for n in range(count)]


def test_every_message_arrives_once_and_in_order_of_its_key(settings: Settings) -> None:
    topic = settings.kafka.topics.reviews
    with EventProducer(settings.kafka) as producer:
        producer.send(topic, messages(30_000), mark=30_000)
    assert producer.delivered == 30_000
    by_key = defaultdict(list)
    for _, key, value in read_topic(settings.kafka.bootstrap, topic):
        by_key[key].append(int(value))
    assert sum(map(len, by_key.values())) == 30_000
    assert all(numbers == sorted(set(numbers)) for numbers in by_key.values())


def test_a_full_queue_blocks_and_keeps_the_order(settings: Settings) -> None:
    topic = settings.kafka.topics.reviews
    options = {"queue.buffering.max.messages": 100}
    with EventProducer(settings.kafka, **options) as producer:
        producer.send(topic, messages(5_000, keys=1), mark=5_000)
    values = [int(value) for _, _, value in read_topic(settings.kafka.bootstrap, topic)]
    assert values == list(range(5_000))


def test_keys_are_partitioned_like_java_clients_do(settings: Settings) -> None:
    from kafka.partitioner import murmur2

    topic = settings.kafka.topics.reviews
    with EventProducer(settings.kafka) as producer:
        producer.send(topic, messages(50, keys=50), mark=50)
    for partition, key, _ in read_topic(settings.kafka.bootstrap, topic):
        assert partition == (murmur2(key) & 0x7FFFFFFF) % settings.kafka.partitions


def test_an_unreachable_kafka_is_reported_in_one_line() -> None:
    address = f"127.0.0.1:{free_port()}"
    with pytest.raises(Unavailable, match=f"Kafka at {address} does not answer"):
        EventProducer(KafkaSettings(bootstrap=address), connect_s=1.0)


def test_a_missing_topic_is_named_before_sending(settings: Settings) -> None:
    with (
        EventProducer(settings.kafka) as producer,
        pytest.raises(Unavailable, match="no topic nowhere"),
    ):
        producer.require(settings.kafka.topics.reviews, "nowhere")


def test_an_event_that_is_too_large_is_rejected_by_name(settings: Settings) -> None:
    producer = EventProducer(settings.kafka)
    with pytest.raises(BadInput, match="size"):
        producer.send(settings.kafka.topics.reviews, messages(1, size=3_000_000), mark=1)


def test_a_restarted_broker_receives_every_event(own_broker: KafkaServer) -> None:
    settings = Settings.model_validate(
        {"kafka": {"bootstrap": own_broker.address, "partitions": 2}}
    )
    from infra.embedded.kafka import ensure_topics

    ensure_topics(settings)
    topic = settings.kafka.topics.reviews
    with EventProducer(own_broker.client_settings) as producer:
        producer.send(topic, messages(1000), mark=1000)
        producer.flush()
        own_broker.kill()
        producer.send(topic, messages(20_000)[1000:], mark=20_000)
        producer.poll(0.2)
        assert producer.delivered == 1000
        own_broker.start()
    assert producer.delivered == 20_000
    values = sorted(int(value) for _, _, value in read_topic(own_broker.address, topic))
    assert values == list(range(20_000))


def test_a_lost_broker_ends_in_unavailable_with_the_delivered_count(
    own_broker: KafkaServer,
) -> None:
    settings = Settings.model_validate(
        {"kafka": {"bootstrap": own_broker.address, "partitions": 1}}
    )
    from infra.embedded.kafka import ensure_topics

    ensure_topics(settings)
    topic = settings.kafka.topics.reviews
    producer = EventProducer(own_broker.client_settings, give_up_s=2.0)
    producer.send(topic, messages(100), mark=100)
    producer.flush()
    own_broker.kill()
    with pytest.raises(Unavailable, match="run the command again"):  # noqa: PT012
        producer.send(topic, messages(100), mark=200)
        producer.flush()
    assert producer.delivered == 100
