"""Interactions in arrays: split by time, filtered, extended."""

from __future__ import annotations

from tests.training import shop


def test_interactions_before_a_time() -> None:
    rows = shop.interactions([(0, 0), (1, 1), (0, 2)], users=2, items=3)
    before = rows.before(int(rows.time_ms[1]))
    assert before.item.tolist() == [0]
    assert before.shape == rows.shape


def test_selected_items_get_dense_indices() -> None:
    rows = shop.interactions([(0, 2), (1, 2), (0, 0)], users=2, items=3).served(2)
    assert rows.item_ids.tolist() == ["i2"]
    assert rows.item.tolist() == [0, 0]


def test_items_without_interactions_come_last() -> None:
    rows = shop.interactions([(0, 0)], users=1, items=2).also(["new", "i1", "another"])
    assert rows.item_ids.tolist() == ["i0", "i1", "another", "new"]
    assert rows.item_counts().tolist() == [1, 0, 0, 0]


def test_the_core_contains_no_user_or_item_below_k() -> None:
    square = [(u, i) for u in range(3) for i in range(3)]
    rows = shop.interactions([*square, (3, 0), (0, 3)], users=4, items=4).core(3)
    assert len(rows) == 9
    assert len(rows.core(4)) == 0
