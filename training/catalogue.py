"""The catalogue as of now, read once from its compacted topic.

reads   topic    items
writes  parquet  item_id, title, categories, brand
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import structlog
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from afterclick.errors import BadEvent, Unavailable
from afterclick.events import Item, ItemEvent, decode
from afterclick.settings import KafkaSettings

log = structlog.get_logger()
_SCHEMA = pa.schema(
    {"item_id": pa.string(), "title": pa.string(), "categories": pa.list_(pa.string()), "brand": pa.string()}
)


def write(kafka: KafkaSettings, folder: Path) -> int:
    """Write the catalogue to `folder` as Parquet; returns its number of items."""
    items = read(kafka)
    rows = [i.model_dump(include=set(_SCHEMA.names)) for i in items.values()]
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist(rows, schema=_SCHEMA), folder / "items.parquet")
    return len(rows)


def load(folder: Path) -> dict[str, tuple[str | None, tuple[str, ...]]]:
    """item_id → title, categories, as written by `write`."""
    rows = pq.read_table(folder).to_pylist()
    return {r["item_id"]: (r["title"], tuple(r["categories"] or ())) for r in rows}


def read(kafka: KafkaSettings, timeout_s: float = 30.0) -> dict[str, Item]:
    """The newest event of each item on the topic. A topic that does not exist is an empty catalogue."""
    consumer = Consumer(
        {
            "bootstrap.servers": kafka.bootstrap,
            "group.id": "afterclick-training",
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "auto.offset.reset": "earliest",
        }
    )
    try:
        return _drain(consumer, kafka.topics.items, timeout_s)
    except KafkaException as error:
        raise Unavailable(f"Kafka at {kafka.bootstrap} does not answer: {error.args[0]}") from None
    finally:
        consumer.close()


def _drain(consumer: Consumer, topic: str, timeout_s: float) -> dict[str, Item]:
    known = consumer.list_topics(topic, timeout=timeout_s).topics[topic]
    if known.error is not None or not known.partitions:
        log.warning("no catalogue", topic=topic)
        return {}
    consumer.assign([TopicPartition(topic, p, 0) for p in known.partitions])
    items: dict[str, Item] = {}
    open_partitions = set(known.partitions)
    while open_partitions:
        message = consumer.poll(timeout_s)
        if message is None:
            raise Unavailable(f"the topic {topic} stopped answering while the catalogue was read")
        error = message.error()
        if error is not None and error.code() != KafkaError._PARTITION_EOF:
            raise KafkaException(error)
        if error is not None:
            open_partitions.discard(message.partition())
            continue
        _apply(items, message.key(), message.value())
    return items


def _apply(items: dict[str, Item], key: bytes | None, value: bytes | None) -> None:
    if value is None:
        items.pop((key or b"").decode(errors="replace"), None)
        return
    try:
        event = decode(value)
    except BadEvent as error:
        log.warning("bad item event", error=str(error))
        return
    if isinstance(event, ItemEvent):
        items[event.data.item_id] = event.data
