"""Defence against push attacks (shilling): limits on the votes of new accounts.

Established users cast about the same share of the votes of every popular item. Where new accounts
cast many more than that on one item, it is quarantined: meanwhile only the votes of established
users count, scaled by what new accounts add to an ordinary item. An item that is quarantined by
mistake keeps about the trend it has earned. Skips of new accounts do not lower trends at all: the
stream counts a negative vote once its user is established (`state.counted_weight`).

Attackers also vote for other items, to look like ordinary users. That shows in no single item, only
in the total: where new accounts cast more votes of a half-life than usual, their votes are scaled
down to the usual total, and that half-life weighs less in trend scores than longer ones, which
still remember the time before.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from afterclick.arrays import BoolArray, Float64Array, IndexArray
from afterclick.trends import TREND_MIX

ESTABLISHED_DAYS = 7.0
_ACTIVE = 20.0
"""Decayed weight in the longest half-life from which an item counts as active."""
_MIN_ACTIVE = 20
"""Active items needed to know the usual share."""
_MIX_POWER = 2
"""Power of `new_account_weight` in the weight of a half-life in trend scores."""


@dataclass(frozen=True)
class QuarantineLimits:
    """Limits on the votes of new accounts."""

    max_ratio: float = 4.0
    """Votes of an item, relative to those its established users stand for; 0: no limits."""
    allowance: float = 20.0
    """Weight of votes allowed on top, for items without established users."""


@dataclass(frozen=True)
class LimitedTrends:
    """The trends of the catalogue within the limits."""

    values: Float64Array
    """(m, H) decayed sums after limits"""
    quarantined: BoolArray
    """(m,) items in quarantine"""
    retained_share: Float64Array
    """(m,) share of the votes in the longest half-life that remains"""
    established_share: float
    """Usual share of established users in the votes on an item; 0 while unknown."""
    new_account_weight: Float64Array
    """(H,) weight of a new account's vote: 1 unless they exceed their usual total"""

    @property
    def weights(self) -> Float64Array:
        """(H,) weights of the half-lives in trend scores."""
        return TREND_MIX * self.new_account_weight**_MIX_POWER


def apply_limits(
    votes: Float64Array,
    established: Float64Array,
    limits: QuarantineLimits,
    approved: IndexArray | None = None,
) -> LimitedTrends:
    """Limit items whose votes, in any half-life, exceed what their established users support.

    `votes` and `established` (m, H): decayed sums of all votes, and of those by established users.
    `approved`: rows without limits.
    """
    m, half_lives = votes.shape
    share = usual_share(votes, established)
    if share == 0.0 or limits.max_ratio == 0.0:
        return LimitedTrends(votes, np.zeros(m, bool), np.ones(m), share, np.ones(half_lives))
    support = np.maximum(established, 0.0)  # skips are negative votes
    supported = support / share
    over = votes > limits.max_ratio * supported + limits.allowance
    if approved is not None:
        over[approved] = False
    values = np.where(over, supported, votes)
    retained = np.divide(values[:, -1], votes[:, -1], out=np.ones(m), where=over[:, -1])
    new = np.maximum(values - support, 0.0)
    if approved is not None:
        new[approved] = 0.0
    weight = _new_account_weight(new.sum(axis=0), support.sum(axis=0), share, limits)
    if (weight < 1.0).any():
        values = values - new * (1.0 - weight)
    return LimitedTrends(values, np.asarray(over.any(axis=1)), retained, share, weight)


def _new_account_weight(
    new: Float64Array, established: Float64Array, share: float, limits: QuarantineLimits
) -> Float64Array:
    """(H,) from the total votes (H,) of new accounts and of established users."""
    usual = established * (1.0 - share) / share + limits.allowance
    return np.divide(usual, new, out=np.ones_like(new), where=new > usual)


def usual_share(votes: Float64Array, established: Float64Array) -> float:
    """Median share of established users in the votes of active items, in the longest half-life.

    To move this median, an attacker has to vote on half of the catalogue for weeks.
    """
    active = votes[:, -1] >= _ACTIVE
    if active.sum() < _MIN_ACTIVE:
        return 0.0
    return float(np.clip(np.median(established[active, -1] / votes[active, -1]), 0.0, 1.0))
