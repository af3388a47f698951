"""The one selection of the highest scores."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from afterclick.retrieval import top_k, top_k_rows

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
