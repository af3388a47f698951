"""Migrations, rows and errors, on SQLite and on Postgres."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta, timezone

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import insert, inspect, select, text

from afterclick.errors import BadInput, Unavailable
from serving.control.store import Database, head, metadata, rules

NAMES = set(metadata.tables)


def tables(database: Database) -> set[str]:
    with database.begin() as connection:
        return set(inspect(connection).get_table_names()) - {"alembic_version"}


def test_upgrade_creates_the_tables_of_the_code(database_url: str) -> None:
    database = Database(database_url)
    database.upgrade()
    assert tables(database) == NAMES
    assert database.revision() == head()
    with database.begin() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []
    database.close()


def test_a_second_upgrade_keeps_the_rows(database_url: str) -> None:
    database = Database(database_url)
    database.upgrade()
    moment = datetime(2026, 3, 29, 2, 30, tzinfo=timezone(timedelta(hours=2)))
    row = {
        "rule_id": "r",
        "action": "boost",
        "query": ["brand:x"],
        "note": "ü\U0001f98a",
        "created": moment,
    }
    with database.begin() as connection:
        connection.execute(insert(rules), [row])
    database.upgrade()
    with database.begin() as connection:
        found = connection.execute(select(rules)).one()
    assert (found.query, found.note, found.created) == (["brand:x"], "ü\U0001f98a", moment)
    assert found.created.tzinfo is UTC
    database.close()


def test_several_processes_may_upgrade_concurrently(database_url: str) -> None:
    databases = [Database(database_url) for _ in range(4)]
    failures: list[Exception] = []

    def upgrade(database: Database) -> None:
        try:
            database.upgrade()
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=upgrade, args=(database,)) for database in databases]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert tables(databases[0]) == NAMES
    for database in databases:
        database.close()


def test_a_failed_transaction_leaves_no_row(database_url: str) -> None:
    database = Database(database_url)
    database.upgrade()
    row = {"rule_id": "r", "action": "boost", "query": [], "note": "", "created": datetime.now(UTC)}

    def half() -> None:
        with database.begin() as connection:
            connection.execute(insert(rules), [row])
            connection.execute(text("SELECT nothing FROM nowhere"))

    with pytest.raises(Unavailable):
        half()
    with database.begin() as connection:
        assert connection.execute(select(rules)).all() == []
    database.close()


@pytest.mark.parametrize(
    "url", ["nonsense", "nosuch://host/name", "postgresql+nodriver://host/name", ""]
)
def test_a_malformed_url_is_named_in_the_error(url: str) -> None:
    with pytest.raises(BadInput, match="AFTERCLICK_SERVING__DATABASE"):
        Database(url)


def test_a_database_that_is_down_is_unavailable_and_its_password_hidden() -> None:
    database = Database("postgresql://shop:secret@127.0.0.1:1/shop")
    with pytest.raises(Unavailable) as failed, database.begin():
        pass
    assert "secret" not in str(failed.value)
    assert "127.0.0.1" in str(failed.value)


def test_an_unknown_revision_is_named_in_the_error(database_url: str) -> None:
    database = Database(database_url)
    database.upgrade()
    with pytest.raises(BadInput, match="nosuch"):
        database.upgrade("nosuch")
    assert tables(database) == NAMES
    database.close()
