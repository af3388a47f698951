"""Only new and changed items are published on the catalogue topic."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from afterclick.errors import BadDataset
from afterclick.settings import Settings
from ingest.datasets import open_dataset
from ingest.items import publish_items, published_items
from ingest.producer import EventProducer
from tests.ingest.conftest import ratings_csv
from tests.ingest.test_producer import read_topic


def test_items_are_published_again_only_after_a_change(
    shop: Path, settings: Settings, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(shop, tmp_path / "shop"))
    assert publish_items(open_dataset(folder), settings).sent == 120
    again = publish_items(open_dataset(folder), settings)
    assert (again.sent, again.unchanged) == (0, 120)
    path = folder / "items.csv"
    lines = path.read_text().splitlines()
    lines[1] = "i00001,A new title,Toys,Bo,1.5"
    path.write_text("\n".join([*lines, "i99999,One more,Toys,Bo,2.5"]))
    assert publish_items(open_dataset(folder), settings).sent == 2
    found = published_items(settings)
    assert len(found) == 121
    assert (found["i00001"].title, found["i99999"].price) == ("A new title", 2.5)


def test_the_key_of_an_item_is_its_id(shop: Path, settings: Settings) -> None:
    publish_items(open_dataset(shop), settings)
    records = read_topic(settings.kafka.bootstrap, settings.kafka.topics.items)
    assert {key.decode() for _, key, _ in records} == set(published_items(settings))


def test_invalid_records_on_the_topic_are_skipped(shop: Path, settings: Settings) -> None:
    with EventProducer(settings.kafka) as producer:
        poison = [
            {"key": "x", "value": v} for v in (b"", b"\xff", b"{}", b'{"specversion":"1.0"}', None)
        ]
        producer.send(settings.kafka.topics.items, poison, mark=5)
    assert publish_items(open_dataset(shop), settings).sent == 120
    assert len(published_items(settings)) == 120


def test_a_dataset_without_items_is_an_error(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(BadDataset, match="no items file"):
        publish_items(open_dataset(ratings_csv(tmp_path)), settings)
