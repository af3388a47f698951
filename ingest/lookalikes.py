"""Histories for people who are made up: each gets what somebody in the data with the same tastes
did.

reads   file   a prepared dataset (ingest.sorting), its items; <home>/replay/clock.json
writes  topic  reviews (and feedback, where a row has another action)

The events are copies under the made-up person's id, with event ids of their own that are the same
each time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from afterclick.errors import BadDataset
from afterclick.settings import Settings
from ingest.datasets import Dataset
from ingest.items import read_items
from ingest.producer import Encoder, EventProducer
from ingest.replay_control import replay_files
from ingest.rows import ReadReport
from ingest.sorting import SortedDataset

FEWEST, MOST = 4, 30
"""Reviews of somebody whose history can be taken in at a glance."""
ALIKE = 2
"""Reviews within the tastes, at least."""


@dataclass(frozen=True)
class Lookalike:
    """Somebody in the data, and how well they fit."""

    user_id: str
    reviews: int
    alike: int
    """Of these, reviews of items within the tastes."""


def lookalikes(
    dataset: Dataset,
    data: SortedDataset,
    tastes: Mapping[str, Sequence[str]],
    until_ms: int | None = None,
) -> dict[str, Lookalike]:
    """Person → who in the data is most like them; nobody is given twice, who has no match is left
    out.

    `tastes` are names of categories, whatever their case. Only rows before `until_ms` (original
    event time) count. Raises BadDataset where the dataset has no items file.
    """
    within = _items_within(dataset, tastes)
    columns = [batch.select(["user_id", "item_id"]) for batch in _before(data, until_ms)]
    if not columns:
        return {}
    rows = pa.Table.from_batches(columns)
    counts = rows.group_by("user_id").aggregate([([], "count_all")])
    handy = pc.and_(
        pc.greater_equal(counts["count_all"], FEWEST), pc.less_equal(counts["count_all"], MOST)
    )
    counts = counts.filter(handy)
    found: dict[str, Lookalike] = {}
    for person, items in within.items():
        liked = rows.filter(pc.is_in(rows["item_id"], pa.array(sorted(items), pa.string())))
        alike = liked.group_by("user_id").aggregate([("item_id", "count_distinct")])
        alike = alike.filter(pc.greater_equal(alike["item_id_count_distinct"], ALIKE))
        best = alike.join(counts, "user_id", join_type="inner").sort_by(
            [
                ("item_id_count_distinct", "descending"),
                ("count_all", "ascending"),
                ("user_id", "ascending"),
            ]
        )
        taken = {lender.user_id for lender in found.values()}
        likely = best.slice(
            0, len(taken) + 1
        ).to_pylist()  # one of them is free, if there are so many
        free = next((row for row in likely if row["user_id"] not in taken), None)
        if free is not None:
            found[person] = Lookalike(
                free["user_id"], free["count_all"], free["item_id_count_distinct"]
            )
    return found


def lend(
    dataset: Dataset,
    data: SortedDataset,
    settings: Settings,
    tastes: Mapping[str, Sequence[str]],
    *,
    until_ms: int | None = None,
    rebased: bool = False,
) -> dict[str, Lookalike]:
    """Send each person the history of their lookalike; who lent it. Sent again, it changes nothing.

    `rebased`: on the clock of this home's rebased replay, which has to have begun. Raises
    BadDataset where the dataset has no items or no rebased replay began, Unavailable where Kafka is
    away.
    """
    found = lookalikes(dataset, data, tastes, until_ms)
    borrowers = {lender.user_id: person for person, lender in found.items()}
    shift = _shift(data, settings) if rebased else 0
    topics = settings.kafka.topics
    encoder = Encoder(f"dataset/{data.manifest.name}", topics.reviews, topics.feedback, shift)
    lenders = pa.array(sorted(borrowers), pa.string())
    with EventProducer(settings.kafka.bootstrap) as producer:
        producer.require(topics.reviews, topics.feedback)
        sent = 0
        for batch in _before(data, until_ms):
            lent = batch.filter(pc.is_in(batch["user_id"], lenders))
            if not len(lent):
                continue
            people = pa.array(
                [borrowers[user] for user in lent["user_id"].to_pylist()], pa.string()
            )
            for topic, messages in encoder.encode(lent.set_column(0, "user_id", people)):
                sent += len(messages)
                producer.send(topic, messages, sent)
    return found


def _items_within(dataset: Dataset, tastes: Mapping[str, Sequence[str]]) -> dict[str, set[str]]:
    """Person → the items that have a category of their tastes."""
    if dataset.items is None:
        raise BadDataset(f"{dataset.path}: no items file, so nobody's tastes are known in it")
    people: dict[str, list[str]] = {}
    for person, names in tastes.items():
        for name in names:
            people.setdefault(name.casefold(), []).append(person)
    within: dict[str, set[str]] = {person: set() for person in tastes}
    for item in read_items(dataset.items, ReadReport(), dataset.items_format):
        for category in item.categories:
            for person in people.get(category.casefold(), ()):
                within[person].add(item.item_id)
    return within


def _before(data: SortedDataset, until_ms: int | None) -> Iterator[pa.RecordBatch]:
    for batch in data.batches():
        yield batch if until_ms is None else batch.filter(pc.less(batch["time_ms"], until_ms))


def _shift(data: SortedDataset, settings: Settings) -> int:
    shift = replay_files(settings.home).known_shift_ms(data.manifest.fingerprint)
    if shift is None:
        raise BadDataset(f"{data.manifest.name}: no rebased replay began from {settings.home}")
    return shift
