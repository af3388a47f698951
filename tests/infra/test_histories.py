"""Demo users get the history of a similar real user: each user once, the same events each time."""

from __future__ import annotations

from pathlib import Path

import pytest

from afterclick.errors import BadDataset
from afterclick.events import InteractionEvent, decode
from afterclick.settings import Settings
from infra.demo.histories import SimilarUser, nearest_users, seed_demo_users
from ingest.datasets import Dataset, open_dataset
from ingest.replay import ReplayOptions, replay
from ingest.sorting import SortedDataset, sort_by_time
from tests.ingest.conftest import ratings_csv
from tests.ingest.test_producer import read_topic

TASTES = {"ann": ("lenses",), "ben": ("LENSES", "Fans"), "cem": ("Unknown category",)}


@pytest.fixture
def data(tmp_path: Path) -> tuple[Dataset, SortedDataset]:
    """`keen` reviews three lenses, `mild` two, `whole` as many among too many others, `few`
    nothing else.
    """
    folder = tmp_path / "data"
    folder.mkdir()
    lenses = [f"l{n},Lens {n},Cameras|Lenses" for n in range(4)]
    others = [f"x{n},Thing {n},Things" for n in range(40)]
    (folder / "items.csv").write_text(
        "\n".join(["item_id,title,categories", *lenses, *others]) + "\n"
    )
    did = {
        "keen": ["l0", "l1", "l2", "x0"],
        "mild": ["l0", "l3", "x0", "x1", "x2"],
        "whole": ["l0", "l1", "l2", "l3", *(f"x{n}" for n in range(40))],
        "few": ["l0", "l1", "l2"],
    }
    rows = [
        f"{user},{item},{1_300_000_000 + 86_400 * n}"
        for user, of in did.items()
        for n, item in enumerate(of)
    ]
    (folder / "reviews.csv").write_text("\n".join(["user_id,item_id,timestamp", *rows]) + "\n")
    dataset = open_dataset(folder)
    return dataset, sort_by_time(dataset, tmp_path / "home")


def _reviews(settings: Settings) -> list[InteractionEvent]:
    records = read_topic(settings.kafka.bootstrap, settings.kafka.topics.reviews)
    events = [decode(value) for _, _, value in records]
    assert all(isinstance(event, InteractionEvent) for event in events)
    return [event for event in events if isinstance(event, InteractionEvent)]


def test_the_most_similar_users_with_short_histories_are_chosen_once_each(
    data: tuple[Dataset, SortedDataset],
) -> None:
    assert nearest_users(*data, TASTES) == {
        "ann": SimilarUser("keen", 4, 3),
        "ben": SimilarUser("mild", 5, 2),
    }


def test_rows_after_the_split_do_not_count(data: tuple[Dataset, SortedDataset]) -> None:
    third_day = (1_300_000_000 + 2 * 86_400) * 1000
    assert nearest_users(*data, TASTES, third_day) == {}


def test_copied_events_have_the_demo_user_and_stable_ids(
    data: tuple[Dataset, SortedDataset], settings: Settings
) -> None:
    seed_demo_users(*data, settings, TASTES)
    first = _reviews(settings)
    assert sorted((event.data.user_id, event.data.item_id) for event in first) == [
        *(("ann", item) for item in ("l0", "l1", "l2", "x0")),
        *(("ben", item) for item in ("l0", "l3", "x0", "x1", "x2")),
    ]
    assert first[0].time_ms == 1_300_000_000_000
    seed_demo_users(*data, settings, TASTES)
    assert {event.id for event in _reviews(settings)} == {event.id for event in first}


def test_copied_events_use_the_clock_of_the_replay(
    data: tuple[Dataset, SortedDataset], settings: Settings
) -> None:
    dataset, ordered = data
    with pytest.raises(BadDataset, match="no rebased replay"):
        seed_demo_users(dataset, ordered, settings, TASTES, rebased=True)
    summary = replay(ordered, settings, ReplayOptions(rebased=True))
    seed_demo_users(dataset, ordered, settings, TASTES, rebased=True)
    times = {
        event.data.user_id: event.time_ms
        for event in _reviews(settings)
        if event.data.item_id == "l0"
    }
    assert times["ann"] == times["keen"] == 1_300_000_000_000 + summary.shift_ms


def test_a_dataset_without_items_is_rejected(settings: Settings, tmp_path: Path) -> None:
    dataset = open_dataset(ratings_csv(tmp_path))
    with pytest.raises(BadDataset, match="no items file"):
        nearest_users(dataset, sort_by_time(dataset, tmp_path / "home"), TASTES)
