"""Query models about the newest interactions, the way serving would answer, for the release gate.

Champion and challenger have different items: each model is aligned with the items of the log and
its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from afterclick.arrays import Float64Array, IntArray
from afterclick.model import Model
from afterclick.ranking import CandidateGenerator, Ranker, score_candidates
from afterclick.retrieval import top_k
from afterclick.trends import DAY_MS, HALF_LIVES_MS
from training.config import ReplayConfig
from training.evaluation import list_metrics
from training.evaluation.measure import Answers, Recommend, answer
from training.event_log import EventLog
from training.gate import Questions
from training.protocols import EvaluationSplit, Queries, queries, sample
from training.query_replay import ReplayedQuery, align

PROTOCOLS = ("returning", "live")
LENGTH = 50
"""Ranks of a list that are asked for."""
_WEEK = list(HALF_LIVES_MS).index("week")
PerQueryMetrics = dict[str, dict[str, Float64Array]]
"""protocol → metric → (q,)"""


@dataclass(frozen=True)
class Contestant:
    """A model with the ranker that it is served with."""

    model: Model
    ranker: Ranker


@dataclass(frozen=True)
class Holdout:
    """The newest interactions and the queries about them."""

    split: EvaluationSplit
    queries: dict[str, Queries]
    known: ReplayConfig
    """What serving knows of users and trends."""

    @cached_property
    def questions(self) -> Questions:
        """Users, weights and origin of all queries, protocols in the order of PROTOCOLS."""
        found = Queries.joined([self.queries[protocol] for protocol in PROTOCOLS])
        return Questions(found.user, found.weights(), found.organic)

    @classmethod
    def of(
        cls, split: EvaluationSplit, max_queries: int, seed: int, known: ReplayConfig
    ) -> Holdout:
        """At most `max_queries` queries of each protocol on the events from the cut on.

        A returning user is asked about as of the morning of the target's day: the trends of a
        request are never weeks old.
        """
        found = {p: sample(queries(split, p), max_queries, seed) for p in PROTOCOLS}
        found["returning"] = _that_morning(found["returning"], split.cut_ms)
        return cls(split, found, known)


def _that_morning(found: Queries, cut_ms: int) -> Queries:
    """The same queries as of midnight (UTC) before their targets, or as of the cut."""
    day = int(DAY_MS)
    return replace(found, now_ms=np.maximum(found.target_ms // day * day, cut_ms))


def cut_of(log: EventLog, share: float) -> int:
    """The midnight (UTC, ms) that leaves about `share` of the events; at least one event comes
    before it."""
    moment = log.time_ms[min(int(len(log) * (1 - share)), len(log) - 1)]
    midnight = int(moment // DAY_MS * DAY_MS)
    return midnight if log.time_ms[0] < midnight else int(moment)


def split_at(log: EventLog, cut_ms: int, min_interactions: int) -> EvaluationSplit:
    """The log cut at a moment."""
    return EvaluationSplit(log, cut_ms, int(log.time_ms[-1]) + 1, min_interactions)


def ask(holdout: Holdout, contestants: Mapping[str, Contestant]) -> dict[str, Answers]:
    """Protocol → the lists that the contestants, and `trends`, would have shown."""
    ids = {i for c in contestants.values() for i in c.model.item_ids.tolist()}
    log = holdout.split.log.also(sorted(ids))
    recommenders = {
        name: _recommender(Contestant(align(c.model, log.item_ids), c.ranker))
        for name, c in contestants.items()
    }
    return {
        protocol: answer(log, asked, {"trends": trending, **recommenders}, LENGTH, holdout.known)
        for protocol, asked in holdout.queries.items()
    }


def _recommender(contestant: Contestant) -> Recommend:
    generator = CandidateGenerator.exact(contestant.model)

    def recommend(query: ReplayedQuery) -> IntArray:
        ranking = generator.query(query.user, query.trends)
        items, scores = score_candidates(generator, contestant.ranker, ranking)
        return items[top_k(scores, LENGTH)]

    return recommend


def trending(query: ReplayedQuery) -> IntArray:
    """The items with the highest decayed popularity at a half-life of a week."""
    week = query.trends.log_share[:, _WEEK].copy()
    week[query.user.seen] = -np.inf
    return top_k(week, LENGTH).astype(np.int32)


def metrics(answers: Mapping[str, Answers], name: str) -> PerQueryMetrics:
    """Metrics of each list of one contestant."""
    return {protocol: _metrics(found, name) for protocol, found in answers.items()}


def _metrics(answers: Answers, name: str) -> dict[str, Float64Array]:
    hits, relevant = answers.hits(name)
    return {
        "hr@10": list_metrics.hit_rate(hits, relevant, 10),
        "ndcg@10": list_metrics.ndcg(hits, relevant, 10),
        "ndcg@20": list_metrics.ndcg(hits, relevant, 20),
        "ndcg@50": list_metrics.ndcg(hits, relevant, 50),
        "mrr@20": list_metrics.reciprocal_rank(hits, relevant, 20),
    }


def pooled(measured: PerQueryMetrics, metric: str) -> Float64Array:
    """(q,) one metric of all queries, protocols in the order of PROTOCOLS."""
    return np.concatenate([measured[protocol][metric] for protocol in PROTOCOLS])


def overlap(answers: Mapping[str, Answers], first: str, second: str, k: int = 10) -> float:
    """Mean share of the first `k` items that the lists of two contestants have in common."""
    shared = [
        np.mean([len(set(a[a >= 0]) & set(b[b >= 0])) / k for a, b in zip(x, y, strict=True)])
        for found in answers.values()
        if len(found.queries)
        for x, y in [(found.lists[first][:, :k], found.lists[second][:, :k])]
    ]
    return float(np.mean(shared)) if shared else 1.0
