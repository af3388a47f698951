"""Confidence sequences, tests and sample sizes for experiments.

Users are assigned to arms, so users are the independent unit: a metric has one value per user, and
its variance is taken over users, never over lists.

- Difference of means: an asymptotic confidence sequence with Robbins' normal mixture boundary
  (Waudby-Smith et al., Annals of Statistics 52(6), 2024; Howard et al., Annals of Statistics 49(2),
  2021). It covers the true difference at all looks together, so looking daily and stopping early do
  not raise the error rate.
- Always-valid p-value: the inverse of the mixture likelihood ratio (mSPRT; Johari et al.,
  Operations Research 70(3), 2022). It is at most α exactly where the interval of level 1 − α
  excludes 0.
- Several arms: p-values by Holm (1979), intervals by Bonferroni.
- Sample ratio mismatch: Pearson's chi-square of users per arm against the planned shares. Below
  `SRM_LIMIT` the split is broken and the results are invalid (Fabijan et al., KDD 2019).

Written out: `scipy.stats` takes a second to import, and every API process would pay for it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Final

from scipy.special import chdtrc

SRM_LIMIT: Final = 0.001
LEVEL: Final = 0.95
"""Confidence level that plans are made for, and the default of results."""
POWER: Final = 0.8
MIN_USERS: Final = 30
"""Users in each arm below which a difference is not computed: the limits are asymptotic."""


@dataclass(frozen=True)
class Sample:
    """One metric over the users of one arm."""

    users: int
    mean: float
    variance: float
    """Over users, unbiased; 0 for fewer than two users."""

    @classmethod
    def of(cls, users: int, total: float, squares: float) -> Sample:
        """From the sum and the sum of squares of the users' values."""
        if not users:
            return cls(0, 0.0, 0.0)
        mean = total / users
        deviations = max(squares - users * mean * mean, 0.0)
        return cls(users, mean, deviations / (users - 1) if users > 1 else 0.0)


@dataclass(frozen=True)
class Interval:
    """A value and its confidence interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class SequentialTest:
    """Compares arms with the control at any number of looks.

    The boundary is narrowest, in standard errors, when each arm has `planned` users; it is fixed
    at creation, as the theory requires. `comparisons`: arms other than the control.
    """

    planned: int
    comparisons: int = 1

    def difference(self, control: Sample, arm: Sample, level: float) -> Interval | None:
        """Mean of the arm minus mean of the control; None while it cannot be estimated.

        The intervals of all arms cover together with probability `level`, at all looks.
        """
        error = _standard_error(control, arm)
        if error is None:
            return None
        value = arm.mean - control.mean
        alpha = (1 - level) / self.comparisons
        spread = error * boundary(self._information(control, arm), alpha, self._tuning)
        return Interval(value, value - spread, value + spread)

    def p_value(self, control: Sample, arm: Sample) -> float:
        """Always-valid: P(it is ever at most α | equal means) ≤ α. 1 while it is unknown."""
        error = _standard_error(control, arm)
        if error is None:
            return 1.0
        z, v = (arm.mean - control.mean) / error, self._tuning * self._information(control, arm)
        return min(1.0, math.exp((math.log1p(v) - z * z * v / (1 + v)) / 2))

    def users_for(self, variances: float, effect: float) -> int:
        """Users per arm that detect a difference of `effect` with probability `POWER`.

        `variances`: the sum of both arms' variances. Normal approximation at the planned size;
        looks before it only add power.
        """
        alpha = (1 - LEVEL) / self.comparisons
        standard_errors = boundary(1.0, alpha, self._tuning) + NormalDist().inv_cdf(POWER)
        return math.ceil(standard_errors**2 * variances / effect**2)

    @property
    def _tuning(self) -> float:
        """ρ² t* of the mixture: minimises the boundary at the planned size for `LEVEL`
        (Waudby-Smith et al., appendix B.2)."""
        log = -2 * math.log((1 - LEVEL) / self.comparisons)
        return log + math.log1p(log)

    def _information(self, control: Sample, arm: Sample) -> float:
        """Share of the planned users: harmonic mean of both arms, by the plan."""
        return 2 / (1 / control.users + 1 / arm.users) / self.planned


def boundary(information: float, alpha: float, tuning: float) -> float:
    """Standard errors that a mean stays within at all looks, with probability 1 − `alpha`.

    `information`: users so far, by the planned users; `tuning`: ρ² t* of the mixture.
    """
    v = tuning * information
    return math.sqrt((1 + 1 / v) * (math.log1p(v) - 2 * math.log(alpha)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values: rejecting those at most α errs for any of them with probability α."""
    adjusted, largest = [1.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def sample_ratio_p_value(users: Sequence[int], shares: Sequence[float]) -> float:
    """P(a split at least as uneven | assignment by the shares)."""
    total, all_shares = sum(users), sum(shares)
    if not total:
        return 1.0
    expected = [total * share / all_shares for share in shares]
    chi_square = sum((n - e) ** 2 / e for n, e in zip(users, expected, strict=True))
    return float(chdtrc(len(users) - 1, chi_square))


def _standard_error(control: Sample, arm: Sample) -> float | None:
    """Of the difference of means; None with too few users or before any two differ."""
    if min(control.users, arm.users) < MIN_USERS:
        return None
    variance = control.variance / control.users + arm.variance / arm.users
    return math.sqrt(variance) if variance > 0 else None
