"""Histories of demo users: each gets the history of a similar real user.

reads   file   a sorted dataset (ingest.sorting), its items; <home>/replay/clock.json
writes  topic  reviews (and feedback, for rows with another action)

The events are copies under the demo user's id, with event ids that are the same each time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from afterclick.errors import BadDataset
from afterclick.events import DATASET_SOURCE
from afterclick.settings import Settings
from ingest.datasets import Dataset
from ingest.items import read_items
from ingest.producer import Encoder, EventProducer
from ingest.replay_control import ReplayFiles
from ingest.rows import ReadReport
from ingest.sorting import SortedDataset

MIN_REVIEWS, MAX_REVIEWS = 4, 30
"""Bounds of a history that can be read at a glance."""
MIN_MATCHES = 2
Tastes = Mapping[str, Sequence[str]]
"""Demo user → names of categories, in any case."""


@dataclass(frozen=True)
class SimilarUser:
    """A user of the dataset whose history a demo user gets."""

    user_id: str
    reviews: int
    matches: int
    """Distinct reviewed items within the tastes."""


def nearest_users(
    dataset: Dataset, data: SortedDataset, tastes: Tastes, until_ms: int | None = None
) -> dict[str, SimilarUser]:
    """Demo user → the most similar user; no user is used twice, demo users without a match are
    absent.

    Only rows before `until_ms` (original event time) count. Raises BadDataset without an items
    file.
    """
    items_of = _items_within(dataset, tastes)
    columns = [batch.select(["user_id", "item_id"]) for batch in _before(data, until_ms)]
    if not columns:
        return {}
    rows = pa.Table.from_batches(columns)
    counts = rows.group_by("user_id").aggregate([([], "count_all")])
    size = counts["count_all"]
    counts = counts.filter(
        pc.and_(pc.greater_equal(size, MIN_REVIEWS), pc.less_equal(size, MAX_REVIEWS))
    )
    users: dict[str, SimilarUser] = {}
    for demo_user, items in items_of.items():
        used = {user.user_id for user in users.values()}
        ranked = _ranked(rows, counts, items).slice(0, len(used) + 1).to_pylist()
        best = next((row for row in ranked if row["user_id"] not in used), None)
        if best is not None:
            users[demo_user] = SimilarUser(
                best["user_id"], best["count_all"], best["item_id_count_distinct"]
            )
    return users


def seed_demo_users(
    dataset: Dataset,
    data: SortedDataset,
    settings: Settings,
    tastes: Tastes,
    *,
    until_ms: int | None = None,
    rebased: bool = False,
) -> dict[str, SimilarUser]:
    """Send each demo user the history of a similar user. Repeated, it changes nothing.

    `rebased`: on the clock of this home's rebased replay. Raises BadDataset without items or
    without a
    rebased replay, Unavailable if Kafka does not answer.
    """
    users = nearest_users(dataset, data, tastes, until_ms)
    demo_users = {user.user_id: demo_user for demo_user, user in users.items()}
    shift = _shift(data, settings) if rebased else 0
    topics = settings.kafka.topics
    encoder = Encoder(
        f"{DATASET_SOURCE}{data.manifest.name}", topics.reviews, topics.feedback, shift
    )
    originals = pa.array(sorted(demo_users), pa.string())
    with EventProducer(settings.kafka) as producer:
        producer.require(topics.reviews, topics.feedback)
        sent = 0
        for batch in _before(data, until_ms):
            rows = batch.filter(pc.is_in(batch["user_id"], originals))
            if not len(rows):
                continue
            ids = [demo_users[user] for user in rows["user_id"].to_pylist()]
            copies = rows.set_column(0, "user_id", pa.array(ids, pa.string()))
            for topic, messages in encoder.encode(copies):
                sent += len(messages)
                producer.send(topic, messages, sent)
    return users


def _ranked(rows: pa.Table, counts: pa.Table, items: set[str]) -> pa.Table:
    """Users with enough distinct items among `items`: most matches first, then fewest reviews."""
    liked = rows.filter(pc.is_in(rows["item_id"], pa.array(sorted(items), pa.string())))
    matches = liked.group_by("user_id").aggregate([("item_id", "count_distinct")])
    matches = matches.filter(pc.greater_equal(matches["item_id_count_distinct"], MIN_MATCHES))
    return matches.join(counts, "user_id", join_type="inner").sort_by(
        [
            ("item_id_count_distinct", "descending"),
            ("count_all", "ascending"),
            ("user_id", "ascending"),
        ]
    )


def _items_within(dataset: Dataset, tastes: Tastes) -> dict[str, set[str]]:
    """Demo user → the items in a category of their tastes."""
    if dataset.items is None:
        raise BadDataset(f"{dataset.path}: no items file, so tastes cannot be matched")
    users_of: dict[str, list[str]] = {}
    for demo_user, names in tastes.items():
        for name in names:
            users_of.setdefault(name.casefold(), []).append(demo_user)
    items: dict[str, set[str]] = {demo_user: set() for demo_user in tastes}
    for item in read_items(dataset.items, ReadReport(), dataset.items_format):
        for category in item.categories:
            for demo_user in users_of.get(category.casefold(), ()):
                items[demo_user].add(item.item_id)
    return items


def _before(data: SortedDataset, until_ms: int | None) -> Iterator[pa.RecordBatch]:
    for batch in data.batches():
        yield batch if until_ms is None else batch.filter(pc.less(batch["time_ms"], until_ms))


def _shift(data: SortedDataset, settings: Settings) -> int:
    shift = ReplayFiles(settings.home).known_shift_ms(data.manifest.fingerprint)
    if shift is None:
        raise BadDataset(f"{data.manifest.name}: no rebased replay has run from {settings.home}")
    return shift
