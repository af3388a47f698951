"""The ETL accounts for every row of the log."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest
from deltalake import write_deltalake

from afterclick.errors import BadDataset
from afterclick.events import Action, Interaction, Item, interaction_event
from afterclick.settings import Settings
from tests.training import shop
from training import etl, event_log, interactions

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

pytestmark = pytest.mark.spark


def run(spark: SparkSession, settings: Settings) -> tuple[Path, etl.EtlReport]:
    version, report = etl.run(spark, settings)
    return settings.home / "etl" / version, report


def fingerprint(folder: Path) -> str:
    return event_log.load(folder).fingerprint()


def pairs_of(folder: Path) -> set[tuple[str, str]]:
    """(user_id, item_id) of each interaction."""
    rows = event_log.load(folder).pairs()
    return {(rows.user_ids[u], rows.item_ids[i]) for u, i in zip(rows.user, rows.item, strict=True)}


def test_every_row_is_kept_or_dropped_for_a_reason(spark: SparkSession, settings: Settings) -> None:
    rows = [
        shop.event("u1", "a", 1),
        shop.event("u1", "a", 2),  # the same pair again
        shop.event("u2", "a", 3, event_id="same"),
        shop.event("u2", "a", 3, event_id="same"),  # sent twice
        shop.event("u2", "b", 4, action="skip"),
        shop.event("u3", "b", 5, action="view"),
        shop.event("u3", None, 5),  # type: ignore[arg-type]
        shop.event("u3", "c", 402),  # 400 days are when it arrives
    ]
    shop.write_log(settings.archive, rows)
    folder, report = run(spark, settings)
    assert report.rows_in == 8
    assert report.dropped == {
        "incomplete": 1,
        "dated_ahead": 1,
        "duplicate_event": 1,
        "copied_to_user": 0,
    }
    assert report.rows_out == 5
    assert report.not_pairs == {"not_positive": 1, "undone": 0, "outweighed": 0, "repeated_pair": 1}
    assert report.pairs == 3
    assert report.balanced()
    assert pairs_of(folder) == {("u1", "a"), ("u2", "a"), ("u3", "b")}


def test_undone_actions_are_no_interactions_unless_repeated_later(
    spark: SparkSession, settings: Settings
) -> None:
    rows = [
        shop.event("u1", "a", 1, action="like"),
        shop.event("u1", "a", 2, action="undo"),
        shop.event("u1", "b", 1, action="like"),
        shop.event("u2", "a", 1, action="purchase"),
        shop.event("u2", "a", 2, action="undo"),
        shop.event("u2", "a", 3, action="like"),
    ]
    shop.write_log(settings.archive, rows)
    folder, report = run(spark, settings)
    assert (report.not_pairs["undone"], report.not_pairs["not_positive"]) == (2, 2)
    assert report.balanced()
    assert pairs_of(folder) == {("u1", "b"), ("u2", "a")}
    assert event_log.load(folder).pairs().weight.tolist() == [2.0, 2.0]


def test_every_event_is_kept_with_its_time_action_and_weight(
    spark: SparkSession, settings: Settings
) -> None:
    rows = [
        shop.event("u", "b", 9, action="purchase"),
        shop.event("u", "a", 2, action="view"),
        shop.event("u", "a", 3, action="skip"),
        shop.event("u", "b", 9.5, action="undo"),
    ]
    shop.write_log(settings.archive, rows)
    table = event_log.load(run(spark, settings)[0])
    days = (table.time_ms - int(shop.START.timestamp() * 1000)) / shop.DAY_MS
    assert days.tolist() == [2, 3, 9, 9.5]
    assert table.item_ids[table.item].tolist() == ["a", "a", "b", "b"]
    actions = [event_log.ACTIONS[code] for code in table.action]
    assert actions == ["view", "skip", "purchase", "undo"]
    assert table.weight.tolist() == [0.25, -1.0, 3.0, 0.0]


def test_times_are_rounded_as_in_the_stream(spark: SparkSession, settings: Settings) -> None:
    times = [shop.START + timedelta(microseconds=us) for us in (500, 1400, 1500, 2501, 2999)]
    rows = [shop.event(f"u{n}", "a", event_time=time) for n, time in enumerate(times)]
    shop.write_log(settings.archive, rows)
    made = [
        interaction_event(
            Interaction(user_id="u", item_id="a", action=Action.VIEW),
            event_id="e",
            time=time,
            source="test",
        ).time_ms
        for time in times
    ]
    assert event_log.load(run(spark, settings)[0]).time_ms.tolist() == made


def _filtered(pairs: set[tuple[int, int]], k: int) -> set[tuple[int, int]]:
    """The k-core, pair by pair."""
    users, items = Counter(user for user, _ in pairs), Counter(item for _, item in pairs)
    kept = {(user, item) for user, item in pairs if users[user] >= k and items[item] >= k}
    return kept if kept == pairs else _filtered(kept, k)


def test_the_core_is_what_repeated_filtering_leaves(
    spark: SparkSession, settings: Settings
) -> None:
    shop.write_log(settings.archive, shop.drifting_events(users=120, items=80))
    folder, report = run(spark, settings)
    table = event_log.load(folder).pairs()
    core = _filtered(set(zip(table.user.tolist(), table.item.tolist(), strict=True)), 5)
    inside = table.core(5)
    assert set(zip(inside.user.tolist(), inside.item.tolist(), strict=True)) == core
    assert report.core_rows == len(core) > 0
    assert report.core_items == len({item for _, item in core})
    assert report.core_users == len({user for user, _ in core})
    assert report.balanced()
    assert sum(report.core_dropped.values()) > 0


def test_indices_follow_the_ids_and_the_same_log_gives_the_same_tables(
    spark: SparkSession, settings: Settings
) -> None:
    shop.write_log(settings.archive, shop.drifting_events(users=60, items=20))
    first, second = run(spark, settings)[0], run(spark, settings)[0]
    table = event_log.load(first)
    assert table.item_ids.tolist() == sorted(table.item_ids)
    assert table.user_ids.tolist() == sorted(table.user_ids)
    assert fingerprint(first) == fingerprint(second)
    shop.write_log(settings.archive, [shop.event("another", "new", 200)])
    assert fingerprint(run(spark, settings)[0]) != fingerprint(first)


def test_the_catalogue_is_the_newest_event_of_each_item(
    spark: SparkSession, settings: Settings
) -> None:
    shop.write_log(settings.archive, [shop.event("u", "a")])
    old, new = (
        Item(item_id="a", title="Old"),
        Item(item_id="a", title="Lamp", categories=("Home", "Light")),
    )
    shop.publish_items(settings.kafka, [old, Item(item_id="b"), new])
    folder, report = run(spark, settings)
    assert report.catalogue == 2
    assert interactions.load_catalogue(folder)["a"] == ("Lamp", ("Home", "Light"))


def test_without_a_log_the_error_names_the_command_to_run(
    spark: SparkSession, settings: Settings
) -> None:
    with pytest.raises(BadDataset, match="afterclick stream"):
        etl.run(spark, settings)
    assert not [p for p in (settings.home / "etl").glob("*") if p.name != "LATEST"]


def test_a_table_with_other_columns_is_rejected(spark: SparkSession, settings: Settings) -> None:
    write_deltalake(settings.archive, pa.table({"item_id": ["a"], "n": [1]}))
    with pytest.raises(BadDataset, match="lacks the columns"):
        etl.run(spark, settings)


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([shop.event("u", "a", action="skip")], "not_positive: 1"),
        ([shop.event("u", "a", 1), shop.event("u", "a", 2, action="undo")], "undone: 1"),
        ([shop.event("u", None)], "incomplete: 1"),  # type: ignore[arg-type]
    ],
)
def test_a_log_without_interactions_is_refused_with_the_reasons(
    spark: SparkSession, settings: Settings, rows: list[dict[str, Any]], reason: str
) -> None:
    shop.write_log(settings.archive, rows)
    with pytest.raises(BadDataset, match=rf"no interactions .*{reason}.*: ingest more events"):
        etl.run(spark, settings)
