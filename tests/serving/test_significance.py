"""Statistics of experiments, compared with published values and simulations."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from serving.control.significance import (
    Sums,
    conversion_difference,
    ctr,
    ctr_difference,
    ctr_p_value,
    sample_ratio_p_value,
    wilson,
)


def sums_of(lists: NDArray[np.int64], clicked: NDArray[np.int64]) -> Sums:
    """The sums over users with these lists and clicked lists."""
    return Sums(
        users=len(lists),
        lists=int(lists.sum()),
        clicked=int(clicked.sum()),
        lists_squared=int((lists**2).sum()),
        clicked_squared=int((clicked**2).sum()),
        lists_clicked=int((lists * clicked).sum()),
    )


def random_users(rng: np.random.Generator, users: int, ctr_of_all: float = 0.2) -> Sums:
    """Users with different numbers of lists and click rates: lists are not independent."""
    lists = rng.geometric(0.05, users)
    taste = rng.beta(ctr_of_all * 2, (1 - ctr_of_all) * 2, users)
    return sums_of(lists, rng.binomial(lists, taste))


def test_the_wilson_interval_has_the_published_values() -> None:
    """Newcombe (1998), table I, method 3: 81 of 263, 15 of 148, 0 of 20."""
    for successes, trials, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0, 0.1611),
    ):
        found = wilson(successes, trials, 0.95)
        assert (round(found.low, 4), round(found.high, 4)) == (low, high)


def test_the_difference_of_conversions_has_the_published_values() -> None:
    """Newcombe (1998), part two, table II, method 10: 56 of 70 less 48 of 80."""
    found = conversion_difference(Sums(users=80, buyers=48), Sums(users=70, buyers=56), 0.95)
    assert (round(found.low, 4), round(found.high, 4)) == (0.0524, 0.3339)


def test_an_a_a_experiment_is_significant_at_the_stated_rate() -> None:
    rng, runs = np.random.default_rng(1), 2000
    false = sum(
        ctr_p_value(random_users(rng, 200), random_users(rng, 200)) < 0.05 for _ in range(runs)
    )
    assert 0.035 < false / runs < 0.07, false / runs


def test_assuming_independent_lists_is_significant_far_too_often() -> None:
    """The control of the test above: the same users, with an interval that ignores users."""

    def naive(one: Sums, other: Sums) -> float:
        rate = (one.clicked + other.clicked) / (one.lists + other.lists)
        deviation = math.sqrt(rate * (1 - rate) * (1 / one.lists + 1 / other.lists))
        return math.erfc(
            abs(one.clicked / one.lists - other.clicked / other.lists) / deviation / math.sqrt(2)
        )

    rng, runs = np.random.default_rng(1), 500
    false = sum(naive(random_users(rng, 200), random_users(rng, 200)) < 0.05 for _ in range(runs))
    assert false / runs > 0.3, false / runs


def test_the_interval_of_ctr_covers_the_true_value_at_the_stated_rate() -> None:
    rng, runs = np.random.default_rng(2), 1000
    covered = 0
    for _ in range(runs):
        found = ctr(random_users(rng, 300, 0.3), 0.9)
        covered += found.low <= 0.3 <= found.high
    assert 0.86 < covered / runs < 0.94, covered / runs


def test_a_better_arm_is_detected() -> None:
    rng = np.random.default_rng(3)
    old, new = random_users(rng, 1500, 0.2), random_users(rng, 1500, 0.3)
    found = ctr_difference(old, new, 0.95)
    assert 0 < found.low < 0.1 < found.high
    assert ctr_p_value(old, new) < 0.001


def test_the_sample_ratio_check_detects_a_broken_split() -> None:
    assert (
        sample_ratio_p_value([821_588, 815_482], [1, 1]) < 1e-5
    )  # Kohavi et al. (2020), chapter 21
    assert sample_ratio_p_value([5012, 4988], [1, 1]) > 0.5
    assert sample_ratio_p_value([900, 100], [9, 1]) == 1.0
    assert sample_ratio_p_value([0, 0], [1, 1]) == 1.0
    assert sample_ratio_p_value([100, 80, 140], [1, 1, 1]) == pytest.approx(math.exp(-17.5 / 2))


@given(
    st.integers(0, 50).flatmap(
        lambda users: st.lists(
            st.tuples(st.integers(1, 30), st.floats(0, 1)), min_size=users, max_size=users
        )
    )
)
def test_any_number_of_users_gives_valid_figures(users: list[tuple[int, float]]) -> None:
    lists = np.array([n for n, _ in users], np.int64)
    clicked = np.array([round(n * share) for n, share in users], np.int64)
    found = ctr(sums_of(lists, clicked), 0.95)
    assert 0 <= found.low <= found.value <= found.high <= 1
    assert 0 <= ctr_p_value(sums_of(lists, clicked), Sums()) <= 1
