"""Query models about the newest interactions, the way serving would answer, for the release gate.

Champion and challenger have different items: each model is aligned with the items of the log and
its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from afterclick.arrays import Float64Array, IntArray
from afterclick.model import Model
from afterclick.ranking import CandidateGenerator, Ranker, score_candidates
from afterclick.retrieval import top_k
from afterclick.trends import DAY_MS, HALF_LIVES_MS
from training.evaluation import list_metrics
from training.evaluation.measure import Answers, answer
from training.event_log import EventLog
from training.protocols import EvaluationSplit, Queries, queries, sample
from training.query_replay import ReplayedQuery, align

PROTOCOLS = ("returning", "live")
LENGTH = 20
_WEEK = list(HALF_LIVES_MS).index("week")
PerQueryMetrics = dict[str, dict[str, Float64Array]]
"""protocol → metric → (q,)"""


@dataclass(frozen=True)
class Holdout:
    """The newest interactions and the queries about them."""

    split: EvaluationSplit
    queries: dict[str, Queries]

    @property
    def n_queries(self) -> int:
        """Queries of all protocols."""
        return sum(len(q) for q in self.queries.values())

    @classmethod
    def of(cls, split: EvaluationSplit, max_queries: int, seed: int) -> Holdout:
        """At most `max_queries` queries of each protocol on the events from the cut on."""
        return cls(split, {p: sample(queries(split, p), max_queries, seed) for p in PROTOCOLS})


def cut_of(log: EventLog, share: float) -> int:
    """The midnight (UTC, ms) that leaves about `share` of the events; at least one event comes
    before it."""
    moment = log.time_ms[min(int(len(log) * (1 - share)), len(log) - 1)]
    midnight = int(moment // DAY_MS * DAY_MS)
    return midnight if log.time_ms[0] < midnight else int(moment)


def split_at(log: EventLog, cut_ms: int, min_interactions: int) -> EvaluationSplit:
    """The log cut at a moment."""
    return EvaluationSplit(log, cut_ms, int(log.time_ms[-1]) + 1, min_interactions)


def judge(holdout: Holdout, model: Model, ranker: Ranker) -> PerQueryMetrics:
    """Metrics of the lists that a model and its ranker would have shown."""
    log = holdout.split.log.also(model.item_ids.tolist())
    generator = CandidateGenerator.exact(align(model, log.item_ids))

    def recommend(query: ReplayedQuery) -> IntArray:
        ranking = generator.query(query.user, query.trends)
        items, scores = score_candidates(generator, ranker, ranking)
        return items[top_k(scores, LENGTH)]

    return {
        protocol: _metrics(answer(log, asked, {"model": recommend}, LENGTH))
        for protocol, asked in holdout.queries.items()
    }


def trends_baseline(holdout: Holdout) -> PerQueryMetrics:
    """Metrics of the items with the highest decayed popularity at a half-life of a week."""

    def recommend(query: ReplayedQuery) -> IntArray:
        week = query.trends.log_share[:, _WEEK].copy()
        week[query.user.seen] = -np.inf
        return top_k(week, LENGTH).astype(np.int32)

    return {
        protocol: _metrics(answer(holdout.split.log, asked, {"model": recommend}, LENGTH))
        for protocol, asked in holdout.queries.items()
    }


def _metrics(answers: Answers) -> dict[str, Float64Array]:
    hits, relevant = answers.hits("model")
    return {
        "hr@10": list_metrics.hit_rate(hits, relevant, 10),
        "ndcg@10": list_metrics.ndcg(hits, relevant, 10),
        "ndcg@20": list_metrics.ndcg(hits, relevant, 20),
        "mrr@20": list_metrics.reciprocal_rank(hits, relevant, 20),
    }
