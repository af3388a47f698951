"""Off-policy estimators: what a target policy would have earned on logged lists. Pure functions.

The log has lists of shown items, each with the probability (propensity) that exactly this item came
to its rank, and a reward in 0 to 1. The target has a list for each logged moment. The value of a
list is the sum of the expected rewards of its items; estimated is the mean value per list.

What is assumed:

- The reward of an item depends on the moment, the item and its rank, not on the other items of the
  list: the item-position model (Li et al., KDD 2018).
- Ranks explored independently, and an item could come up at one rank of the list only, as in
  serving (`serving.rerank`). So its propensity there is its propensity in the list.
- `decay` None: nothing about ranks. An item tells something about a target only if the target shows
  it at the same rank.
- `decay` η: the position-based model. An item at rank k = 1, 2, … earns k^-η times what it would
  earn at the first rank, so an item that the target shows at another rank counts too. With a wrong
  η the estimates are biased.

A shown item at rank k with propensity p that the target shows at rank j has the weight
w = (e_j / e_k) / p with e_k = k^-η (without `decay`: 1 / p if j = k), any other item 0. The mass of
a weight is w · e_k (without `decay`: w); its expected sum in a list is Σ e_j (the length of the
list) if every item of the target could have come up. So the share of that which the log has is an
unbiased estimate of the support. Estimators, with r the rewards:

`ips`            mean per list of Σ w r. Horvitz and Thompson, JASA 1952
`snips`          Σ w r / Σ mass · (mean per list of Σ e_j). Swaminathan and Joachims, NeurIPS 2015
`doubly_robust`  mean per list of Σ q(target) + Σ w (r − q(shown)), with a reward model q. Dudík,
                 Langford and Li, ICML 2011

Without full support `ips` takes the rewards of the rest for 0, `snips` for those of the supported
part, and `doubly_robust` for what q says.

Intervals are those of a ratio of means with users as the sampling units: linearised, with Student's
t. The effective sample size is (Σ mass)² / Σ mass² (Kish).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t

from afterclick.arrays import Float64Array, IntArray

CONFIDENCE = 0.95
FOLDS = 5
"""Parts of the users; the reward model for one is fitted on the others."""
ITEM_PRIOR = 10.0
"""Expected rewards added to those of each item: its rate is shrunk towards that of its ranks."""
RANK_PRIOR = 50.0
"""Rows with the mean reward added to those of each rank."""


@dataclass(frozen=True)
class LoggedLists:
    """N lists with m shown items, and the lists of the target for the same moments."""

    user: NDArray[np.intp]
    """(N,) number of the list's user"""
    owner: NDArray[np.intp]
    """(m,) list of each shown item"""
    rank: NDArray[np.intp]
    """(m,) from 0"""
    item: IntArray
    """(m,)"""
    propensity: Float64Array
    """(m,) in (0, 1]"""
    reward: Float64Array
    """(m,) in 0 to 1"""
    target: IntArray
    """(N, L) the target's items, best first, as many as were shown; -1 pads"""

    def __len__(self) -> int:
        return len(self.user)

    @property
    def place(self) -> NDArray[np.intp]:
        """(m,) the rank at which the target shows each shown item; -1: it does not."""
        same = (self.target[self.owner] == self.item[:, None]) & (self.item >= 0)[:, None]
        return np.where(same.any(axis=1), same.argmax(axis=1), -1)

    @property
    def users(self) -> int:
        return len(np.unique(self.user))


@dataclass(frozen=True)
class Weights:
    """The weights of the shown items."""

    weight: Float64Array
    """(m,)"""
    mass: Float64Array
    """(m,)"""
    target_mass: Float64Array
    """(N,) expected sum of the masses of each list under full support"""

    @property
    def support(self) -> float:
        """The share of the target's items, by mass, that could have come up; an unbiased estimate,
        which by chance may exceed 1."""
        return float(self.mass.sum() / max(self.target_mass.sum(), 1e-12))

    @property
    def ess(self) -> float:
        """The effective sample size; 0 without weights."""
        squares = float((self.mass**2).sum())
        return float(self.mass.sum()) ** 2 / squares if squares else 0.0


@dataclass(frozen=True)
class Estimate:
    """An estimated value per list."""

    value: float
    interval: tuple[float, float]
    """95 %"""
    ess: float


def weigh(lists: LoggedLists, decay: float | None = None) -> Weights:
    """The importance weights of the shown items; see above for `decay`."""
    place = lists.place
    there = lists.target >= 0
    if decay is None:
        weight = (place == lists.rank) / lists.propensity
        return Weights(weight, weight, there.sum(axis=1).astype(np.float64))
    examined = examination(lists.target.shape[1], decay)
    mass = np.where(place >= 0, examined[place], 0.0) / lists.propensity
    own = examination(int(lists.rank.max(initial=0)) + 1, decay)[lists.rank]
    return Weights(mass / own, mass, there @ examined)


def examination(n: int, decay: float | None) -> Float64Array:
    """(n,) examination of the ranks, relative to the first one."""
    return np.arange(1, n + 1, dtype=np.float64) ** -(decay or 0.0)


def estimates(lists: LoggedLists, decay: float | None = None) -> dict[str, Estimate]:
    """Estimator → its estimate. Needs lists of two users and a weight above 0."""
    weights = weigh(lists, decay)
    predicted, of_target = out_of_fold(lists, decay)
    return {
        "ips": ips(lists, weights),
        "snips": snips(lists, weights),
        "doubly_robust": doubly_robust(lists, weights, predicted, of_target),
    }


def logged(lists: LoggedLists) -> Estimate:
    """What the logged lists themselves earned."""
    return _mean(lists, _per_list(lists, lists.reward), float(len(lists.item)))


def ips(lists: LoggedLists, weights: Weights) -> Estimate:
    """Inverse propensity scoring: unbiased under full support."""
    earned = _per_list(lists, weights.weight * lists.reward)
    return _mean(lists, earned, weights.ess)


def snips(lists: LoggedLists, weights: Weights) -> Estimate:
    """Self-normalised: biased by O(1 / n), of less variance, and it never leaves the rewards'
    range."""
    earned = _per_list(lists, weights.weight * lists.reward)
    mass = _per_list(lists, weights.mass)
    rate = float(earned.sum() / mass.sum())
    share = float(weights.target_mass.mean())
    # the differential of the product of two ratios
    deviation = share * len(lists) / mass.sum() * (earned - rate * mass)
    deviation += rate * (weights.target_mass - share)
    return _estimate(lists, rate * share, deviation, weights.ess)


def doubly_robust(
    lists: LoggedLists, weights: Weights, predicted: Float64Array, of_target: Float64Array
) -> Estimate:
    """The reward model's value of the target, corrected by the weighted errors of the model.

    `predicted` (m,): the model's rewards of the shown items; `of_target` (N,): their sums for the
    target's lists. Unbiased under full support, whatever the model, if the model has not seen the
    rewards of the list.
    """
    errors = _per_list(lists, weights.weight * (lists.reward - predicted))
    return _mean(lists, of_target + errors, weights.ess)


def out_of_fold(
    lists: LoggedLists, decay: float | None = None
) -> tuple[Float64Array, Float64Array]:
    """(m,) predicted rewards of the shown items, (N,) their sums for the target's lists.

    q(item, rank) = rate of the rank · lift of the item, each shrunk; with `decay` the rate of a
    rank is in proportion to its examination. Fitted on the users of the other folds.
    """
    users, number = np.unique(lists.user, return_inverse=True)
    fold = np.random.default_rng(0).permutation(len(users))[number] % FOLDS
    predicted, of_target = np.zeros(len(lists.item)), np.zeros(len(lists))
    for part in range(FOLDS):
        own, seen = fold == part, fold != part
        rate, lift = _fit(lists, seen[lists.owner], decay)
        rows = own[lists.owner]
        predicted[rows] = rate[lists.rank[rows]] * lift[lists.item[rows]]
        target = lists.target[own]
        values = rate[: target.shape[1]] * lift[target]
        of_target[own] = np.where(target >= 0, values, 0.0).sum(axis=1)
    return predicted, of_target


def _fit(
    lists: LoggedLists, rows: NDArray[np.bool_], decay: float | None
) -> tuple[Float64Array, Float64Array]:
    """Rate of each rank, and lift of each item; the last item is the padding, -1."""
    rank, item, reward = lists.rank[rows], lists.item[rows], lists.reward[rows]
    ranks = max(int(lists.rank.max(initial=0)) + 1, lists.target.shape[1])
    items = max(int(lists.item.max(initial=0)), int(lists.target.max(initial=0))) + 2
    if decay is None:
        mean = float(reward.mean()) if len(reward) else 0.0
        earned = np.bincount(rank, reward, ranks) + RANK_PRIOR * mean
        rate = earned / (np.bincount(rank, minlength=ranks) + RANK_PRIOR)
    else:
        examined = examination(ranks, decay)
        rate = examined * (reward.sum() / max(examined[rank].sum(), 1e-12))
    item = np.where(item < 0, items - 1, item)
    expected = np.bincount(item, rate[rank], items)
    lift = (np.bincount(item, reward, items) + ITEM_PRIOR) / (expected + ITEM_PRIOR)
    return rate, lift


def _per_list(lists: LoggedLists, values: Float64Array) -> Float64Array:
    """(N,) sums of values (m,)."""
    return np.asarray(np.bincount(lists.owner, values, len(lists)), np.float64)


def _mean(lists: LoggedLists, values: Float64Array, ess: float) -> Estimate:
    """The mean of the lists' values (N,)."""
    mean = float(values.mean())
    return _estimate(lists, mean, values - mean, ess)


def _estimate(lists: LoggedLists, value: float, deviation: Float64Array, ess: float) -> Estimate:
    """An estimate with its interval from the deviations (N,) of the lists, whose mean is 0."""
    users, number = np.unique(lists.user, return_inverse=True)
    sums, n = np.bincount(number, deviation), len(users)
    error = np.sqrt((sums**2).sum() * n / (n - 1)) / len(lists)
    half = float(t.ppf((1 + CONFIDENCE) / 2, n - 1) * error)
    return Estimate(value, (value - half, value + half), ess)
