"""Metrics of top-n lists, a value per user, with bootstrap intervals over users.

Lists are `(q, k) int32` item indices, best first, −1 where a list is shorter. Relevance is given as
hits.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from afterclick.arrays import BoolArray, Float64Array, IntArray


def hits_of(lists: IntArray, targets: IntArray) -> BoolArray:
    """(q, k) bool: where a list shows one of the query's targets (q, t); -1 pads both."""
    found = np.zeros(lists.shape, bool)
    for column in targets.T:
        found |= lists == column[:, None]
    return found & (lists >= 0)


def hit_rate(hits: BoolArray, relevant: IntArray, k: int) -> Float64Array:
    """1 where at least one of the first k is relevant."""
    return np.asarray(hits[:, :k].any(axis=1), np.float64)


def precision(hits: BoolArray, relevant: IntArray, k: int) -> Float64Array:
    """Share of the k places that are relevant."""
    return np.asarray(hits[:, :k].sum(axis=1) / k, np.float64)


def recall(hits: BoolArray, relevant: IntArray, k: int) -> Float64Array:
    """Share of the relevant items among the first k."""
    return np.asarray(hits[:, :k].sum(axis=1) / np.maximum(relevant, 1), np.float64)


def f1(hits: BoolArray, relevant: IntArray, k: int) -> Float64Array:
    """Harmonic mean of precision and recall."""
    both = precision(hits, relevant, k) + recall(hits, relevant, k)
    product = 2 * precision(hits, relevant, k) * recall(hits, relevant, k)
    return np.asarray(product / np.where(both > 0, both, 1.0))


def ndcg(hits: BoolArray, relevant: IntArray, k: int) -> Float64Array:
    """Discounted gain over the best that k places allow (binary relevance)."""
    discount = 1.0 / np.log2(np.arange(2, hits.shape[1] + 2))
    best = np.r_[0.0, np.cumsum(discount)][np.minimum(relevant, min(k, len(discount)))]
    return np.asarray((hits[:, :k] * discount[:k]).sum(axis=1) / np.where(best > 0, best, 1.0))


def reciprocal_rank(hits: BoolArray, relevant: IntArray, k: int) -> Float64Array:
    """1 / the place of the first relevant item, 0 beyond k."""
    first = hits[:, :k].argmax(axis=1)
    return np.where(hits[:, :k].any(axis=1), 1.0 / (first + 1), 0.0)


def average_precision(hits: BoolArray, relevant: IntArray, k: int) -> Float64Array:
    """Mean of the precision at each relevant place, over the relevant items there could be."""
    found = hits[:, :k]
    at = np.cumsum(found, axis=1) / np.arange(1, found.shape[1] + 1)
    return np.asarray((at * found).sum(axis=1) / np.maximum(np.minimum(relevant, k), 1))


ACCURACY: dict[str, tuple[Callable[[BoolArray, IntArray, int], Float64Array], int]] = {
    "hr@10": (hit_rate, 10),
    "hr@20": (hit_rate, 20),
    "precision@10": (precision, 10),
    "recall@10": (recall, 10),
    "recall@20": (recall, 20),
    "f1@20": (f1, 20),
    "ndcg@10": (ndcg, 10),
    "ndcg@20": (ndcg, 20),
    "map@10": (average_precision, 10),
    "mrr": (reciprocal_rank, 100),
}


def accuracy(hits: BoolArray, relevant: IntArray) -> dict[str, Float64Array]:
    """Every accuracy metric, a value per user. `relevant` (q,) is how many relevant items a user
    has."""
    return {name: metric(hits, relevant, k) for name, (metric, k) in ACCURACY.items()}


def novelty(lists: IntArray, counts: NDArray[np.int64], users: int) -> Float64Array:
    """(q,) mean −log2 of the share of users who know the shown items (Vargas and Castells, RecSys
    2011)."""
    surprise = -np.log2(np.maximum(counts, 1) / max(users, 1))
    return _mean_where(surprise[lists], lists >= 0)


def coverage(lists: IntArray, items: int) -> float:
    """Share of the ranked catalogue that is shown to anyone."""
    return len(np.unique(lists[lists >= 0])) / max(items, 1)


def gini(lists: IntArray, items: int) -> float:
    """Inequality of how often items are shown: 0 all alike, 1 one item for everybody."""
    shown = np.bincount(lists[lists >= 0])
    shown = shown[shown > 0]
    shown = np.sort(np.concatenate([np.zeros(max(items - len(shown), 0)), shown]))
    if not shown.sum():
        return 0.0
    n = len(shown)
    return float((2 * np.arange(1, n + 1) - n - 1) @ shown / (n * shown.sum()))


def profile_popularity(user: IntArray, item: IntArray, users: int) -> Float64Array:
    """(users,) mean popularity of the items of each user's own interactions; NaN for a user without
    any."""
    counts = np.bincount(item)
    own = np.bincount(user, minlength=users)
    total = np.bincount(user, counts[item], minlength=users)
    return np.where(own > 0, total / np.maximum(own, 1), np.nan)


def popularity_lift(
    lists: IntArray, counts: NDArray[np.int64], profiles: Float64Array
) -> float | None:
    """How much more popular the shown items are than those that the users chose themselves: 0
    alike, 1 twice.

    (GAP of lists − GAP of profiles) / GAP of profiles, where GAP is the mean over users of the mean
    popularity of their items: ΔGAP of Abdollahpouri et al., The Unfairness of Popularity Bias in
    Recommendation (workshop RMSE at RecSys 2019), with all users as one group. `profiles` (q,)
    holds each user's own mean; users who have none (NaN) do not count. None where nobody has one.
    """
    known = np.isfinite(profiles) & (lists >= 0).any(axis=1)
    if not known.any():
        return None
    shown = lists[known]
    own = profiles[known].mean()
    return float((_mean_where(counts[shown], shown >= 0).mean() - own) / own)


def diversity(lists: IntArray, vectors: NDArray[np.float32]) -> Float64Array:
    """(q,) mean over pairs of 1 − cosine of the shown items' vectors (rows of length 1, or 0 for
    unknown).

    A pair in which an item is unknown counts as unlike (1).
    """
    out = np.ones(len(lists))
    for start in range(0, len(lists), 1024):
        part = lists[start : start + 1024]
        near = np.where((part >= 0)[:, :, None], vectors[part], 0.0)
        alike = np.square(near.sum(axis=1)).sum(axis=1) - np.square(near).sum(axis=(1, 2))
        shown = (part >= 0).sum(axis=1)
        out[start : start + 1024] = 1.0 - alike / np.maximum(shown * (shown - 1), 1)
    return out


def interval(
    values: Float64Array, seed: int, rounds: int = 1000, level: float = 0.95
) -> tuple[float, float]:
    """Bootstrap percentile interval of the mean over users."""
    if not len(values):
        return (float("nan"), float("nan"))
    random = np.random.default_rng(seed)
    # the mean of n draws from few distinct values needs only how often each is drawn
    distinct, count = np.unique(values, return_counts=True)
    draws = random.multinomial(len(values), count / len(values), size=rounds)
    low, high = np.quantile(draws @ distinct / len(values), [(1 - level) / 2, (1 + level) / 2])
    return (float(low), float(high))


def interval_by_user(
    values: Float64Array, user: IntArray, seed: int, rounds: int = 1000, level: float = 0.95
) -> tuple[float, float]:
    """Bootstrap percentile interval of the mean of `values` (q,), where a user has several.

    Users are resampled with all their values: those of one user are not independent (cluster
    bootstrap; Field and Welsh, Bootstrapping Clustered Data, JRSS B 2007).
    """
    if not len(values):
        return (float("nan"), float("nan"))
    _, number, count = np.unique(user, return_inverse=True, return_counts=True)
    sums, users = np.bincount(number, values), len(count)
    random = np.random.default_rng(seed)
    means = np.empty(rounds)
    for k in range(rounds):
        drawn = random.integers(0, users, users)
        means[k] = sums[drawn].sum() / count[drawn].sum()
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return (float(low), float(high))


def _mean_where(values: Float64Array | NDArray[np.int64], shown: BoolArray) -> Float64Array:
    return np.asarray(np.where(shown, values, 0.0).sum(axis=1) / np.maximum(shown.sum(axis=1), 1))
