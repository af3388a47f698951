"""What an experiment says, with how much certainty.

Users are assigned to arms, so users are what is independent, not their lists:

- CTR, the share of lists that were clicked, is a ratio of sums over users. Its variance comes by the delta
  method (Deng, Knoblich and Lu, KDD 2018); the interval is normal.
- Conversion, the share of users who bought, has Wilson's interval (1927); the difference of two has
  Newcombe's hybrid score interval (1998, method 10).
- The sample ratio check is Pearson's chi-square of users per arm against the planned shares. Below
  `SRM_LIMIT` the split itself is broken, and nothing else may be read (Fabijan et al., KDD 2019).
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
    """Of one arm, over its users: x are a user's lists, y those of them that were clicked."""

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
class Estimate:
    """A figure and its interval."""

    value: float
    low: float
    high: float


def ctr(sums: Sums, level: float) -> Estimate:
    """The share of lists that were clicked."""
    value, spread = _ratio(sums), _z(level) * math.sqrt(_variance(sums))
    return Estimate(value, max(value - spread, 0.0), min(value + spread, 1.0))


def ctr_difference(control: Sums, arm: Sums, level: float) -> Estimate:
    """The arm's CTR less the control's."""
    value = _ratio(arm) - _ratio(control)
    spread = _z(level) * math.sqrt(_variance(arm) + _variance(control))
    return Estimate(value, max(value - spread, -1.0), min(value + spread, 1.0))


def ctr_p_value(control: Sums, arm: Sums) -> float:
    """P(a difference at least as great | both arms alike), two-sided."""
    deviation = math.sqrt(_variance(arm) + _variance(control))
    if not deviation:
        return 1.0
    return 2.0 * NormalDist().cdf(-abs(_ratio(arm) - _ratio(control)) / deviation)


def conversion(sums: Sums, level: float) -> Estimate:
    """The share of users who bought."""
    return wilson(sums.buyers, sums.users, level)


def conversion_difference(control: Sums, arm: Sums, level: float) -> Estimate:
    """The arm's conversion less the control's."""
    old, new = conversion(control, level), conversion(arm, level)
    value = new.value - old.value
    return Estimate(
        value,
        value - math.hypot(new.value - new.low, old.high - old.value),
        value + math.hypot(new.high - new.value, old.value - old.low),
    )


def wilson(successes: int, trials: int, level: float) -> Estimate:
    """Wilson's score interval of a share; 0 to 1 before the first trial."""
    if not trials:
        return Estimate(0.0, 0.0, 1.0)
    z, share = _z(level), successes / trials
    middle = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    half = (
        z / (1 + z * z / trials) * math.sqrt(share * (1 - share) / trials + (z / (2 * trials)) ** 2)
    )
    return Estimate(share, max(0.0, middle - half), min(1.0, middle + half))


def sample_ratio_p_value(users: Sequence[int], shares: Sequence[float]) -> float:
    """P(a split at least as uneven | users were assigned by the shares)."""
    total, whole = sum(users), sum(shares)
    if not total:
        return 1.0
    expected = [total * share / whole for share in shares]
    chi_square = sum((n - e) ** 2 / e for n, e in zip(users, expected, strict=True))
    return float(chdtrc(len(users) - 1, chi_square))


def _ratio(sums: Sums) -> float:
    return sums.clicked / sums.lists if sums.lists else 0.0


def _variance(sums: Sums) -> float:
    """Of the ratio Σy / Σx: the variance of y − R·x over users, by n · mean(x)²."""
    n = sums.users
    if n < 2 or not sums.lists:
        return 1.0  # nothing is known yet
    ratio = _ratio(sums)
    # the mean of y − R·x is 0 by the choice of R
    squares = (
        sums.clicked_squared - 2 * ratio * sums.lists_clicked + ratio * ratio * sums.lists_squared
    )
    return max(squares, 0.0) / (n - 1) / n / (sums.lists / n) ** 2


def _z(level: float) -> float:
    return NormalDist().inv_cdf((1 + level) / 2)
