"""The transition graph: which items follow an item in the histories of users.

M[i, j] = Σ over users and their pairs (i before j, lag l ≤ max_lag) of l^-lag_power ·
n^-user_power, where n is the number of the user's items. The graph is S = diag(count^-source_power)
· (M + back · Mᵀ), of each row the best entries. A user's score of item j is Σ over their newest
items h₁, h₂, … of decay^(k-1) · S[hₖ, j]. The popularity of j is not divided out.

Items of one user with equal times are a set: each weighs what it would on average over all orders
of the set. Within a set both directions count half. Without times all of a user's items are one
set, and the graph is a symmetric co-occurrence graph.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from afterclick.arrays import Float64Array, FloatArray, IndexArray, IntArray
from afterclick.compiled import compiled
from training.config import TransitionConfig
from training.interactions import Interactions, by_user_and_time, runs


def transition_graph(
    rows: Interactions, config: TransitionConfig | None = None
) -> tuple[IntArray, FloatArray]:
    """(n_items, K) int32 the best targets of each item, best first, and their float32 scores.

    -1 and 0 pad. Equal scores: the more popular item first. 700,000 rows take half a second.
    """
    config = config or TransitionConfig()
    order = by_user_and_time(rows)
    user, item, time_ms = rows.user[order], rows.item[order], rows.time_ms[order]
    of_user, of_set = runs(user), runs(user, time_ms)
    size = of_set[1] - of_set[0]
    counts = rows.item_counts()
    by_item = np.argsort(item, kind="stable")
    events = _Events(
        item=item,
        start=of_user[0],
        end=of_user[1],
        of_set=of_set[0],
        middle=of_set[0] + of_set[1] - 1,
        weight=(of_user[1] - of_user[0]).astype(np.float64) ** -config.user_power,
        within=_mean_within(int(size.max(initial=1)), config)[size],
    )
    return _best_targets(
        events,
        by_item,
        np.append(0, np.cumsum(counts)),
        _of_lags(int(size.max(initial=1)), config),
        (config.max_lag, config.count),
        (config.back, config.source_power),
    )


class TransitionModel:
    """The graph as a model of published splits: learns from interactions with times."""

    sequential = True

    def __init__(self, **settings: Any) -> None:
        self.config = TransitionConfig(**settings)

    def fit(self, rows: Interactions, seed: int) -> None:
        """Build the graph and remember the users' histories."""
        self._graph = as_matrix(transition_graph(rows, self.config))
        self.observe(rows)

    def observe(self, rows: Interactions) -> None:
        """Replace the histories that are scored; the graph stays."""
        self._histories = history_weights(rows, self.config)

    def scores(self, users: NDArray[np.intp]) -> NDArray[np.float32]:
        return np.asarray((self._histories[users] @ self._graph).toarray(), np.float32)


def as_matrix(graph: tuple[IntArray, FloatArray]) -> Any:
    """(n_items, n_items) CSR of float32 from `transition_graph`."""
    items, scores = graph
    there = items >= 0
    ends = np.append(0, np.cumsum(there.sum(axis=1)))
    return sparse.csr_matrix((scores[there], items[there], ends), shape=(len(items), len(items)))


def history_weights(rows: Interactions, config: TransitionConfig) -> Any:
    """(n_users, n_items) CSR of float32: the weight of each item in its user's history."""
    order = by_user_and_time(rows)[::-1]  # newest first
    user, item, time_ms = rows.user[order], rows.item[order], rows.time_ms[order]
    start, (first, end) = runs(user)[0], runs(user, time_ms)
    weight = recency_weights(first - start, end - start, config)
    there = weight > 0
    entries = weight[there].astype(np.float32), (user[there], item[there])
    return sparse.csr_matrix(entries, shape=rows.shape)


def recency_weights(first: IndexArray, end: IndexArray, config: TransitionConfig) -> Float64Array:
    """(h,) weights of history items: decay^k at rank k < `recent`, else 0; the mean over a set.

    `first` and `end` (h,) are the ranks of the set of each item; 0 is the newest.
    """
    ranks = np.arange(config.recent)
    total = np.append(0.0, np.cumsum(config.decay**ranks))
    until, since = np.minimum(end, config.recent), np.minimum(first, config.recent)
    return np.asarray((total[until] - total[since]) / (end - first))


def _of_lags(largest: int, config: TransitionConfig) -> Float64Array:
    """Strength of a pair by twice its lag, for sets up to a size."""
    twice = np.arange(2 * (largest + config.max_lag) + 1)
    return np.asarray((np.maximum(twice, 1) / 2.0) ** -config.lag_power)


def _mean_within(largest: int, config: TransitionConfig) -> Float64Array:
    """(largest + 1,) mean of l^-lag_power over the pairs with lag l ≤ max_lag of a set of each size
    in random order."""
    size = np.arange(largest + 1, dtype=np.float64)
    pairs, weighted = np.zeros(largest + 1), np.zeros(largest + 1)
    for lag in range(1, config.max_lag + 1):
        of_lag = np.maximum(size - lag, 0.0)
        pairs += of_lag
        weighted += of_lag * lag**-config.lag_power
    return np.divide(weighted, pairs, out=np.zeros(largest + 1), where=pairs > 0)


class _Events(NamedTuple):
    """The interactions by user and time, as the kernel reads them; each (n,)."""

    item: IntArray
    start: IndexArray
    """First row of the user."""
    end: IndexArray
    of_set: IndexArray
    """First row of the set."""
    middle: IndexArray
    """Twice the mean position of the rows of the set."""
    weight: Float64Array
    """n^-user_power of the user."""
    within: Float64Array
    """Strength of a pair in the set."""


@compiled
def _best_targets(
    events: _Events,
    by_item: IndexArray,
    bounds: IndexArray,
    of_lag: Float64Array,
    sizes: tuple[int, int],
    powers: tuple[float, float],
) -> tuple[IntArray, FloatArray]:
    """(n_items, K) targets and scores. The rows of item i are by_item[bounds[i] : bounds[i + 1]].

    `of_lag`: strength of a pair by twice its lag; `sizes`: max_lag, K; `powers`: back,
    source_power.
    """
    item, start, end, of_set, middle, weight, within = events
    max_lag, count = sizes
    back, source_power = powers
    n_items = len(bounds) - 1
    items = np.full((n_items, count), np.int32(-1), np.int32)
    scores = np.zeros((n_items, count), np.float32)
    sums = np.zeros(n_items)
    touched = np.empty(n_items, np.int32)
    popular = 1e-6 / max(1, len(item))  # breaks ties only
    for source in range(n_items):
        n_touched = 0
        for at in range(bounds[source], bounds[source + 1]):
            row = by_item[at]
            for other in range(max(start[row], row - max_lag), min(end[row], row + max_lag + 1)):
                target = item[other]
                if target == source:
                    continue
                if of_set[other] == of_set[row]:
                    strength = 0.5 * (1.0 + back) * within[row]
                elif other > row:
                    strength = of_lag[middle[other] - middle[row]]
                else:
                    strength = back * of_lag[middle[row] - middle[other]]
                if strength > 0.0:
                    if sums[target] == 0.0:
                        touched[n_touched] = target
                        n_touched += 1
                    sums[target] += strength * weight[row]
        found = touched[:n_touched]
        ranked = np.empty(n_touched)
        for at in range(n_touched):
            times = bounds[found[at] + 1] - bounds[found[at]]
            ranked[at] = -sums[found[at]] * (1.0 + popular * times)
        best = np.argsort(ranked)
        scale = max(1, bounds[source + 1] - bounds[source]) ** -source_power
        for rank in range(min(count, n_touched)):
            target = found[best[rank]]
            items[source, rank] = target
            scores[source, rank] = sums[target] * scale
        for at in range(n_touched):
            sums[found[at]] = 0.0
    return items, scores
