"""Candidates come from every source, once each, and never what was seen."""

from __future__ import annotations

import numpy as np

from afterclick.retrieval import SOURCES, CandidateLimits, Searches, candidate_items, exact_search
from afterclick.user_vectors import UserVectors
from tests.scoring.examples import a_model, a_state, a_view, late


def found(model, state, view, searches=None, limits=None, exclude=()):
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


def test_what_a_walk_reaches_is_a_neighbour() -> None:
    reach = {
        "reach_items": np.full((10, 1), 5, np.int32),
        "reach_scores": np.ones((10, 1), np.float32),
    }
    names = found(a_model(10, **reach), a_state([2]), a_view(10, hot=7, top=1))
    assert names == {3: "neighbours", 5: "neighbours", 1: "same_day", 7: "trending"}


def test_seen_and_excluded_items_are_not() -> None:
    state = a_state([2], seen=[2, 3])
    names = found(a_model(10), state, a_view(10, hot=7, top=1), exclude=[7])
    assert names == {1: "same_day"}


def test_als_and_content_bring_what_their_search_finds() -> None:
    model, state = a_model(10, content=np.eye(10, dtype=np.float32)), a_state([2])
    searches = Searches(
        als=lambda query, count: np.array([8, -1], np.int32),
        content=lambda query, count: np.array([9], np.int32),
    )
    names = found(model, state, a_view(10, top=1), searches)
    assert names[8] == "als"
    assert names[9] == "content"


def test_a_user_without_history_gets_what_trends() -> None:
    names = found(
        a_model(10),
        a_state([]),
        a_view(10, hot=4, top=1),
        Searches(als=exact_search(a_model(10).factors)),
    )
    assert names == {4: "trending"}


def test_items_newer_than_the_model_may_trend() -> None:
    assert 11 in found(a_model(10), a_state([11, 2], seen=[2]), a_view(12, hot=11, top=1))


def test_what_the_newest_item_says_is_searched_for_although_it_came_after_the_model() -> None:
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


def test_limits_are_kept() -> None:
    none = CandidateLimits(recent=0, als=0, content=0, trending=2)
    assert len(found(a_model(10), a_state([2]), a_view(10, top=5), limits=none)) == 2


def test_exact_search_finds_the_nearest_of_those_allowed() -> None:
    vectors = np.random.default_rng(0).normal(size=(100, 5)).astype(np.float32)
    allowed = np.arange(100) % 2 == 0
    best = exact_search(vectors, allowed)(vectors[10], 5)
    order = np.argsort(-(vectors @ vectors[10]))
    assert best.tolist() == [i for i in order.tolist() if allowed[i]][:5]
