"""The transition graph against a plain computation, and what sets of equal times mean to it."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest

from tests.training import shop
from training.config import TransitionConfig
from training.interactions import Interactions
from training.models.transition_graph import (
    TransitionModel,
    as_matrix,
    history_weights,
    transition_graph,
)

CONFIG = TransitionConfig(count=30, max_lag=4, recent=3)


def random_rows(users: int = 25, items: int = 12) -> Interactions:
    random = np.random.default_rng(1)
    rows = [
        (user, int(item))
        for user in range(users)
        for item in random.choice(items, random.integers(1, 9), replace=False)
    ]
    return shop.interactions(rows, users, items)


def plain_graph(rows: Interactions, config: TransitionConfig) -> np.ndarray:
    """S by the formula, for rows without equal times."""
    n_items = rows.shape[1]
    moves = np.zeros((n_items, n_items))
    histories: dict[int, list[int]] = defaultdict(list)
    for user, item in zip(rows.user.tolist(), rows.item.tolist(), strict=True):
        histories[user].append(item)
    for history in histories.values():
        for position, before in enumerate(history):
            for lag, after in enumerate(history[position + 1 : position + 1 + config.max_lag], 1):
                weight = lag**-config.lag_power * len(history) ** -config.user_power
                moves[before, after] += weight
    scale = np.maximum(rows.item_counts(), 1.0) ** -config.source_power
    return scale[:, None] * (moves + config.back * moves.T)


def test_the_graph_is_that_of_the_formula() -> None:
    rows = random_rows()
    found = as_matrix(transition_graph(rows, CONFIG)).toarray()
    np.testing.assert_allclose(found, plain_graph(rows, CONFIG), rtol=1e-5)


def test_only_the_best_targets_of_each_item_are_kept() -> None:
    rows = random_rows()
    whole = plain_graph(rows, CONFIG)
    items, scores = transition_graph(rows, replace(CONFIG, count=3))
    assert items.shape == (12, 3)
    assert items.dtype == np.int32
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, -np.sort(-whole, axis=1)[:, :3], rtol=1e-5)


def test_an_item_without_interactions_has_no_targets() -> None:
    items, scores = transition_graph(shop.interactions([(0, 0), (0, 1)], 1, 3), CONFIG)
    assert items[2].tolist() == [-1] * 30
    assert not scores[2].any()
    assert items[0, :2].tolist() == [1, -1]


def test_items_of_equal_times_weigh_what_they_do_on_average_over_their_orders() -> None:
    rows = shop.interactions([(0, item) for item in range(4)], 1, 4)
    expected = np.mean(
        [
            plain_graph(replace(rows, item=np.array(o, np.int32)), CONFIG)
            for o in permutations(range(4))
        ],
        axis=0,
    )
    together = replace(rows, time_ms=np.zeros_like(rows.time_ms))
    found = as_matrix(transition_graph(together, CONFIG)).toarray()
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_the_order_of_rows_with_equal_times_changes_nothing() -> None:
    rows = random_rows()
    rows = replace(rows, time_ms=rows.time_ms // (5 * shop.DAY_MS))
    shuffled = np.random.default_rng(2).permutation(len(rows))
    other = rows.where(np.ones(len(rows), bool))
    other = replace(
        other, user=rows.user[shuffled], item=rows.item[shuffled], time_ms=rows.time_ms[shuffled]
    )
    first, second = (as_matrix(transition_graph(each, CONFIG)).toarray() for each in (rows, other))
    np.testing.assert_allclose(first, second, rtol=1e-6)


def test_history_weights_decay_by_rank_and_are_shared_within_a_set() -> None:
    rows = shop.interactions([(0, 0), (0, 1), (0, 2), (0, 3), (1, 1)], 2, 4)
    ordered = history_weights(rows, CONFIG).toarray()
    np.testing.assert_allclose(ordered, [[0, 0.36, 0.6, 1.0], [0, 1.0, 0, 0]], rtol=1e-6)
    times = np.array([0, 1, 1, 2, 0], np.int64)
    tied = history_weights(replace(rows, time_ms=times), CONFIG).toarray()
    np.testing.assert_allclose(tied[0], [0, 0.48, 0.48, 1.0], rtol=1e-6)


def test_a_new_history_is_scored_without_another_fit() -> None:
    rows = random_rows()
    model = TransitionModel(max_lag=4)
    model.fit(rows, seed=1)
    before = model.scores(np.array([0]))
    model.observe(rows.where(rows.user != 0))
    assert not model.scores(np.array([0])).any()
    model.observe(rows)
    np.testing.assert_array_equal(model.scores(np.array([0])), before)


@pytest.mark.parametrize("large", [100])
def test_a_large_set_is_counted_over_its_window_only(large: int) -> None:
    rows = shop.interactions([(0, item) for item in range(large)], 1, large)
    together = replace(rows, time_ms=np.zeros_like(rows.time_ms))
    items, scores = transition_graph(together, CONFIG)
    assert (items >= 0).sum(axis=1).max() == 2 * CONFIG.max_lag
    assert np.isfinite(scores).all()
