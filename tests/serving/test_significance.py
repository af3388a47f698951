"""Statistics of experiments, compared with published values and their definitions."""

from __future__ import annotations

import math
from statistics import NormalDist

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.control.significance import (
    MIN_USERS,
    Sample,
    SequentialTest,
    boundary,
    holm,
    sample_ratio_p_value,
)


def test_a_sample_has_the_mean_and_the_unbiased_variance_of_its_values() -> None:
    values = [0, 1, 1, 4]
    found = Sample.of(len(values), sum(values), sum(v * v for v in values))
    assert found == Sample(4, 1.5, 3.0)
    assert Sample.of(1, 5, 25) == Sample(1, 5.0, 0.0)
    assert Sample.of(0, 0, 0) == Sample(0, 0.0, 0.0)


@given(
    st.integers(MIN_USERS, 10_000),
    st.integers(MIN_USERS, 10_000),
    st.floats(-1, 1),
    st.integers(1, 9),
    st.sampled_from([0.8, 0.95, 0.999]),
)
def test_the_p_value_is_below_alpha_exactly_where_the_interval_excludes_zero(
    one: int, other: int, effect: float, comparisons: int, level: float
) -> None:
    test = SequentialTest(1000, comparisons)
    control, arm = Sample(one, 1.0, 2.0), Sample(other, 1.0 + effect, 3.0)
    found = test.difference(control, arm, level)
    assert found is not None
    assert found.value == pytest.approx(effect)
    excluded = found.low > 1e-9 or found.high < -1e-9
    included = found.low < -1e-9 < 1e-9 < found.high
    p_value = test.p_value(control, arm) * comparisons
    assert not excluded or p_value <= 1 - level + 1e-9
    assert not included or p_value >= 1 - level - 1e-9


def test_the_boundary_is_that_of_the_published_confidence_sequence() -> None:
    """Waudby-Smith et al. (2024), theorem 2.2, for a variance of 1."""
    t, rho, alpha = 700, 0.13, 0.05
    v = t * rho**2
    published = math.sqrt(2 * (v + 1) / (t * v) * math.log(math.sqrt(v + 1) / alpha))
    assert boundary(t / 1000, alpha, 1000 * rho**2) / math.sqrt(t) == pytest.approx(published)


def test_the_boundary_is_narrowest_at_the_planned_size() -> None:
    planned = SequentialTest(1000)
    control, arm = Sample(1000, 0.0, 1.0), Sample(1000, 0.0, 1.0)
    widths = {}
    for size in (250, 500, 1000, 2000, 4000):
        found = SequentialTest(size).difference(control, arm, 0.95)
        assert found is not None
        widths[size] = found.high
    assert min(widths, key=widths.__getitem__) == planned.planned
    fixed = NormalDist().inv_cdf(0.975) * math.sqrt(2 / 1000)
    assert 1.4 < widths[1000] / fixed < 1.6, "the price of looking at any time"


def test_the_planned_size_has_the_planned_power() -> None:
    """At the planned size the boundary is exceeded by a normal estimate with probability 80 %."""
    variances, effect = 0.05 * 0.95 + 0.055 * 0.945, 0.005
    for comparisons in (1, 3):
        users = SequentialTest(1, comparisons).users_for(variances, effect)
        test, error = SequentialTest(users, comparisons), math.sqrt(variances / users)
        sample = Sample(users, 0.0, variances / 2)
        spread = test.difference(sample, sample, 0.95)
        assert spread is not None
        power = 1 - NormalDist(effect, error).cdf(spread.high)
        assert power == pytest.approx(0.8, abs=0.001)
    assert SequentialTest(1, 3).users_for(variances, effect) > SequentialTest(1).users_for(
        variances, effect
    )


def test_nothing_is_estimated_from_a_few_users_or_without_variance() -> None:
    test, many = SequentialTest(1000), Sample(MIN_USERS, 0.0, 1.0)
    for control, arm in (
        (Sample(MIN_USERS - 1, 0.0, 1.0), many),
        (many, Sample(0, 0.0, 0.0)),
        (Sample(900, 0.0, 0.0), Sample(900, 1.0, 0.0)),
    ):
        assert test.difference(control, arm, 0.95) is None
        assert test.p_value(control, arm) == 1.0
    assert test.difference(many, many, 0.95) is not None


def test_holm_adjusts_by_rank_and_stays_monotone() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.4, 0.9]) == pytest.approx([0.8, 0.9])
    assert holm([0.02]) == [0.02]


def test_the_sample_ratio_check_detects_a_broken_split() -> None:
    assert (
        sample_ratio_p_value([821_588, 815_482], [1, 1]) < 1e-5
    )  # Kohavi et al. (2020), chapter 21
    assert sample_ratio_p_value([5012, 4988], [1, 1]) > 0.5
    assert sample_ratio_p_value([900, 100], [9, 1]) == 1.0
    assert sample_ratio_p_value([0, 0], [1, 1]) == 1.0
    assert sample_ratio_p_value([100, 80, 140], [1, 1, 1]) == pytest.approx(math.exp(-17.5 / 2))
