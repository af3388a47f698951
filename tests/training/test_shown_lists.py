"""The place and propensity of what a user acted on come from the impressions of the topic."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from confluent_kafka import Producer

from afterclick.events import Impression, ImpressionEvent, ShownItem, encode, now
from afterclick.settings import Settings
from afterclick.topics import IMPRESSIONS_MS
from tests.training import shop
from training import etl, event_log

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

pytestmark = pytest.mark.spark
ORGANIC, UNKNOWN = (-1, None), (-1, 1.0)


def show(settings: Settings, impression_id: str, *propensities: float, time_ms: int = 0) -> None:
    """Publish a list of the items i0, i1, … with these propensities."""
    items = tuple(
        ShownItem(item_id=f"i{n}", score=1.0, source="als", propensity=propensity)
        for n, propensity in enumerate(propensities)
    )
    event = ImpressionEvent(
        id=impression_id,
        source="/test",
        time=now(),
        subject="u",
        data=Impression(
            impression_id=impression_id,
            user_id="u",
            items=items,
            model_version="m1",
            source="personalised",
        ),
    )
    publish(settings, encode(event), time_ms)


def publish(settings: Settings, value: bytes, time_ms: int = 0) -> None:
    producer = Producer({"bootstrap.servers": settings.kafka.bootstrap})
    topic = settings.kafka.topics.impressions
    producer.produce(topic, value, b"u", timestamp=time_ms or round(now().timestamp() * 1000))
    assert producer.flush(30) == 0


def act(settings: Settings, *rows: dict[str, Any]) -> None:
    """Append clicks to the log, as one more file."""
    days = len(list(Path(settings.archive).glob("log_day=*"))) + 1
    shop.write_log(settings.archive, list(rows), log_day=f"2026-01-{days:02}")


def places(
    spark: SparkSession, settings: Settings, *, full: bool = False
) -> tuple[dict[str, tuple[int, float | None]], etl.EtlReport]:
    """user_id → position and propensity (None: organic) of the user's event after an ETL run."""
    version, report = etl.run(spark, settings, full=full)
    log = event_log.load(settings.home / "etl" / version)
    columns = (log.user_ids[log.user], log.position, log.propensity)
    return {
        user: (position, None if np.isnan(propensity) else propensity)
        for user, position, propensity in zip(*(c.tolist() for c in columns), strict=True)
    }, report


def test_events_have_the_place_and_propensity_of_their_list(
    spark: SparkSession, settings: Settings
) -> None:
    show(settings, "plain", 1.0, 1.0, 1.0)
    show(settings, "explored", 1.0, 0.25)
    publish(settings, b"not an impression")
    act(
        settings,
        shop.event("second", "i1", impression_id="plain"),
        shop.event("sampled", "i1", impression_id="explored"),
        shop.event("organic", "i1"),
        shop.event("another-item", "i9", impression_id="plain"),
        shop.event("another-list", "i1", impression_id="missing"),
    )
    found, report = places(spark, settings)
    assert found == {
        "second": (1, 1.0),
        "sampled": (1, 0.25),
        "organic": ORGANIC,
        "another-item": UNKNOWN,
        "another-list": UNKNOWN,
    }
    assert (report.listed, report.placed) == (4, 2)
    log = event_log.load(settings.home / "etl" / latest(settings))
    lists = {
        str(log.user_ids[user]): (
            log.item_ids[log.lists.item[first:end]].tolist(),
            log.lists.grade[first:end].tolist(),
        )
        for user, first, end in zip(
            log.lists.user, log.lists.start, log.lists.start[1:], strict=False
        )
    }
    assert lists == {
        "second": (["i0", "i1", "i2"], [0.0, 2.0, 0.0]),
        "sampled": (["i0", "i1"], [0.0, 2.0]),
    }


def test_an_event_may_name_a_list_that_an_earlier_run_has_read(
    spark: SparkSession, settings: Settings
) -> None:
    show(settings, "first", 1.0, 0.5)
    act(settings, shop.event("early", "i0", impression_id="first"))
    places(spark, settings)
    show(settings, "second", 1.0)
    act(
        settings,
        shop.event("late", "i1", impression_id="first"),
        shop.event("new", "i0", impression_id="second"),
    )
    expected = {"early": (0, 1.0), "late": (1, 0.5), "new": (0, 1.0)}
    assert places(spark, settings)[0] == expected
    assert lists_read(settings) == 2  # a file of each run
    log = event_log.load(settings.home / "etl" / latest(settings))
    assert log.lists.shown_today.tolist() == [0, 0, 1]  # `first` showed the item of `second`
    assert places(spark, settings)[0] == expected
    assert lists_read(settings) == 2  # nothing new
    assert places(spark, settings, full=True)[0] == expected


def latest(settings: Settings) -> str:
    """The latest version."""
    return (settings.home / "etl" / "LATEST").read_text().strip()


def lists_read(settings: Settings) -> int:
    """Files of lists in the latest version."""
    folder = settings.home / "etl" / latest(settings) / "impressions"
    return len(list(folder.glob("*.parquet")))


def test_old_lists_are_removed_but_what_events_name_is_kept(
    spark: SparkSession, settings: Settings
) -> None:
    today_ms = round(now().timestamp() * 1000)
    show(settings, "old", 1.0, 0.5, time_ms=today_ms - IMPRESSIONS_MS + 60_000)
    act(settings, shop.event("early", "i1", impression_id="old"))
    assert places(spark, settings)[0] == {"early": (1, 0.5)}
    show(settings, "new", 1.0, time_ms=today_ms + 120_000)
    act(settings, shop.event("late", "i0", impression_id="old"))
    assert places(spark, settings, full=True)[0] == {"early": (1, 0.5), "late": (0, 1.0)}
    assert lists_read(settings) == 1
    shown = pq.read_table(settings.home / "etl" / latest(settings) / "shown").to_pylist()
    assert [row["impression_id"] for row in shown] == ["old"] * 2
