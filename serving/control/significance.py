"""Confidence intervals and tests for experiments.

Users are assigned to arms, so users are the independent unit, not their lists:

- CTR, clicked lists / lists, is a ratio of sums over users: variance by the delta method (Deng,
  Knoblich and Lu, KDD 2018), normal interval.
- Conversion, buyers / users: Wilson's interval (1927); for the difference of two Newcombe's hybrid
  score interval (1998, method 10).
- Sample ratio mismatch: Pearson's chi-square of users per arm against the planned shares. Below
  `SRM_LIMIT` the split is broken and the results are invalid (Fabijan et al., KDD 2019).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

from scipy.special import chdtrc

SRM_LIMIT = 0.001


@dataclass(frozen=True)
class Sums:
    """Sums over the users of one arm; x is a user's lists, y the clicked ones."""

    users: int = 0
    buyers: int = 0
    lists: int = 0
    clicked: int = 0
    clicks: int = 0
    purchased: int = 0
    lists_squared: int = 0
    """Σ x²"""
    clicked_squared: int = 0
    """Σ y²"""
    lists_clicked: int = 0
    """Σ x·y"""


@dataclass(frozen=True)
class Interval:
    """A value and its confidence interval."""

    value: float
    low: float
    high: float


def ctr(sums: Sums, level: float) -> Interval:
    """Clicked lists / lists."""
    value, spread = _ratio(sums), _z(level) * math.sqrt(_variance(sums))
    return Interval(value, max(value - spread, 0.0), min(value + spread, 1.0))


def ctr_difference(control: Sums, arm: Sums, level: float) -> Interval:
    """CTR of the arm minus CTR of the control."""
    value = _ratio(arm) - _ratio(control)
    spread = _z(level) * math.sqrt(_variance(arm) + _variance(control))
    return Interval(value, max(value - spread, -1.0), min(value + spread, 1.0))


def ctr_p_value(control: Sums, arm: Sums) -> float:
    """P(|difference| at least as large | equal CTR), two-sided."""
    deviation = math.sqrt(_variance(arm) + _variance(control))
    if not deviation:
        return 1.0
    return 2.0 * NormalDist().cdf(-abs(_ratio(arm) - _ratio(control)) / deviation)


def conversion(sums: Sums, level: float) -> Interval:
    """Buyers / users."""
    return wilson(sums.buyers, sums.users, level)


def conversion_difference(control: Sums, arm: Sums, level: float) -> Interval:
    """Conversion of the arm minus conversion of the control."""
    old, new = conversion(control, level), conversion(arm, level)
    value = new.value - old.value
    return Interval(
        value,
        value - math.hypot(new.value - new.low, old.high - old.value),
        value + math.hypot(new.high - new.value, old.value - old.low),
    )


def wilson(successes: int, trials: int, level: float) -> Interval:
    """Wilson's score interval of a proportion; 0 to 1 without trials.

    Written out: `scipy.stats` takes a second to import, and every API process would pay for it.
    """
    if not trials:
        return Interval(0.0, 0.0, 1.0)
    z, share = _z(level), successes / trials
    shrink = 1 + z * z / trials
    middle = (share + z * z / (2 * trials)) / shrink
    half = z / shrink * math.sqrt(share * (1 - share) / trials + (z / (2 * trials)) ** 2)
    return Interval(share, max(0.0, middle - half), min(1.0, middle + half))


def sample_ratio_p_value(users: Sequence[int], shares: Sequence[float]) -> float:
    """P(a split at least as uneven | assignment by the shares)."""
    total, all_shares = sum(users), sum(shares)
    if not total:
        return 1.0
    expected = [total * share / all_shares for share in shares]
    chi_square = sum((n - e) ** 2 / e for n, e in zip(users, expected, strict=True))
    return float(chdtrc(len(users) - 1, chi_square))


def _ratio(sums: Sums) -> float:
    return sums.clicked / sums.lists if sums.lists else 0.0


def _variance(sums: Sums) -> float:
    """Of the ratio Σy / Σx: the variance of y − R·x over users, divided by n · mean(x)²."""
    n = sums.users
    if n < 2 or not sums.lists:
        return 1.0  # unknown
    ratio = _ratio(sums)
    # the mean of y − R·x is 0 by the choice of R
    squares = (
        sums.clicked_squared - 2 * ratio * sums.lists_clicked + ratio * ratio * sums.lists_squared
    )
    return max(squares, 0.0) / (n - 1) / n / (sums.lists / n) ** 2


def _z(level: float) -> float:
    return NormalDist().inv_cdf((1 + level) / 2)
