"""Collect the lists of recommenders for queries, and measure them.

The release gate, the ALS search and `afterclick evaluate` all measure with this module.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from afterclick.arrays import BoolArray, Float64Array, FloatArray, Int64Array, IntArray
from afterclick.retrieval import top_k_rows
from training.config import ReplayConfig
from training.evaluation import list_metrics
from training.event_log import EventLog
from training.protocols import Queries
from training.query_replay import ReplayedQuery, replay

LENGTH = 100
"""Ranks of a list that are kept."""
SHOWN = 10
"""Ranks that the metrics beyond accuracy look at."""
SEEDED = ("hr@10", "ndcg@10")
"""Metrics whose values by seed are reported."""
_SHUFFLE_EVERY = 256
"""Queries that share one order of the items for breaking ties."""
Recommend = Callable[[ReplayedQuery], IntArray]
"""The list of a query, best first; what is longer than the lists that are kept is cut off."""
Scores = NDArray[np.floating]
Scorer = Callable[[ReplayedQuery], Scores]
"""(n_items,) scores of every item for a query; -inf is never shown."""


def top_n(
    scores: Scores, items: IntArray, random: np.random.Generator, n: int = LENGTH
) -> IntArray:
    """(q, n) of `items` (c,) by `scores` (q, c), best first; -1 pads, and -inf is never shown.

    The columns are shuffled first: among equal scores every item has the same chance, so a score
    that is zero for most items gains nothing from their order.
    """
    order = random.permutation(scores.shape[1])
    scores, items = scores[:, order], items[order]
    best = top_k_rows(scores, n)
    found = np.isfinite(np.take_along_axis(scores, best, axis=1))
    lists = np.full((len(scores), n), -1, np.int32)
    lists[:, : best.shape[1]] = np.where(found, items[best], -1)
    return lists


class FullRanking:
    """`top_n` of all eligible items by a scorer, without seen items, a query at a time."""

    def __init__(self, scorer: Scorer, eligible: BoolArray, seed: int) -> None:
        self._scorer, self._random = scorer, np.random.default_rng(seed)
        self._items = np.flatnonzero(eligible).astype(np.int32)
        self._queries = 0

    def __call__(self, query: ReplayedQuery) -> IntArray:
        if self._queries % _SHUFFLE_EVERY == 0:
            self._items = self._random.permutation(self._items)
        self._queries += 1
        scores = self._scorer(query).astype(np.float32)  # a copy: the scorer's own array stays
        scores[query.user.seen] = -np.inf
        scores = scores[self._items]
        best = top_k_rows(scores[None], LENGTH)[0]
        return np.asarray(self._items[best[np.isfinite(scores[best])]])


@dataclass(frozen=True)
class Answers:
    """The lists of each recommender for the queries of one protocol."""

    queries: Queries
    lists: dict[str, IntArray]
    """recommender → (q, length), -1 pads"""

    def hits(self, name: str) -> tuple[BoolArray, IntArray]:
        """(q, length) where a list shows one of the query's targets, and (q,) their number."""
        return list_metrics.hits_of(self.lists[name], self.queries.targets), self.queries.n_targets

    def of(self, queries: Queries) -> Answers:
        """The lists for those of `queries` whose users are among these; one query per user."""
        keep = np.isin(self.queries.user, queries.user)
        lists = {name: found[keep] for name, found in self.lists.items()}
        return Answers(queries.where(np.isin(queries.user, self.queries.user)), lists)


def answer(
    log: EventLog,
    queries: Queries,
    recommenders: Mapping[str, Recommend],
    length: int = LENGTH,
    known: ReplayConfig | None = None,
) -> Answers:
    """The lists of every recommender, each query with the states and trends of its moment."""
    lists = {name: np.full((len(queries), length), -1, np.int32) for name in recommenders}
    for query in replay(log, queries, known):
        for name, recommend in recommenders.items():
            items = recommend(query)[:length]
            lists[name][query.row, : len(items)] = items
    return Answers(queries, lists)


@dataclass(frozen=True)
class ItemFacts:
    """What the metrics beyond accuracy need to know of items and users."""

    counts: Int64Array
    """(n_items,) training interactions"""
    vectors: FloatArray
    """(n_items, d) of length 1 or 0, for the similarity of two items"""
    n_ranked: int
    """Items that are ranked."""
    n_users: int
    profiles: Float64Array
    """(n_users,) mean popularity of each user's own training interactions; NaN without any"""


def measure(
    answers: Sequence[Answers], facts: ItemFacts, seed: int = 42
) -> dict[str, dict[str, Any]]:
    """Recommender → metric → mean over users; `<metric>_interval` holds its 95 % bootstrap
    interval.

    `answers` to the same queries by models of different seeds: the accuracy of each query is the
    mean over them, `<metric>_seeds` holds the figure of each. The other metrics are those of the
    first.
    """
    return {name: _measures(answers, name, facts, seed) for name in answers[0].lists}


def accuracy(answers: Sequence[Answers], name: str) -> dict[str, Float64Array]:
    """Metric → (seeds, q) values of a recommender, of the seeds that have its lists."""
    found = [list_metrics.accuracy(*each.hits(name)) for each in answers if name in each.lists]
    return {metric: np.stack([values[metric] for values in found]) for metric in found[0]}


def _measures(answers: Sequence[Answers], name: str, facts: ItemFacts, seed: int) -> dict[str, Any]:
    by_seed = accuracy(answers, name)
    values = {metric: found.mean(axis=0) for metric, found in by_seed.items()}
    shown, users = answers[0].lists[name][:, :SHOWN], answers[0].queries.user
    values["diversity@10"] = list_metrics.diversity(shown, facts.vectors)
    values["novelty@10"] = list_metrics.novelty(shown, facts.counts, facts.n_users)
    out: dict[str, Any] = {}
    for metric, value in values.items():
        out |= mean_and_interval(metric, value, seed)
    for metric in SEEDED if len(users) else ():
        out[f"{metric}_seeds"] = by_seed[metric].mean(axis=1).tolist()
    out["coverage@10"] = list_metrics.coverage(shown, facts.n_ranked)
    out["coverage@10_interval"] = _coverage_interval(shown, facts.n_ranked, seed)
    out["gini@10"] = list_metrics.gini(shown, facts.n_ranked)
    profiles = facts.profiles[users]
    out["popularity_lift@10"] = list_metrics.popularity_lift(shown, facts.counts, profiles)
    return out


def mean_and_interval(metric: str, values: Float64Array, seed: int) -> dict[str, Any]:
    """`metric` and `<metric>_interval`: the mean of the values (q,) and its 95 % bootstrap
    interval; None without values."""
    if not len(values):
        return {metric: None, f"{metric}_interval": None}
    return {
        metric: float(values.mean()),
        f"{metric}_interval": list(list_metrics.interval(values, seed)),
    }


def _coverage_interval(
    shown: IntArray, n_ranked: int, seed: int, rounds: int = 100
) -> list[float] | None:
    """Bootstrap interval of coverage. Resampled users show fewer items, so it is below the
    figure."""
    if not len(shown):
        return None
    random = np.random.default_rng(seed)
    draws = [
        list_metrics.coverage(shown[random.integers(0, len(shown), len(shown))], n_ranked)
        for _ in range(rounds)
    ]
    return [float(q) for q in np.quantile(draws, [0.025, 0.975])]


FRESHNESS = {
    "live_event": ("live", "trends"),
    "trends": ("trends", "nightly"),
    "staleness": ("nightly", "frozen"),
    "against_nightly": ("live", "nightly"),
}
"""Part of freshness → the protocols whose difference it is."""


def freshness(
    answers: Mapping[str, Sequence[Answers]], name: str, seed: int = 42
) -> dict[str, Any]:
    """HR@10 and NDCG@10, paired: `live` minus `frozen`, and the parts of FRESHNESS.

    `answers`: protocol → the answers of each seed, to the same users in the same order.
    """
    values = {p: accuracy(answers[p], name) for p in ("live", "trends", "nightly", "frozen")}

    def difference(more: str, less: str) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for metric in SEEDED:
            gain = (values[more][metric] - values[less][metric]).mean(axis=0)
            out |= mean_and_interval(metric, gain, seed)
        return out

    parts = {part: difference(*protocols) for part, protocols in FRESHNESS.items()}
    return difference("live", "frozen") | {"parts": parts}
