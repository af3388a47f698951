"""Read the catalogue of a dataset and publish new and changed items.

reads   file   any items format of `formats.Format`
        topic  items  the published catalogue
writes  topic  items  one ItemEvent per new or changed item, key item_id
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from afterclick import events
from afterclick.errors import BadDataset, BadEvent
from afterclick.events import Item, ItemEvent
from afterclick.io.kafka_log import read_compacted
from afterclick.settings import Settings
from ingest.datasets import Dataset
from ingest.fields import plain, price
from ingest.formats import Detected, Format, detect, parse_object
from ingest.producer import EventProducer, Message
from ingest.rows import ReadReport, blocks, lines, records

T = TypeVar("T")


def read_items(path: Path, report: ReadReport, detected: Detected | None = None) -> Iterator[Item]:
    """Yield the items of a file in file order; bad lines go to `report`. Items may repeat.

    A title, brand or price that is none is dropped and counted in `report`. Raises BadDataset for a
    file without items or one that cannot be read to its end.
    """
    detected = detected or detect(path)
    if not detected.format.is_items:
        raise BadDataset(f"{path}: contains interactions ({detected.format}), not items")
    for line, raw, fields in _fields(path, detected):
        try:
            if fields is None:
                raise ValueError(
                    "neither JSON nor a Python literal, or not as many fields as the header"
                )
            item = _item(fields, partial(report.drop, line))
        except (ValidationError, ValueError) as error:
            report.refuse(line, _reason(error), raw)
        else:
            report.good += 1
            yield item


Fields = Iterator[tuple[int, object, dict[str, Any] | None]]


def _fields(path: Path, detected: Detected) -> Fields:
    if detected.format is Format.ITEMS_PARQUET:
        return _from_parquet(path, detected)
    if detected.format in (Format.ITEMS_CSV, Format.ITEMS_MOVIELENS):
        return _from_csv(path, detected)
    return _from_json(path, detected)


def _from_json(path: Path, detected: Detected) -> Fields:
    for number, line in lines(path, detected.encoding):
        try:
            fields = parse_object(line)
        except ValueError:
            fields = None
        if not isinstance(fields, dict):
            yield number, line, None
            continue
        renamed = {"item_id": fields.get("parent_asin") or fields.get("asin")}
        renamed["brand"] = fields.get("brand") or fields.get("store")
        yield number, line, {**fields, **renamed}


def _from_csv(path: Path, detected: Detected) -> Fields:
    header = detected.format.has_header
    source = blocks(path, encoding=detected.encoding)
    for chunk in records(source, detected.format.has_header, detected.separator):
        for number, raw, fields in chunk:
            if header:
                header = False
                continue
            whole = len(fields) == len(detected.header)
            yield (
                number,
                raw,
                {f: fields[i] for f, i in detected.columns.items()} if whole else None,
            )


def _from_parquet(path: Path, detected: Detected) -> Fields:
    names = {f: detected.header[i] for f, i in detected.columns.items()}
    number = 0
    try:
        for batch in pq.ParquetFile(path).iter_batches(columns=list(names.values())):
            for row in batch.to_pylist():
                number += 1
                yield number, row, {f: row[c] for f, c in names.items()}
    except (OSError, pa.ArrowException) as error:
        raise BadDataset(f"{path}: cannot be read to its end ({error})") from None


def _item(fields: dict[str, Any], drop: Callable[[str], None]) -> Item:
    """`drop` receives why a field is not used."""

    def cleaned(name: str, clean: Callable[[object], T | None]) -> T | None:
        try:
            return clean(fields.get(name))
        except ValueError as error:
            drop(f"{name} {error}")
            return None

    item_id = fields.get("item_id")
    return Item(
        item_id=str(item_id) if isinstance(item_id, int) else item_id,
        title=cleaned("title", plain),
        categories=_categories(fields.get("categories") or fields.get("category")),
        brand=cleaned("brand", plain),
        price=cleaned("price", price),
    )


def _categories(value: object) -> tuple[str, ...]:
    """One category path, the longest of several, from a list, JSON, or text.

    Text separates categories by `|` or commas and paths by `;;`.
    """
    if isinstance(value, str):
        text = value.strip()
        if ";;" in text:
            return max(map(_categories, text.split(";;")), key=len)
        if text.startswith("["):
            try:
                return _categories(orjson.loads(text))
            except orjson.JSONDecodeError:
                pass
        value = next(csv.reader([_one_line(text)]), []) if "|" not in text else text.split("|")
    if not isinstance(value, list | tuple):
        return ()
    if any(isinstance(part, list | tuple) for part in value):
        value = max((part for part in value if isinstance(part, list | tuple)), key=len)
    return tuple(dict.fromkeys(filter(None, map(_category, value))))


def _category(value: object) -> str | None:
    try:
        return plain(value)
    except ValueError:
        return None


def _one_line(text: str) -> str:
    return " ".join(text.splitlines())


def _reason(error: ValueError) -> str:
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_context=False)[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return str(error)


_BATCH = 2000


@dataclass(frozen=True)
class ItemsSummary:
    """Counts of a publication: items in the file, sent (new or changed), unchanged, bad lines."""

    dataset: str
    items: int
    sent: int
    unchanged: int
    bad_lines: int


def publish_items(dataset: Dataset, settings: Settings) -> ItemsSummary:
    """Publish new and changed items to the `items` topic; items only on the topic stay.

    Raises BadDataset without an items file, Unavailable if Kafka does not answer.
    """
    if dataset.items is None:
        raise BadDataset(
            f"{dataset.path}: no items file (item_id and title, or the official metadata)"
        )
    report = ReadReport()
    items = {item.item_id: item for item in read_items(dataset.items, report, dataset.items_format)}
    topic = settings.kafka.topics.items
    with EventProducer(settings.kafka) as producer:
        producer.require(topic)
        known = published_items(settings)
        changed = [item for item in items.values() if known.get(item.item_id) != item]
        sent = 0
        for messages in item_messages(changed, f"dataset/{dataset.name}"):
            sent += len(messages)
            producer.send(topic, messages, sent)
    return ItemsSummary(dataset.name, len(items), sent, len(items) - sent, report.bad)


def published_items(settings: Settings) -> dict[str, Item]:
    """The published catalogue of the `items` topic. Invalid records are skipped."""
    records = read_compacted(settings.kafka, settings.kafka.topics.items)
    return {item_id: item for value in records.values() for item_id, item in _item_of(value)}


def _item_of(value: bytes) -> Iterator[tuple[str, Item]]:
    try:
        event = events.decode(value)
    except BadEvent:
        return
    if isinstance(event, ItemEvent):
        yield event.data.item_id, event.data


def item_messages(items: Iterable[Item], source: str) -> Iterator[list[Message]]:
    """The messages of the `items` topic, in batches."""
    rows = iter(items)
    while batch := list(islice(rows, _BATCH)):
        yield [
            {"key": item.item_id, "value": events.encode(_event(item, source))} for item in batch
        ]


def _event(item: Item, source: str) -> ItemEvent:
    event_id = events.stable_id("item", item.model_dump_json())
    return ItemEvent(id=event_id, source=source, time=events.now(), subject=item.item_id, data=item)
