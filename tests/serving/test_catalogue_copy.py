"""The copy of the catalogue in SQL follows the topic and replaces it without Kafka."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from sqlalchemy import select

from afterclick.errors import Unavailable
from afterclick.settings import KafkaSettings, Settings
from infra.embedded.server import free_port
from serving.control.catalogue_copy import BATCH_ROWS, CLOCK_SKEW_MS, CatalogueCopy
from serving.control.store import Database, items
from serving.state.catalogue_index import Entry
from serving.state.item_catalogue import Catalogue, Change
from tests.serving import shop
from tests.serving.running import Running
from tests.waiting import wait_until

NOW_MS = 1_700_000_000_000


def change(number: int, title: str | None = "", at: int = NOW_MS) -> Change:
    """An item's record, or its removal where the title is None."""
    item_id = f"i{number}"
    item = (
        None
        if title is None
        else Entry(item_id=item_id, title=title, categories=("a", "b"), price=1.5)
    )
    return Change(item_id, item, at)


def titles(database: Database) -> dict[str, str]:
    with database.begin() as connection:
        return {row.item_id: row.title for row in connection.execute(select(items))}


def copy(caught_up: Callable[[], bool] = lambda: False) -> CatalogueCopy:
    return CatalogueCopy(Catalogue(), caught_up)


@pytest.fixture
def database(database_url: str) -> Database:
    made = Database(database_url)
    made.upgrade()
    return made


def test_the_newer_record_of_two_processes_wins_in_any_order(database: Database) -> None:
    one, other = copy(), copy()
    other.sync(database)
    one.take([change(1, "new", NOW_MS + 5), change(2, "here"), change(3, "to go")])
    one.sync(database)
    other.take([change(1, "old", NOW_MS), change(3, None, NOW_MS + 1), change(2, None, NOW_MS - 1)])
    other.sync(database)
    assert titles(database) == {"i1": "new", "i2": "here"}
    database.close()


def test_items_missing_from_the_topic_are_deleted_once_it_was_read_to_its_end(
    database: Database,
) -> None:
    first = copy()
    first.take([change(n, "kept") for n in range(1200)] + [change(9999, "fresh", 2 * NOW_MS)])
    assert first.sync(database), "a large change is written in batches"
    assert len(titles(database)) == BATCH_ROWS
    assert not first.sync(database)
    assert len(titles(database)) == 1201
    ended = False
    second = copy(lambda: ended)
    second.take([change(n, "kept") for n in range(1, 1200)])
    assert second.sync(database)
    assert "i0" in titles(database), "deleted before the topic was read to its end"
    ended = True
    second.sync(database)
    assert "i0" not in titles(database)
    assert "i9999" in titles(database), (
        f"newer than this process minus {CLOCK_SKEW_MS} ms: another process may have read it"
    )
    lost = copy(lambda: True)
    lost.sync(database)
    assert len(titles(database)) == 1200, "an empty topic deleted items"
    database.close()


def test_changes_wait_while_the_database_is_down(database: Database) -> None:
    late = copy()
    late.take([change(1, "old")])
    with pytest.raises(Unavailable):
        late.sync(Database("postgresql://user@127.0.0.1:1/absent"))
    late.take([change(2, "other")])
    late.sync(database)
    assert titles(database) == {"i1": "old", "i2": "other"}
    database.close()


def test_a_restart_without_kafka_reads_titles_from_sql(settings: Settings) -> None:
    shop.publish_items(settings, shop.catalogue())
    with Running(settings) as api:
        wait_until(lambda: len(titles(api.service.control.database)) == len(shop.catalogue()))
    unreachable = KafkaSettings(
        bootstrap=f"127.0.0.1:{free_port()}", prefix=settings.kafka.prefix, partitions=2
    )
    with Running(settings.model_copy(update={"kafka": unreachable})) as api:
        wait_until(lambda: len(api.service.catalogue) == len(shop.catalogue()))
        found = api.get("/items/camera-3")
        assert (found["title"], found["categories"]) == ("The camera-3", ["Electronics", "Cameras"])
        wait_until(lambda: api.list_for("eve", n=3, interests="Cables")["source"] == "interests")


def test_missing_items_are_deleted_batch_by_batch(database: Database) -> None:
    first = copy()
    first.take([change(number) for number in range(3 * BATCH_ROWS)])
    while first.sync(database):
        pass
    second = copy(lambda: True)
    second.take([change(number, at=NOW_MS) for number in range(0, 3 * BATCH_ROWS, 2)])
    syncs = 1
    while second.sync(database):
        syncs += 1
    assert len(titles(database)) == 1.5 * BATCH_ROWS
    assert syncs > 3, "a large catalogue is compared in batches"
    database.close()
