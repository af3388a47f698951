"""Announce a model: the moment it becomes the champion.

reads   topic     models (its last record is the champion)
writes  artifact  <artifacts>/<version>/, whole or not at all; a copy on S3 where one is set
        topic     models  ModelPublished, key `model`
"""

from __future__ import annotations

from pathlib import Path

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition

from afterclick.artifact import MANIFEST, read_manifest, sha256, verify
from afterclick.errors import BadEvent, Unavailable
from afterclick.events import ModelEvent, ModelPublished, decode, encode, new_id, now
from afterclick.settings import KafkaSettings
from training.offsets import watermarks
from training.store import upload

KEY = b"model"


def announce(
    kafka: KafkaSettings, folder: Path, timeout_s: float = 30.0, store: str | None = None
) -> ModelPublished:
    """Publish the artifact in `folder`: every file is checked first, and Kafka has acknowledged on return.

    With a `store` (s3://bucket/prefix) it is copied there first, and read from there.

    Raises BadArtifact, or Unavailable if Kafka did not take it; then nothing has changed.
    """
    manifest = read_manifest(folder)
    verify(folder, manifest)
    published = ModelPublished(
        version=manifest.version,
        uri=folder.absolute().as_uri() if store is None else upload(folder, store),
        manifest_sha256=sha256(folder / MANIFEST),
        metrics=manifest.metrics,
    )
    event = ModelEvent(
        id=new_id(), source="/training", time=now(), subject=manifest.version, data=published
    )
    _deliver(kafka, encode(event), timeout_s)
    return published


def _deliver(kafka: KafkaSettings, value: bytes, timeout_s: float) -> None:
    failed: list[KafkaError] = []
    delivered: list[Message] = []

    def report(error: KafkaError | None, message: Message) -> None:
        if error is None:
            delivered.append(message)
        else:
            failed.append(error)

    producer = Producer(
        {
            "bootstrap.servers": kafka.bootstrap,
            "enable.idempotence": True,
            "acks": "all",
            "delivery.timeout.ms": int(timeout_s * 1000),
        }
    )
    producer.produce(kafka.topics.models, value, KEY, on_delivery=report)
    producer.flush(timeout_s + 5)
    if failed or not delivered:
        why = failed[0].str() if failed else "no acknowledgement"
        raise Unavailable(
            f"Kafka at {kafka.bootstrap} did not take the model: {why}; the old one stays"
        )


def champion(kafka: KafkaSettings, timeout_s: float = 10.0) -> ModelPublished | None:
    """The model that was announced last, None where there was none. Raises Unavailable."""
    consumer = Consumer(
        {
            "bootstrap.servers": kafka.bootstrap,
            "group.id": "afterclick-training",
            "enable.auto.commit": False,
            "enable.partition.eof": True,
        }
    )
    try:
        return _last(consumer, kafka.topics.models, timeout_s)
    except KafkaException as error:
        raise Unavailable(f"Kafka at {kafka.bootstrap} does not answer: {error.args[0]}") from None
    finally:
        consumer.close()


def _last(consumer: Consumer, topic: str, timeout_s: float) -> ModelPublished | None:
    low, _ = watermarks(consumer, TopicPartition(topic, 0), timeout_s)
    consumer.assign([TopicPartition(topic, 0, low)])
    last: ModelPublished | None = None
    while (message := consumer.poll(timeout_s)) is not None:
        error = message.error()
        if error is not None and error.code() == KafkaError._PARTITION_EOF:
            return last
        if error is not None:
            raise KafkaException(error)
        try:
            event = decode(message.value())
        except BadEvent:
            continue
        if isinstance(event, ModelEvent):
            last = event.data
    raise Unavailable(f"the topic {topic} stopped answering")
