"""Rows are erased from the archive, and nothing of the user stays on the disk."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import write_deltalake

from afterclick.io.event_archive import EventArchive, sql_text
from streaming.archive_table import ARCHIVE_SCHEMA, create_archive
from streaming.proof.archive_log import erase

USER = "o'user-3"


@pytest.fixture(params=["folder", "object store"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An archive of 100 rows of ten users on two days."""
    if request.param == "folder":
        uri = str(tmp_path / "log")
    else:
        request.getfixturevalue("s3")
        uri = "s3a://shop/log"
    table = create_archive(uri).table
    for day in (1, 2):
        made = [row(n, day) for n in range(50 * (day - 1), 50 * day)]
        write_deltalake(table, pa.Table.from_pylist(made, schema=ARCHIVE_SCHEMA), mode="append")
    return uri


def row(n: int, day: int) -> dict[str, Any]:
    return {
        "user_id": f"o'user-{n % 10}",
        "event_time": datetime.fromtimestamp(n, UTC),
        "text": "a text that is long enough to matter",
        "log_day": f"2026-01-0{day}",
    }


def left(uri: str) -> list[float]:
    """Event times of the user's rows."""
    found = EventArchive.open(uri).read().to_pylist()
    return sorted(one["event_time"].timestamp() for one in found if one["user_id"] == USER)


def test_rows_up_to_the_time_are_erased(uri: str) -> None:
    assert erase(uri, USER, 60_000) == 6
    assert left(uri) == [63, 73, 83, 93]
    archive = EventArchive.open(uri)
    assert archive.table.count() == 94
    assert archive.read().schema.equals(ARCHIVE_SCHEMA)
    assert erase(uri, USER, 60_000) == 0
    assert erase(uri, USER, 10**12) == 4


def test_no_file_has_the_rows_afterwards(tmp_path: Path) -> None:
    uri = str(tmp_path / "log")
    table = create_archive(uri).table
    for n in range(20):
        one = pa.Table.from_pylist([row(n, 1)], schema=ARCHIVE_SCHEMA)
        write_deltalake(table, one, mode="append")
    table.optimize.compact()
    table.delete(f"user_id = {sql_text(USER)}")  # the control: still there
    assert USER in on_disk(uri)
    erase(uri, "o'user-4", 10**12)
    assert not {USER, "o'user-4"} & on_disk(uri)


def on_disk(uri: str) -> set[str]:
    """Users with rows in any file, also of older commits."""
    files = Path(uri).glob("log_day=*/*.parquet")
    return {user for path in files for user in pq.ParquetFile(path).read()["user_id"].to_pylist()}


def test_without_an_archive_nothing_is_erased(tmp_path: Path) -> None:
    assert erase(str(tmp_path / "none"), USER, 0) == 0
