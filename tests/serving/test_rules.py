"""Business rules: their effect on lists and contributions, and their time limits."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from sqlalchemy import insert

from afterclick.events import Item
from serving.control.rules import Rule, RuleDraft, add_rule, read_rules, remove_rule
from serving.control.store import Database
from serving.control.store import rules as table
from serving.rerank import PINNED
from serving.state.catalogue_query import matching_items
from serving.state.snapshot import NO_RULES
from tests.serving import shop
from tests.serving.offline import Offline

CAMERAS = [f"camera-{n}" for n in range(shop.PER_KIND)]
LIKED = {"ann": ["camera-3", "camera-5"], "bob": ["cable-2"]}
AUDIENCES = ("", "ann", "bob")


def draft(action: str, *query: str, **more: Any) -> RuleDraft:
    return RuleDraft.model_validate({"action": action, "query": list(query), **more})


def an_offline(**changes: Any) -> Offline:
    arguments: dict[str, Any] = {"liked": LIKED, "model": shop.model("m1")}
    return Offline(**arguments | changes)


@pytest.mark.parametrize("user_id", AUDIENCES)
def test_an_excluded_item_is_in_no_list(user_id: str) -> None:
    served = an_offline()
    before = served.ids(user_id, 20)
    served.decide(draft("exclude", *(f"item:{item_id}" for item_id in before[:5])))
    after = served.ids(user_id, 20)
    assert len(after) == 20
    assert not set(before[:5]) & set(after)


@pytest.mark.parametrize("user_id", AUDIENCES)
def test_a_boost_raises_an_item_from_any_rank_and_a_bury_lowers_it(user_id: str) -> None:
    served = an_offline()
    before = served.ids(user_id)
    last = served.ids(user_id, 50)[-1]
    served.decide(
        draft("boost", f"item:{last}", amount=500), draft("bury", f"item:{before[0]}", amount=500)
    )
    rows = served.items(user_id)
    assert rows[0]["item_id"] == last
    assert rows[0]["contributions"]["rules"] == 500
    assert before[0] not in [row["item_id"] for row in rows]
    assert all(row["contributions"]["rules"] == 0 for row in rows[1:])


@pytest.mark.parametrize("user_id", AUDIENCES)
def test_a_pin_keeps_its_rank_and_is_named_in_the_contributions(user_id: str) -> None:
    served = an_offline()
    natural = served.ids(user_id, 50)
    served.decide(
        draft("pin", f"item:{natural[40]}", position=1),
        draft("pin", f"item:{natural[30]}", position=4),
    )
    rows = served.items(user_id)
    ids = [row["item_id"] for row in rows]
    assert (ids[0], ids[3]) == (natural[40], natural[30])
    assert [i for i in ids if i not in (natural[40], natural[30])] == natural[:8]
    for place in (0, 3):
        assert rows[place]["contributions"]["rules"] > 0
        assert rows[place]["reason"] == PINNED


def test_a_pinned_item_that_the_user_has_seen_or_excludes_is_left_out() -> None:
    served = an_offline()
    served.decide(draft("pin", "item:camera-3"), draft("pin", "item:camera-9"))
    assert served.ids("ann")[1] == "camera-9"
    assert "camera-9" not in served.ids("ann", exclude=("camera-9",))
    assert served.ids("bob")[:2] == ["camera-3", "camera-9"]


def test_rules_of_one_item_add_up_and_exclusion_wins() -> None:
    served = an_offline()
    served.decide(draft("boost", "item:cable-9", amount=7), draft("bury", "title:9", amount=3))
    row = next(row for row in served.items("bob", 50) if row["item_id"] == "cable-9")
    assert row["contributions"]["rules"] == pytest.approx(4)
    served.decide(draft("pin", "item:cable-9"), draft("exclude", "category:cables"))
    assert not any(item_id.startswith("cable") for item_id in served.ids("bob", 20))


def test_a_rule_is_in_force_from_its_start_to_its_end() -> None:
    now = datetime.now(UTC)
    past, future = now - timedelta(hours=1), now + timedelta(hours=1)
    served = an_offline()
    natural = served.ids()
    for more, works in (
        ({"starts": past, "ends": future}, True),
        ({"starts": past}, True),
        ({"ends": future}, True),
        ({"starts": future}, False),
        ({"ends": past}, False),
    ):
        served.decide(draft("exclude", f"item:{natural[0]}", **more))
        assert (natural[0] not in served.ids()) is works, more


def test_without_rules_nothing_is_computed_for_them() -> None:
    served = an_offline()
    assert served.snapshot.rules is NO_RULES
    assert "rules" not in served.items("ann")[0]["contributions"]


def test_a_cached_list_does_not_outlive_a_rule() -> None:
    served = an_offline()
    first = served.ids("ann")[0]
    served.decide(draft("exclude", f"item:{first}"))
    assert first not in served.ids("ann")
    served.decide()
    assert served.ids("ann")[0] == first


def test_rules_apply_to_items_added_later() -> None:
    served = an_offline()
    served.decide(draft("pin", "brand:acme"))
    assert served.items()[0]["reason"] != PINNED
    served.catalogue.put(Item(item_id="new", title="New", brand="ACME"))
    served.snapshots.current = served.snapshots.build()
    assert served.ids()[0] == "new"


QUERIES = st.sampled_from(
    ["item:camera-1", "item:cable-4", "category:Cameras", "title:the cable-7", "title:1"]
)
RULES = st.lists(
    st.one_of(
        st.builds(draft, st.just("exclude"), QUERIES),
        st.builds(lambda q, a: draft("boost", q, amount=a), QUERIES, st.floats(0.01, 100)),
        st.builds(lambda q, a: draft("bury", q, amount=a), QUERIES, st.floats(0.01, 100)),
        st.builds(lambda q, p: draft("pin", q, position=p), QUERIES, st.integers(1, 12)),
    ),
    max_size=5,
)


@settings(max_examples=60, deadline=None)
@given(rules=RULES, user_id=st.sampled_from(AUDIENCES), n=st.integers(1, 20))
def test_under_any_rules_contributions_add_up_and_excluded_items_stay_out(
    rules: list[RuleDraft], user_id: str, n: int
) -> None:
    served = an_offline()
    served.decide(*rules)
    rows = served.items(user_id, n)  # also checks contributions, order and repeats
    shown = {row["item_id"] for row in rows}
    for rule in rules:
        if rule.action == "exclude":
            snapshot = served.snapshot
            found = matching_items(served.catalogue, rule.query, snapshot.lookup).tolist()
            assert not shown & {snapshot.ids[item] for item in found}
    left = len(shop.item_ids()) - len(served.snapshot.rules.excluded) - len(LIKED.get(user_id, ()))
    assert len(rows) >= min(n, left)


@pytest.mark.parametrize(
    "wrong",
    [
        {"action": "promote", "query": ["item:a"]},
        {"action": "boost", "query": []},
        {"action": "boost", "query": ["camera"]},
        {"action": "boost", "query": ["colour:red"]},
        {"action": "boost", "query": ["price:cheap"]},
        {"action": "boost", "query": ["price:9..1"]},
        {"action": "boost", "query": ["title:!!"]},
        {"action": "boost", "query": ["item:\x00"]},
        {"action": "boost", "query": ["item:a"], "amount": 0},
        {"action": "boost", "query": ["item:a"], "amount": float("inf")},
        {"action": "boost", "query": ["item:a"], "position": 1},
        {"action": "pin", "query": ["item:a"], "amount": 1},
        {"action": "pin", "query": ["item:a"], "position": 0},
        {"action": "exclude", "query": ["item:a"], "starts": "2026-01-02T00:00:00"},
        {"action": "exclude", "query": ["item:a"], "starts": "0001-01-01T00:00:00+14:00"},
        {"action": "exclude", "query": ["item:a"], "ends": "9999-12-31T23:00:00-12:00"},
        {
            "action": "exclude",
            "query": ["item:a"],
            "starts": "2026-01-02T00:00:00Z",
            "ends": "2026-01-01T00:00:00Z",
        },
    ],
)
def test_an_inconsistent_rule_is_rejected(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        RuleDraft.model_validate(wrong)


def test_rules_are_read_back_from_sql_unchanged(database_url: str) -> None:
    database = Database(database_url)
    database.upgrade()
    moment = datetime(2026, 12, 24, 18, tzinfo=UTC)
    kept = [
        Rule.of(
            draft("pin", "brand:Ünï", "price:..9.5", position=3, starts=moment, note="it's 🎄")
        ),
        Rule.of(draft("boost", "title:sand disk", amount=2.5)),
    ]
    with database.begin() as connection:
        for rule in kept:
            add_rule(connection, rule)
    with database.begin() as connection:
        assert list(read_rules(connection)) == kept
        assert remove_rule(connection, kept[0].rule_id)
        assert not remove_rule(connection, kept[0].rule_id)
        assert list(read_rules(connection)) == kept[1:]
    database.close()


def test_an_unreadable_rule_does_not_hide_the_others(database_url: str) -> None:
    database = Database(database_url)
    database.upgrade()
    good = Rule.of(draft("exclude", "item:a"))
    later = {
        "rule_id": "x",
        "action": "hide",
        "query": ["size:9"],
        "note": "",
        "created": datetime.now(UTC),
    }
    with database.begin() as connection:
        add_rule(connection, good)
        connection.execute(insert(table), [later])
    with database.begin() as connection:
        assert read_rules(connection) == (good,)
    database.close()
