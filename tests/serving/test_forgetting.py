"""A forgotten user leaves no row in SQL."""

from __future__ import annotations

from datetime import UTC, datetime
from urllib.parse import quote

import pytest
from sqlalchemy import insert, select

from serving.control.store import Database, experiment_users, forget_user, request_log


@pytest.mark.parametrize("user_id", ["ann", "100%_ann", "ann & bob/ü"])
def test_the_rows_of_a_user_are_deleted_and_those_of_others_stay(
    database_url: str, user_id: str
) -> None:
    database = Database(database_url)
    database.upgrade()
    counts = {
        "experiment": "e",
        "arm": "a",
        "first_shown": datetime.now(UTC),
        "lists": 1,
        "fallback_lists": 0,
        "clicks": 0,
        "purchases": 0,
    }
    escaped = quote(user_id, safe="")
    targets = [
        f"/recommendations?user_id={escaped}&n=3",
        f"/users/{user_id}/history",
        "/recommendations?user_id=zoe",
        "/recommendations?user_id=100",
    ]
    request = {
        "at": datetime.now(UTC),
        "method": "GET",
        "route": "r",
        "status": 200,
        "milliseconds": 1.0,
    }
    with database.begin() as connection:
        connection.execute(
            insert(experiment_users), [counts | {"user_id": u} for u in (user_id, "zoe")]
        )
        connection.execute(
            insert(request_log), [request | {"target": target} for target in targets]
        )
    assert forget_user(database, user_id) == 3
    assert forget_user(database, user_id) == 0
    with database.begin() as connection:
        assert connection.execute(select(experiment_users.c.user_id)).scalars().all() == ["zoe"]
        assert connection.execute(select(request_log.c.target)).scalars().all() == targets[2:]
    database.close()
