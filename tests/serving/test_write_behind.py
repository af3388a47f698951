"""Rows wait for SQL in bounded queues; one thread writes them and no part stops another."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from sqlalchemy import Connection, insert, select

from afterclick.errors import Unavailable
from afterclick.events import now
from serving.control.store import Database, rules
from serving.control.write_behind import PendingRows, Syncable, WriteBehind
from tests.waiting import wait_until

DOWN = "postgresql://user@127.0.0.1:1/absent"


@pytest.fixture
def database(database_url: str) -> Database:
    created = Database(database_url)
    created.upgrade()
    return created


def written(database: Database) -> set[str]:
    with database.begin() as connection:
        return set(connection.execute(select(rules.c.rule_id)).scalars())


def write(connection: Connection, batch: Mapping[str, str | None]) -> None:
    """Store each row as a rule; None is rejected by the database."""
    row = {"action": "exclude", "query": [], "created": now()}
    connection.execute(
        insert(rules), [{**row, "rule_id": key, "note": note} for key, note in batch.items()]
    )


class Notes:
    """A part that writes notes."""

    def __init__(self) -> None:
        self.pending = PendingRows[str, str | None]()

    def sync(self, database: Database) -> bool:
        return self.pending.flush(database, write, size=2)


class Broken:
    """A part with a defect."""

    def sync(self, database: Database) -> bool:
        raise RuntimeError("a defect")


def test_a_row_merges_into_the_waiting_row_of_its_key() -> None:
    sums = PendingRows[str, int](merge=lambda waiting, new: waiting + new)
    for key, number in (("a", 1), ("b", 2), ("a", 3)):
        sums.add(key, number)
    assert sums.values() == [4, 2]


def test_a_full_queue_drops_new_keys_but_still_merges_known_ones() -> None:
    rows = PendingRows[str, int](limit=1)
    for key, number in (("a", 1), ("b", 2), ("a", 3)):
        rows.add(key, number)
    assert (rows.values(), rows.dropped) == ([3], 1)


def test_rows_wait_through_an_outage_and_merge_with_newer_ones() -> None:
    sums = PendingRows[str, int](merge=lambda waiting, new: waiting + new)
    sums.add("a", 1)

    def fail(connection: Connection, batch: Mapping[str, int]) -> None:
        raise AssertionError("there is no connection")

    with pytest.raises(Unavailable):
        sums.flush(Database(DOWN), fail)
    sums.add("b", 2)
    sums.add("a", 3)
    assert sums.values() == [4, 2]
    assert sums.written == 0


def test_rows_that_the_database_rejects_are_dropped_and_block_no_other(database: Database) -> None:
    notes = Notes()
    notes.pending.add("bad", None)
    assert not notes.sync(database)
    notes.pending.add("good", "a note")
    notes.sync(database)
    assert (notes.pending.dropped, notes.pending.written) == (1, 1)
    assert written(database) == {"good"}
    database.close()


def test_a_backlog_is_written_in_batches_and_whole_at_the_end(database: Database) -> None:
    notes = Notes()
    for number in range(7):
        notes.pending.add(str(number), "a note")
    assert notes.sync(database)
    assert len(written(database)) == 2
    writer = WriteBehind(database, [notes])
    writer.start()
    writer.stop(timeout_s=30.0)
    assert len(written(database)) == 7
    database.close()


def test_a_defect_in_one_part_stops_no_other_part(database: Database) -> None:
    notes = Notes()
    parts: list[Syncable] = [Broken(), notes]
    writer = WriteBehind(database, parts, interval_s=0.05)
    writer.start()
    notes.pending.add("later", "a note")
    wait_until(lambda: written(database) == {"later"})
    writer.stop()
    database.close()
