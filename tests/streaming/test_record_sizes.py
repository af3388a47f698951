"""No record is too large for what the stream writes about it."""

from __future__ import annotations

import hashlib

import pytest
import redis
from confluent_kafka import KafkaError, KafkaException, Producer

from afterclick.errors import BadEvent
from afterclick.events import decode_interaction, encode
from afterclick.io.kafka_log import KafkaLog
from afterclick.settings import Settings
from afterclick.state import StateChange, TopicPartition
from afterclick.topics import MAX_RECORD_BYTES, dlq
from serving.state.live_trends import TrendFeed
from streaming.apply import Applier, ApplyConfig
from streaming.connection import NodeConnection
from streaming.positions import applied_offsets
from streaming.proof.dead_letters import read_dead_letters, redrive
from streaming.proof.reconcile import reconcile
from streaming.records import MAX_CHANGE_BYTES, Output, Record, dead_letter
from streaming.worker import Sender
from tests.streaming.builders import DAY_S, apply_config, event, log_of
from tests.streaming.topic_log import partition_logs

LARGEST = b"{" + b"x" * (MAX_RECORD_BYTES - 120)
"""A malformed record that its topic just takes."""


@pytest.fixture
def place(settings: Settings) -> TopicPartition:
    """A partition with the largest malformed record between two events."""
    place = TopicPartition(settings.kafka.topics.feedback, 1)
    producer = Producer(
        {"bootstrap.servers": settings.kafka.bootstrap, "message.max.bytes": 2 * MAX_RECORD_BYTES}
    )
    for value in (encode(event(item="first")), LARGEST, encode(event(item="second"))):
        producer.produce(place.topic, value, b"alice", place.partition)
        assert producer.flush(30) == 0
    return place


def test_the_largest_malformed_record_becomes_the_stub_of_a_dead_letter(
    settings: Settings, client: redis.Redis, place: TopicPartition
) -> None:
    records = dict(partition_logs(settings))[place]
    assert [len(record.value or b"") for record in records][1] == len(LARGEST)
    sender = Sender(settings.kafka)
    config, connection = ApplyConfig.of(settings, 2), NodeConnection(settings.redis.url)
    for output in Applier(config, connection, sender.send_to_dlq).apply(*place, records):
        sender.send(output)
    (letter,) = read_dead_letters(settings.kafka)
    assert (letter.topic, letter.partition, letter.offset) == (*place, 1)
    assert letter.value == LARGEST[:1024]
    assert letter.sha256 == hashlib.sha256(LARGEST).hexdigest()
    assert applied_offsets(client, settings.redis.keys, [place]) == {place: 2}
    assert reconcile(settings).differences == 0
    assert redrive(settings.kafka) == 0


def test_the_whole_record_with_the_headers_of_a_dead_letter_is_too_large_for_the_topic(
    settings: Settings, place: TopicPartition
) -> None:
    """Without stubs, the record would stop the partition."""
    errors: list[KafkaError | None] = []
    producer = Producer(
        {"bootstrap.servers": settings.kafka.bootstrap, "message.max.bytes": 2 * MAX_RECORD_BYTES}
    )
    letter = dead_letter(*place, Record(1, b"alice", b"{", 1.0), "not JSON")
    producer.produce(
        letter.topic,
        LARGEST,
        letter.key,
        headers=list(letter.headers),
        on_delivery=lambda error, _: errors.append(error),
    )
    producer.flush(30)
    assert [error.code() for error in errors if error] == [KafkaError.MSG_SIZE_TOO_LARGE]


def test_the_reason_of_a_dead_letter_is_cut_to_a_kilobyte() -> None:
    long_name = "ü" * 100_000
    raw = encode(event()).replace(b'"data":{', b'"data":{"%s":1,' % long_name.encode())
    with pytest.raises(BadEvent) as rejected:
        decode_interaction(raw)
    headers = dict(
        dead_letter("feedback", 0, Record(1, None, b"{}", 1.0), str(rejected.value)).headers
    )
    assert len(str(rejected.value)) > 100_000
    assert len(headers["error"]) <= 1024
    assert headers["error"].decode().startswith("afterclick.feedback.v1.data.üü")


def test_a_record_that_no_topic_takes_does_not_hold_up_the_next_one(settings: Settings) -> None:
    sender, topic = Sender(settings.kafka), settings.kafka.topics.state_changes
    delivered: list[str] = []
    sender.send(Output(topic, b"a", b"x" * 3_000_000, 0), lambda: delivered.append("large"))
    sender.send(Output(topic, b"a", b"next", 0), lambda: delivered.append("next"))
    sender.send_to_dlq([Output(dlq(settings.kafka.topics.feedback), b"a", b"letter")])
    with KafkaLog(settings.kafka) as log:
        assert [message.value() for message in log.last(topic, 5)] == [b"next"]
    assert delivered == ["large", "next"]
    with pytest.raises(KafkaException, match="too large"):  # what the sender takes care of
        Producer({"bootstrap.servers": settings.kafka.bootstrap}).produce(topic, b"x" * 3_000_000)


def test_a_state_change_with_too_many_compensations_asks_readers_to_read_the_trends(
    settings: Settings, client: redis.Redis, redis_url: str
) -> None:
    """Replayed, the event gives the same change."""
    config, connection = apply_config(redis_url), NodeConnection(redis_url)
    items = [f"{n:03d}-{'😀' * 124}" for n in range(190)]
    votes = [event(item=item, action="view", at=20 * DAY_S) for item in items]
    log = log_of([*votes, event(item="camera", action="undo", at=1)])
    list(Applier(config, connection).apply("feedback", 0, log[:-1]))
    (output,), (again,) = (
        list(Applier(config, connection).apply("feedback", 0, log[-1:])) for _ in range(2)
    )
    assert len(output.value or b"") < 2048
    change, replayed = (
        StateChange.decode(output.value or b""),
        StateChange.decode(again.value or b""),
    )
    assert change.resync
    assert replayed.resync
    raw = client.hget(config.keys.compensations("alice", "feedback"), change.event_id)
    assert len(raw or b"") > MAX_CHANGE_BYTES  # what the record would have contained
    feed = TrendFeed(settings, lambda _: None)
    feed.apply([change.model_copy(update={"previous_offset": -1, "resync": False})])
    assert feed.gap_at is None
    feed.apply([change.model_copy(update={"offset": change.offset + 1})])
    assert feed.gap_at is not None
