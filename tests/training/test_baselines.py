"""Popularity and neighbours, compared with hand-computed values and a dense computation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from training.config import NeighbourConfig
from training.interactions import Interactions
from training.models.neighbours import (
    cosine_neighbours,
    random_walk,
    same_day_neighbours,
)
from training.models.popularity import (
    decayed_popularity,
    first_seen,
    popularity,
    time_resolution,
)

DAY = 86_400_000


def rows_of(rows: list[tuple[int, int, int]], items: int) -> Interactions:
    """Rows (user, item, day)."""
    rows = sorted(rows, key=lambda row: row[2])
    user, item, day = (np.array([row[side] for row in rows]) for side in range(3))
    ids = (
        np.array([f"u{n}" for n in range(user.max() + 1)]),
        np.array([f"i{n}" for n in range(items)]),
    )
    return Interactions(
        *ids,
        user.astype(np.int32),
        item.astype(np.int32),
        day * DAY,
        np.full(len(rows), 2.0, np.float32),
    )


SHOP = rows_of([(0, 0, 1), (0, 1, 1), (1, 0, 2), (1, 1, 2), (2, 0, 3), (2, 2, 9)], items=4)


def test_popularity_and_first_seen() -> None:
    assert popularity(SHOP).tolist() == [3, 2, 1, 0]
    np.testing.assert_array_equal(first_seen(SHOP), [DAY, DAY, 9 * DAY, np.nan])


@pytest.mark.parametrize("phase", [0, 7_200_000])
def test_the_resolution_of_daily_data_is_a_day_also_among_some_live_events(phase: int) -> None:
    days = [(user, item, user) for user in range(40) for item in range(4)]
    rows = rows_of(days, items=4)
    moved = replace(rows, time_ms=rows.time_ms + phase)
    assert time_resolution(moved) == (DAY, phase)
    live = moved.time_ms.copy()
    live[-10:] += np.arange(1, 11)
    assert time_resolution(replace(rows, time_ms=live)) == (DAY, phase)
    live[-30:] += np.arange(1, 31)
    assert time_resolution(replace(rows, time_ms=live)) == (1.0, 0.0)
    assert time_resolution(rows.where(np.zeros(len(rows), bool))) == (1.0, 0.0)


def test_decayed_popularity_halves_with_every_half_life() -> None:
    found = decayed_popularity(SHOP, now_ms=9 * DAY, half_life_ms=3 * DAY)
    assert found[2] == pytest.approx(2.0)
    assert found[1] == pytest.approx(2.0 * (2 ** (-8 / 3) + 2 ** (-7 / 3)))


def test_the_cosine_of_two_items_is_that_of_their_user_sets() -> None:
    items, scores = cosine_neighbours(
        SHOP, NeighbourConfig(count=3, shrink=0.0, half_life_days=None)
    )
    assert items[0].tolist() == [1, 2, -1]
    np.testing.assert_allclose(scores[0], [2 / np.sqrt(3 * 2), 1 / np.sqrt(3), 0.0], rtol=1e-6)
    assert items[3].tolist() == [-1, -1, -1]


def test_shrinkage_ranks_two_shared_users_above_one_of_a_rare_item() -> None:
    owners = {0: (0, 1, 2), 1: (0,), 2: (1, 2, 3, 4, 5, 6)}
    rows = rows_of([(user, item, 1) for item, users in owners.items() for user in users], items=3)
    plain, _ = cosine_neighbours(rows, NeighbourConfig(count=2, shrink=0.0, half_life_days=None))
    shrunk, _ = cosine_neighbours(rows, NeighbourConfig(count=2, shrink=5.0, half_life_days=None))
    assert (plain[0].tolist(), shrunk[0].tolist()) == ([1, 2], [2, 1])


def test_the_best_neighbours_are_the_first_of_all_of_them_also_where_scores_are_equal() -> None:
    rng = np.random.default_rng(3)
    pairs = {(int(user), int(item)) for user, item in rng.integers(0, (60, 40), (500, 2))}
    rows = rows_of([(user, item, 1) for user, item in sorted(pairs)], items=40)
    every, scores = same_day_neighbours(rows, NeighbourConfig(count=39))
    assert (every[:, 5] >= 0).all()
    assert (scores[:, 4] == scores[:, 5]).any(), "the cut is between equal scores"
    for count in (1, 5, 20):
        best = same_day_neighbours(rows, NeighbourConfig(count=count))
        np.testing.assert_array_equal(best[0], every[:, :count])
        np.testing.assert_array_equal(best[1], scores[:, :count])


def test_same_day_neighbours_need_the_same_day() -> None:
    items, _ = same_day_neighbours(SHOP, NeighbourConfig(count=2))
    assert items[0].tolist() == [1, -1]
    assert items[2].tolist() == [-1, -1]


def test_a_same_day_score_is_the_conditional_probability_of_the_pair() -> None:
    items, scores = same_day_neighbours(
        SHOP, NeighbourConfig(count=1, shrink=0.0, half_life_days=None)
    )
    assert (items[0, 0], items[1, 0]) == (1, 0)
    np.testing.assert_allclose(scores[:2, 0], [2 / 3, 1.0])


def test_an_old_pair_weighs_less_than_a_new_one() -> None:
    rows = rows_of([(0, 0, 1), (0, 1, 1), (1, 0, 201), (1, 2, 201)], items=3)
    config = NeighbourConfig(count=2, shrink=1.0, half_life_days=100.0)
    items, scores = cosine_neighbours(rows, config)
    assert items[0].tolist() == [2, 1]
    np.testing.assert_allclose(
        scores[0], [1 / np.sqrt(2.25 * 2), 0.25 / np.sqrt(2.25 * 1.25)], rtol=1e-6
    )


def test_a_second_step_reaches_items_without_a_shared_user() -> None:
    chain = np.array([[1, -1], [0, 2], [1, -1]], np.int32)
    even = (chain, np.where(chain >= 0, 0.5, 0.0).astype(np.float32))
    items, scores = random_walk(even, even, np.array([1.0, 1.0, 1.0]), NeighbourConfig(count=2))
    # from 0: one step to 1, two steps back to 0 or on to 2 in equal parts
    assert items.tolist() == [[1, 2], [0, 2], [1, 0]]
    np.testing.assert_allclose(scores[0], [0.5, 0.25], rtol=1e-6)


def test_a_walk_prefers_recently_popular_items() -> None:
    star = np.array([[1, 2], [0, -1], [0, -1]], np.int32)
    even = (star, np.where(star >= 0, 0.5, 0.0).astype(np.float32))
    items, scores = random_walk(even, even, np.array([1.0, 1.0, 32.0]), NeighbourConfig(count=2))
    assert items[0].tolist() == [2, 1]
    assert scores[0, 0] / scores[0, 1] == pytest.approx(32**0.7, rel=1e-4)


def test_an_item_without_neighbours_reaches_nothing() -> None:
    none = (np.full((3, 2), -1, np.int32), np.zeros((3, 2), np.float32))
    items, scores = random_walk(none, none, np.ones(3), NeighbourConfig(count=2))
    assert (items == -1).all()
    assert not scores.any()


def test_neighbours_agree_with_a_dense_computation() -> None:
    random = np.random.default_rng(5)
    pairs = {(int(random.integers(40)), int(random.integers(15))) for _ in range(200)}
    rows = rows_of([(user, item, 1) for user, item in pairs], items=15)
    matrix = np.zeros((40, 15))
    for user, item in pairs:
        matrix[user, item] = 1
    size = np.sqrt(matrix.sum(0) + 2.0)
    dense = (matrix.T @ matrix) / size[:, None] / size
    np.fill_diagonal(dense, 0.0)
    items, scores = cosine_neighbours(
        rows, NeighbourConfig(count=5, shrink=2.0, half_life_days=None)
    )
    for item in range(15):
        np.testing.assert_allclose(scores[item], np.sort(dense[item])[::-1][:5], atol=1e-6)
        known = items[item] >= 0
        np.testing.assert_allclose(dense[item, items[item][known]], scores[item][known], atol=1e-6)


def test_a_user_with_a_thousand_items_pairs_only_the_newest() -> None:
    rows = rows_of([(0, item, item + 1) for item in range(50)], items=50)
    items, _ = cosine_neighbours(rows, NeighbourConfig(count=50, max_group=10))
    paired = np.flatnonzero((items >= 0).any(axis=1))
    assert paired.tolist() == list(range(40, 50))


@pytest.mark.parametrize("apart", [0, 1])
def test_the_newest_of_equal_times_are_those_of_a_hash(apart: int) -> None:
    pairs = [(user, item, 1 + apart * item) for user in range(200) for item in range(20)]
    items, _ = cosine_neighbours(rows_of(pairs, items=20), NeighbourConfig(count=20, max_group=5))
    paired = np.flatnonzero((items >= 0).any(axis=1)).tolist()
    assert paired == (list(range(15, 20)) if apart else list(range(20)))


def test_no_rows_have_no_neighbours() -> None:
    empty = SHOP.where(np.zeros(len(SHOP), bool))
    items, scores = cosine_neighbours(empty, NeighbourConfig(count=2))
    assert (items == -1).all()
    assert not scores.any()
    assert (same_day_neighbours(empty, NeighbourConfig(count=2))[0] == -1).all()
