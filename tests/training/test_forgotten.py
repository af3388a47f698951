"""The next model knows nothing of a forgotten user, whatever lies in the log."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from afterclick.settings import Settings
from streaming.forgotten_users import publish_forgotten
from tests.training import shop
from training import etl, interactions

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

pytestmark = pytest.mark.spark


def users_of_tables(spark: SparkSession, settings: Settings) -> set[str]:
    version, report = etl.run(spark, settings)
    assert report.balanced()
    return set(interactions.load(settings.home / "etl" / version).user_ids.tolist())


def test_their_rows_are_left_out_up_to_the_moment(spark: SparkSession, settings: Settings) -> None:
    rows = [
        shop.event(user, item, day) for day, item in enumerate("abc") for user in ("alice", "bob")
    ]
    shop.write_log(settings.archive, rows)
    assert users_of_tables(spark, settings) == {"alice", "bob"}
    until_ms = int(shop.START.timestamp() * 1000) + 1 * shop.DAY_MS
    publish_forgotten(settings.kafka, "alice", until_ms)
    _, report = etl.run(spark, settings)
    assert report.rows_in == 4  # she came back on the last day
    publish_forgotten(settings.kafka, "alice", until_ms + 9 * shop.DAY_MS)
    assert users_of_tables(spark, settings) == {"bob"}
