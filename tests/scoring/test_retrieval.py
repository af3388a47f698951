"""Candidates come from every source without repeats and seen items; and top-k."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from afterclick.features import TrendView
from afterclick.model import Model
from afterclick.retrieval import (
    SOURCES,
    CandidateLimits,
    Searches,
    candidate_items,
    exact_search,
    top_k,
    top_k_rows,
)
from afterclick.user_vectors import UserState, UserVectors
from tests.scoring.examples import a_model, a_state, a_view, late


def found(
    model: Model,
    state: UserState,
    view: TrendView,
    searches: Searches | None = None,
    limits: CandidateLimits | None = None,
    exclude: Sequence[int] = (),
) -> dict[int, str]:
    user = UserVectors.of(model, state)
    candidates = candidate_items(model, user, view.top, searches or Searches(), limits)
    candidates = candidates.without(np.array(exclude, np.int32))
    return {
        item: SOURCES[s]
        for item, s in zip(candidates.items.tolist(), candidates.sources.tolist(), strict=True)
    }


def test_neighbours_same_day_and_trending_items_are_candidates() -> None:
    names = found(a_model(10), a_state([2]), a_view(10, hot=7, top=1))
    assert names == {3: "neighbours", 1: "same_day", 7: "trending"}


def test_items_of_the_random_walk_are_neighbours() -> None:
    reach: dict[str, Any] = {
        "random_walk_items": np.full((10, 1), 5, np.int32),
        "random_walk_scores": np.ones((10, 1), np.float32),
    }
    names = found(a_model(10, **reach), a_state([2]), a_view(10, hot=7, top=1))
    assert names == {3: "neighbours", 5: "neighbours", 1: "same_day", 7: "trending"}


def test_seen_and_excluded_items_are_no_candidates() -> None:
    state = a_state([2], seen=[2, 3])
    names = found(a_model(10), state, a_view(10, hot=7, top=1), exclude=[7])
    assert names == {1: "same_day"}


def test_als_and_content_retrieve_the_results_of_their_searches() -> None:
    model, state = a_model(10, content=np.eye(10, dtype=np.float32)), a_state([2])
    searches = Searches(
        als=lambda query, count: np.array([8, -1], np.int32),
        content=lambda query, count: np.array([9], np.int32),
    )
    names = found(model, state, a_view(10, top=1), searches)
    assert names[8] == "als"
    assert names[9] == "content"


def test_a_user_without_history_gets_trending_items() -> None:
    names = found(
        a_model(10),
        a_state([]),
        a_view(10, hot=4, top=1),
        Searches.exact(a_model(10)),
    )
    assert names == {4: "trending"}


def test_new_items_can_be_trending() -> None:
    assert 11 in found(a_model(10), a_state([11, 2], seen=[2]), a_view(12, hot=11, top=1))


def test_the_content_of_a_new_item_is_searched_for() -> None:
    model, asked = a_model(10), []

    def search(query: np.ndarray, count: int) -> np.ndarray:
        asked.append(query.tolist())
        return np.empty(0, np.int32)

    for state in (
        a_state([11, 2]),
        a_state([10, 2]),
        a_state([2, 11]),
        a_state([12, 2]),
        a_state([10, 12]),
    ):
        content = late(model, None, 1)
        found(model, state, a_view(13, top=1), Searches(content=search, item_content=content))
    assert asked == [[0, 1, 0], [0, 0, 1], [0, 0, 1], [0, 0, 1]]


def test_limits_are_respected() -> None:
    none = CandidateLimits(recent=0, als=0, content=0, trending=2)
    assert len(found(a_model(10), a_state([2]), a_view(10, top=5), limits=none)) == 2


def test_exact_search_finds_the_nearest_allowed_items() -> None:
    vectors = np.random.default_rng(0).normal(size=(100, 5)).astype(np.float32)
    allowed = np.arange(100) % 2 == 0
    best = exact_search(vectors, allowed)(vectors[10], 5)
    order = np.argsort(-(vectors @ vectors[10]))
    assert best.tolist() == [i for i in order.tolist() if allowed[i]][:5]


SCORES = st.lists(st.integers(-5, 5), max_size=80)


@given(SCORES, st.integers(0, 90))
def test_the_highest_come_first_and_of_equal_ones_the_lower_index(
    scores: list[int], k: int
) -> None:
    expected = sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:k]
    assert top_k(np.array(scores, np.float64), k).tolist() == expected


@given(SCORES, st.integers(0, 90), st.integers(-5, 5))
def test_scores_at_or_below_the_bound_are_left_out(scores: list[int], k: int, above: int) -> None:
    expected = sorted(
        (i for i in range(len(scores)) if scores[i] > above), key=lambda i: (-scores[i], i)
    )[:k]
    assert top_k(np.array(scores, np.float64), k, above=above).tolist() == expected


@given(st.lists(st.permutations(range(12)), min_size=1, max_size=5), st.integers(0, 15))
def test_rows_are_selected_one_by_one(rows: list[list[int]], k: int) -> None:
    scores = np.array(rows, np.float32)
    assert top_k_rows(scores, k).tolist() == [top_k(row, k).tolist() for row in scores]
