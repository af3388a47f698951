"""The compiled kernels compute what a few lines of NumPy do."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from afterclick import kernels, ncf
from afterclick.arrays import IntArray
from afterclick.features import context_rows, features, warm_up
from afterclick.kernels import ALL_LEAVES, SOURCE_BITS, as_items
from afterclick.model import UNKNOWN_BIAS, Model, TowerArrays
from afterclick.ranking import CandidateGenerator
from afterclick.sequence_encoder import AGES_DAYS, encode
from afterclick.tree_ranker import RECEIPT, TreeRanker
from tests.scoring.examples import NOW_MS, a_model, a_state, a_view, some_ncf
from tests.scoring.test_sequence_encoder import an_encoder, some_towers

COMPILED: tuple[Any, ...] = (
    kernels.union,
    kernels.positions_of,
    kernels.similarities,
    kernels.pair_scores,
    kernels.products,
    kernels.unlisted,
    kernels.tree_leaves,
    kernels.leaf_sums,
    encode,
    kernels.tower_vector,
    kernels.woodbury,
    ncf.ncf_vector,
    ncf.neumf,
    context_rows,
)


def lists(rng: np.random.Generator, n: int, width: int) -> IntArray:
    """(n, width) neighbour lists of the items below 60, padded with -1."""
    items = rng.integers(0, 60, (n, width)).astype(np.int32)
    return np.where(rng.random((n, width)) < 0.2, np.int32(-1), items)


@pytest.mark.parametrize("seed", range(20))
def test_the_union_has_each_item_once_with_its_first_source(seed: int) -> None:
    rng = np.random.default_rng(seed)
    neighbours = (lists(rng, 50, 6), lists(rng, 50, 9), kernels.no_rows(50))
    recent = rng.integers(0, 50, seed % 4).astype(np.int32)
    others = tuple(lists(rng, 1, 8)[0] for _ in range(6))
    seen = rng.integers(0, 60, seed).astype(np.int32)
    keys = np.sort(kernels.union(neighbours, recent, 7, others, seen))

    groups = [neighbours[0][recent, :7].ravel(), neighbours[1][recent, :7].ravel(), *others]
    expected: dict[int, int] = {}
    for source, items in enumerate(groups):
        for item in items.tolist():
            if item >= 0 and item not in seen:
                expected.setdefault(item, source)
    found = dict(zip((keys >> SOURCE_BITS).tolist(), (keys & 7).tolist(), strict=True))
    assert found == expected
    assert len(found) == len(keys)


@pytest.mark.parametrize("seed", range(20))
def test_similarities_are_those_of_a_search_item_by_item(seed: int) -> None:
    rng = np.random.default_rng(seed)
    neighbours, scores = lists(rng, 50, 9), rng.random((50, 9)).astype(np.float32)
    recent = rng.integers(-1, 50, 5).astype(np.int32)
    items = rng.permutation(80)[:30].astype(np.int32)
    out = tuple(np.full(30, np.nan, np.float32) for _ in range(3))
    kernels.similarities(
        neighbours, scores, recent, (kernels.positions_of(items), items), (out[0], out[1], out[2])
    )
    for row, item in enumerate(items.tolist()):
        at: list[Any] = [
            np.flatnonzero(neighbours[i] == item) if i >= 0 else [] for i in recent.tolist()
        ]
        every = [
            [float(scores[i, c]) for c in columns] for i, columns in zip(recent, at, strict=True)
        ]
        assert out[0][row] == np.float32(every[0][-1] if every[0] else 0)
        assert out[1][row] == np.float32(max((max(found) for found in every if found), default=0))
        total = sum(sum(found) / (rank + 1) for rank, found in enumerate(every))
        assert out[2][row] == pytest.approx(total, rel=1e-6)


def test_products_are_nan_for_unknown_vectors() -> None:
    rng = np.random.default_rng(1)
    vectors = rng.normal(size=(40, 65)).astype(np.float32)
    queries = rng.normal(size=(3, 65)).astype(np.float32)
    rows = rng.integers(0, 40, 25).astype(np.int32)
    known = rng.random(40) < 0.7
    expected = (vectors[rows] @ queries.T).T
    expected[:, ~known[rows]] = np.nan
    found, places = np.zeros((4, 25), np.float32), np.array([3, 0, 1], np.int32)
    kernels.products((vectors[:30], vectors[30:]), known, rows, queries, (found, places))
    np.testing.assert_allclose(found[places], expected, rtol=1e-5, atol=1e-5)
    assert not found[2].any()
    kernels.products((vectors, vectors[:0]), known[:10], rows, queries, (found, places))
    assert np.isnan(found[:, rows >= 10][places]).all()


def test_pair_scores_are_zero_for_items_that_are_no_neighbours() -> None:
    neighbours = np.array([[1, 2, -1], [2, 2, 0]], np.int32)
    scores = np.array([[0.5, 0.4, 9.0], [0.2, 0.3, 0.1]], np.float32)
    found = kernels.pair_scores(neighbours, scores, as_items(np.array([0, 1])), neighbours[0, :2])
    np.testing.assert_allclose(found, [[0.5, 0.0], [0.4, 0.3]], rtol=1e-6)


def test_unlisted_items_are_those_of_no_exclusion() -> None:
    rng = np.random.default_rng(4)
    for count in (0, 1, 7, 300):
        items = rng.integers(-1, 400, 200).astype(np.int32)
        excluded = rng.integers(0, 400, count).astype(np.int32)
        expected = (items >= 0) & ~np.isin(items, excluded)
        np.testing.assert_array_equal(kernels.unlisted(items, excluded), expected)


@pytest.mark.parametrize("items", [1, 4, 16, 40])
def test_woodbury_solves_the_normal_equations(items: int) -> None:
    rng = np.random.default_rng(items)
    factors = rng.normal(size=(50, 12)).astype(np.float32)
    gram = factors.astype(np.float64).T @ factors.astype(np.float64)
    rows, extra = rng.permutation(50)[:items].astype(np.int32), rng.uniform(0.5, 40, items)
    values, vectors = np.linalg.eigh(gram)
    found = kernels.woodbury((values, np.ascontiguousarray(vectors)), factors, rows, extra, 0.3)
    mine = factors[rows].astype(np.float64)
    left = gram + (mine * extra[:, None]).T @ mine + 0.3 * np.eye(12)
    np.testing.assert_allclose(found, np.linalg.solve(left, mine.T @ (1 + extra)), rtol=1e-4)


def towers(n: int) -> TowerArrays:
    rng = np.random.default_rng(3)
    targets = rng.normal(size=(n, 5)).astype(np.float32)
    targets[2, -1] = UNKNOWN_BIAS
    history = rng.normal(size=(n, 4)).astype(np.float32)
    return TowerArrays(history, targets, np.linspace(1, 0.3, 7).astype(np.float32))


def test_the_user_tower_is_a_unit_vector_of_the_history_by_age() -> None:
    arrays, state = towers(9), a_state([3, 20, 5, 0], age_days=4.0)
    found = arrays.user(state.items, state.weights, state.times_ms, state.now_ms)
    known = state.items < 9
    days = (NOW_MS - state.times_ms[known]) / 86_400_000.0
    ages = arrays.ages[np.searchsorted(AGES_DAYS, days, side="right")]
    total = (state.weights[known] * ages) @ arrays.history[state.items[known]]
    assert found is not None
    np.testing.assert_allclose(found[:-1], total / np.linalg.norm(total), rtol=1e-5)
    assert found[-1] == 1.0
    nothing = a_state([20])
    assert arrays.user(nothing.items, nothing.weights, nothing.times_ms, NOW_MS) is None


def test_after_the_warm_up_a_list_compiles_nothing() -> None:
    warm_up()
    before = [len(kernel.signatures) for kernel in COMPILED]
    model: Model = replace(a_model(9), towers=some_towers(an_encoder()), ncf=some_ncf(9))
    generator = CandidateGenerator.exact(model)
    query = generator.query(a_state([3, 20, 5, 0]), a_view(21))
    candidates = generator.retrieve(query)
    assert len(candidates)
    rows = features(model, query.user, query.trends, candidates.items)
    names = np.array([["als", "popularity"]])
    trees = TreeRanker(
        names,
        np.zeros((1, 2), np.float32),
        np.full((1, 2), ALL_LEAVES, np.uint32),
        np.zeros((1, 2), np.bool_),
        np.ones((len(RECEIPT), 1, 3)),
    )
    assert trees.score(rows).tolist() == [len(RECEIPT)] * len(candidates)
    trees.contributions(rows[:1])
    trees.best(rows, 1)
    after = [len(kernel.signatures) for kernel in COMPILED]
    assert after == before
