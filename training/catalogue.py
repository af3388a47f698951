"""The catalogue as of now, read once from its compacted topic.

reads   topic    items
writes  parquet  item_id, title, categories, brand
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import structlog

from afterclick.errors import BadEvent
from afterclick.events import Item, ItemEvent, decode
from afterclick.settings import KafkaSettings
from training import compacted

log = structlog.get_logger()
_SCHEMA = pa.schema(
    {
        "item_id": pa.string(),
        "title": pa.string(),
        "categories": pa.list_(pa.string()),
        "brand": pa.string(),
    }
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


def read(kafka: KafkaSettings) -> dict[str, Item]:
    """The newest event of each item on the topic. A topic that does not exist is an empty catalogue."""
    items: dict[str, Item] = {}
    for value in compacted.newest(kafka, kafka.topics.items).values():
        try:
            event = decode(value)
        except BadEvent as error:
            log.warning("bad item event", error=str(error))
            continue
        if isinstance(event, ItemEvent):
            items[event.data.item_id] = event.data
    return items
