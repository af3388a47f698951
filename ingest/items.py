"""Publish a dataset's catalogue: what is new or changed, and nothing else.

reads   file   the items file of a dataset
        topic  items  what stands there already
writes  topic  items  one ItemEvent per new or changed item, key item_id
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from afterclick import events
from afterclick.errors import BadDataset, BadEvent, Unavailable
from afterclick.events import Item, ItemEvent
from afterclick.settings import Settings
from ingest.catalogue import read_items
from ingest.datasets import Dataset
from ingest.encoder import Message
from ingest.producer import EventProducer
from ingest.rows import ReadReport

_BATCH = 2000
_WAIT_S = 0.2


@dataclass(frozen=True)
class ItemsSummary:
    """What publishing did: items in the file, of them new or changed and therefore sent, bad lines."""

    dataset: str
    items: int
    sent: int
    unchanged: int
    bad_lines: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def publish_items(dataset: Dataset, settings: Settings) -> ItemsSummary:
    """Bring the `items` topic up to date with the dataset. Items that are only on the topic stay.

    Raises BadDataset where there is no items file, Unavailable where Kafka is away.
    """
    if dataset.items is None:
        raise BadDataset(
            f"{dataset.path}: no items file (item_id and title, or the official metadata)"
        )
    report = ReadReport()
    items = {item.item_id: item for item in read_items(dataset.items, report, dataset.items_format)}
    topic = settings.kafka.topics.items
    with EventProducer(settings.kafka.bootstrap) as producer:
        producer.require(topic)
        known = published_items(settings)
        changed = [item for item in items.values() if known.get(item.item_id) != item]
        sent = 0
        for messages in _batches(changed, f"dataset/{dataset.name}"):
            sent += len(messages)
            producer.send(topic, messages, sent)
    return ItemsSummary(dataset.name, len(items), sent, len(items) - sent, report.bad)


def published_items(settings: Settings, timeout_s: float = 30.0) -> dict[str, Item]:
    """The catalogue as it stands on the `items` topic now. Records that are no item are passed over."""
    topic = settings.kafka.topics.items
    consumer = Consumer(
        {
            "bootstrap.servers": settings.kafka.bootstrap,
            "group.id": "afterclick-catalogue-reader",  # never joined: partitions are assigned by hand
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "auto.offset.reset": "earliest",
            "log_level": 0,
        }
    )
    try:
        return dict(_read_to_end(consumer, topic, timeout_s))
    except KafkaException as error:
        raise Unavailable(f"Kafka at {settings.kafka.bootstrap}: {error.args[0].str()}") from None
    finally:
        consumer.close()


def _read_to_end(consumer: Consumer, topic: str, timeout_s: float) -> Iterator[tuple[str, Item]]:
    metadata = consumer.list_topics(topic, timeout=timeout_s).topics[topic]
    reading = set(metadata.partitions)
    consumer.assign([TopicPartition(topic, number, 0) for number in reading])
    deadline = time.monotonic() + timeout_s
    while reading:
        # consume waits for a full batch as long as it may, so the end of the topic needs a short wait
        records = consumer.consume(_BATCH, timeout=_WAIT_S)
        if records:
            deadline = time.monotonic() + timeout_s
        elif time.monotonic() > deadline:
            raise Unavailable(f"Kafka did not send the topic {topic} within {timeout_s:.0f} s")
        for record in records:
            error = record.error()
            if error is None:
                yield from _item_of(record.value())
            elif error.code() == KafkaError._PARTITION_EOF:
                reading.discard(record.partition())
            else:
                raise KafkaException(error)


def _item_of(value: bytes | None) -> Iterator[tuple[str, Item]]:
    try:
        event = events.decode(value)
    except BadEvent:
        return
    if isinstance(event, ItemEvent):
        yield event.data.item_id, event.data


def _batches(items: list[Item], source: str) -> Iterator[list[Message]]:
    rows = iter(items)
    while batch := list(islice(rows, _BATCH)):
        yield [
            {"key": item.item_id, "value": events.encode(_event(item, source))} for item in batch
        ]


def _event(item: Item, source: str) -> ItemEvent:
    event_id = events.stable_id("item", item.model_dump_json())
    return ItemEvent(id=event_id, source=source, time=events.now(), subject=item.item_id, data=item)
