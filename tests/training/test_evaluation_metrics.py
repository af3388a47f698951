"""Metrics agree with an independent library, and with what can be worked out by hand."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numba
import numpy as np
import pytest

from training.evaluation import list_metrics

OURS_THEIRS = {
    "hr@10": "hit_rate@10",
    "precision@10": "precision@10",
    "recall@10": "recall@10",
    "recall@20": "recall@20",
    "f1@20": "f1@20",
    "ndcg@10": "ndcg@10",
    "ndcg@20": "ndcg@20",
    "mrr": "mrr@100",
}


def random_lists(
    users: int = 60, items: int = 150, seed: int = 0
) -> tuple[np.ndarray, list[set[int]]]:
    random = np.random.default_rng(seed)
    lists = np.stack([random.permutation(items)[:100] for _ in range(users)]).astype(np.int32)
    return lists, [
        set(random.choice(items, random.integers(1, 30), replace=False).tolist())
        for _ in range(users)
    ]


@pytest.fixture
def without_jit() -> Iterator[None]:
    """numba interprets: with its compiler, ranx compiles for minutes."""
    config: Any = numba.config
    before, config.DISABLE_JIT = config.DISABLE_JIT, True
    yield
    config.DISABLE_JIT = before


@pytest.mark.usefixtures("without_jit")
def test_ranx_agrees_on_every_user() -> None:
    from ranx import Qrels, Run, evaluate

    lists, relevant = random_lists()
    hits = np.array(
        [
            [item in wanted for item in row]
            for row, wanted in zip(lists.tolist(), relevant, strict=True)
        ]
    )
    ours = list_metrics.accuracy(hits, np.array([len(wanted) for wanted in relevant], np.int32))
    qrels = Qrels({f"u{u:03}": {str(i): 1 for i in wanted} for u, wanted in enumerate(relevant)})
    run = Run(
        {
            f"u{u:03}": {str(i): 100.0 - p for p, i in enumerate(row)}
            for u, row in enumerate(lists.tolist())
        }
    )
    theirs = evaluate(qrels, run, list(OURS_THEIRS.values()), return_mean=False)
    for our_name, their_name in OURS_THEIRS.items():
        np.testing.assert_allclose(ours[our_name], theirs[their_name], atol=1e-9, err_msg=our_name)


def test_a_single_target_in_third_place() -> None:
    lists = np.array([[7, 8, 9, 10]], np.int32)
    found = list_metrics.accuracy(
        list_metrics.hits_of(lists, np.array([[9]], np.int32)), np.ones(1, np.int32)
    )
    assert found["hr@10"][0] == 1.0
    assert found["ndcg@10"][0] == pytest.approx(0.5)
    assert found["mrr"][0] == pytest.approx(1 / 3)
    assert found["map@10"][0] == pytest.approx(1 / 3)
    assert found["precision@10"][0] == pytest.approx(0.1)


def test_each_target_of_a_query_is_a_hit() -> None:
    lists = np.array([[7, 8, 9, 10], [7, 8, 9, 10]], np.int32)
    hits = list_metrics.hits_of(lists, np.array([[10, 8], [3, -1]], np.int32))
    assert hits.tolist() == [[False, True, False, True], [False] * 4]


def test_an_empty_place_is_never_a_hit() -> None:
    lists = np.full((1, 10), -1, np.int32)
    assert not list_metrics.hits_of(lists, np.array([[0, -1]], np.int32)).any()


def test_coverage_counts_different_items() -> None:
    assert list_metrics.coverage(np.array([[0, 1], [1, -1]], np.int32), 4) == 0.5


def test_gini_is_zero_when_all_are_shown_alike_and_near_one_when_one_is() -> None:
    assert list_metrics.gini(np.arange(100, dtype=np.int32)[:, None], 100) == pytest.approx(0.0)
    assert list_metrics.gini(np.zeros((50, 1), np.int32), 100) == pytest.approx(0.99)


def test_diversity_is_zero_for_equal_and_one_for_orthogonal_items() -> None:
    vectors = np.array([[1, 0], [1, 0], [0, 1], [0, 0]], np.float32)
    lists = np.array([[0, 1], [0, 2], [0, 3]], np.int32)
    np.testing.assert_allclose(list_metrics.diversity(lists, vectors), [0.0, 1.0, 1.0], atol=1e-6)


def test_novelty_is_the_surprise_of_what_is_shown() -> None:
    lists = np.array([[0, 1], [1, -1]], np.int32)
    found = list_metrics.novelty(lists, np.array([8, 2]), users=16)
    np.testing.assert_allclose(found, [2.0, 3.0])


def test_popularity_lift_is_how_much_more_popular_lists_are_than_what_users_chose() -> None:
    user, item = np.array([[0, 0, 1, 2, 3], [0, 1, 1, 1, 1]], np.int32)  # popularity 1 and 4
    profiles = list_metrics.profile_popularity(user, item, users=5)
    np.testing.assert_allclose(profiles, [2.5, 4.0, 4.0, 4.0, np.nan])
    counts = np.array([1, 4, 8])
    lists = np.array([[0, 1], [2, 2], [1, -1]], np.int32)
    # lists (2.5 + 8 + 4) / 3, profiles (2.5 + 4 + 4) / 3
    assert list_metrics.popularity_lift(lists, counts, profiles[:3]) == pytest.approx(
        14.5 / 10.5 - 1
    )
    assert (
        list_metrics.popularity_lift(lists[:2], counts, profiles[[0, 4]]) == 0.0
    )  # without a past: not counted
    assert list_metrics.popularity_lift(lists[:1], counts, profiles[4:]) is None


def test_the_interval_of_a_mean_covers_it_and_narrows_with_users() -> None:
    random = np.random.default_rng(1)
    few, many = (random.random(n) < 0.3 for n in (100, 10_000))
    spans = []
    for values in (few.astype(float), many.astype(float)):
        low, high = list_metrics.interval(values, seed=2)
        assert low < values.mean() < high
        spans.append(high - low)
    assert spans[1] < spans[0] / 5
    # the normal approximation
    assert spans[1] == pytest.approx(2 * 1.96 * many.std() / 100, rel=0.15)


def test_the_interval_of_users_with_several_values_counts_users() -> None:
    random = np.random.default_rng(5)
    values = (random.random(400) < 0.3).astype(float)
    user = np.arange(400, dtype=np.int32)
    one_each = list_metrics.interval(values, 1)
    assert list_metrics.interval_by_user(values, user, 1) == pytest.approx(one_each, abs=0.01)
    # ten copies of each user say no more than one
    copies = list_metrics.interval_by_user(np.repeat(values, 10), np.repeat(user, 10), 1)
    assert copies == pytest.approx(one_each, abs=0.01)
    low, high = list_metrics.interval(np.repeat(values, 10), 1)
    assert high - low < 0.5 * (one_each[1] - one_each[0])
    assert np.isnan(list_metrics.interval_by_user(values[:0], user[:0], 1)).all()
