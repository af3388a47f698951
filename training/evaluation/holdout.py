"""Query models about the newest interactions, the way serving would answer, for the release gate.

Champion and challenger have different items: each model is aligned with the items of the log and
its own.

The final check compares the model that will be served with its holdout model, which the gate
compares. Both are fitted by the same recipe, the final one on more events. So on the holdout, which
it has seen, its lists must not be worse, and no part of it may rank the targets lower: a part with
exchanged rows may cost little in a blend, but ranks targets like any other candidate.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from afterclick.arrays import BoolArray, Float64Array, FloatArray, IntArray
from afterclick.features import FEATURE_NAMES
from afterclick.model import Model
from afterclick.ranking import CandidateGenerator, Ranker, score_candidates
from afterclick.retrieval import top_k
from afterclick.trends import DAY_MS, HALF_LIVES_MS
from training.config import ReplayConfig
from training.evaluation import list_metrics
from training.evaluation.measure import Answers, Recommend, answer
from training.event_log import EventLog
from training.gate import METRIC, MIN_USERS, Comparison, Questions
from training.graph_replay import GraphReplay
from training.protocols import EvaluationSplit, Queries, queries, sample
from training.query_replay import ReplayedQuery, align, replay

PROTOCOLS = ("returning", "live")
LENGTH = 50
"""Ranks of a list that are asked for."""
_WEEK = list(HALF_LIVES_MS).index("week")
PerQueryMetrics = dict[str, dict[str, Float64Array]]
"""protocol → metric → (q,)"""


@dataclass(frozen=True)
class RankedModel:
    """A model with the ranker that it is served with."""

    model: Model
    ranker: Ranker
    cut_ms: float = np.inf
    """Event time from which the model has seen nothing: its transition graph is updated with the
    events from then on. Infinity: it has seen all."""


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


def ask(holdout: Holdout, ranked: Mapping[str, RankedModel]) -> dict[str, Answers]:
    """Protocol → the lists that the models, and `trends`, would have shown."""
    ids = {i for r in ranked.values() for i in r.model.item_ids.tolist()}
    log = holdout.split.log.also(sorted(ids))
    recommenders = {
        name: _recommender(replace(r, model=align(r.model, log.item_ids)), log)
        for name, r in ranked.items()
    }
    return {
        protocol: answer(log, asked, {"trends": trending, **recommenders}, LENGTH, holdout.known)
        for protocol, asked in holdout.queries.items()
    }


def _recommender(ranked_model: RankedModel, log: EventLog) -> Recommend:
    exact, model = CandidateGenerator.exact(ranked_model.model), ranked_model.model
    graphs = GraphReplay(model, log, ranked_model.cut_ms)

    def recommend(query: ReplayedQuery) -> IntArray:
        generator = exact.with_graph(graphs.at(query.user.now_ms))
        ranking = generator.query(query.user, query.trends)
        items, scores = score_candidates(generator, ranked_model.ranker, ranking)
        return items[top_k(scores, LENGTH)]

    return recommend


def trending(query: ReplayedQuery) -> IntArray:
    """The items with the highest decayed popularity at a half-life of a week."""
    week = query.trends.log_share[:, _WEEK].copy()
    week[query.user.seen] = -np.inf
    return top_k(week, LENGTH).astype(np.int32)


def metrics(answers: Mapping[str, Answers], name: str) -> PerQueryMetrics:
    """Metrics of each list of one model."""
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
    """Mean share of the first `k` items that the lists of two models have in common."""
    shared = [
        np.mean([len(set(a[a >= 0]) & set(b[b >= 0])) / k for a, b in zip(x, y, strict=True)])
        for found in answers.values()
        if len(found.queries)
        for x, y in [(found.lists[first][:, :k], found.lists[second][:, :k])]
    ]
    return float(np.mean(shared)) if shared else 1.0


PARTS = (
    "als",
    "als_last",
    "tower",
    "tower_last",
    "ncf_score",
    "popularity",
    "cosine_sum",
    "same_day_sum",
    "reach_sum",
    "content_mean",
)
"""Features whose values depend on the model."""
_COLUMNS = [FEATURE_NAMES.index(part) for part in PARTS]
QUERIES = 500
"""Maximum queries per protocol whose candidates are ranked by each part."""
MAX_LOSS, STANDARD_ERRORS = 0.05, 3.0
"""A part is taken for corrupted if it ranks targets below this many more of the candidates than in
the holdout model, by more than this many standard errors."""


@dataclass(frozen=True)
class FinalCheck:
    """How a final model compares with its holdout model, and the problem, if any."""

    problem: str | None
    overlap: float
    """Mean share of the first ten items that their lists have in common."""
    parts: dict[str, tuple[float, float]]
    """part → mean share of the candidates that it ranks below a target: final, holdout model"""


@dataclass(frozen=True)
class PartRanks:
    """How each part of two models ranks the targets of the same queries."""

    final: Float64Array
    """(q, p) share of the candidates below the targets; one half is no better than chance"""
    holdout_model: Float64Array
    """(q, p) the same by the holdout model"""

    def means(self) -> dict[str, tuple[float, float]]:
        """part → means of final and holdout model; empty without queries."""
        if not len(self.final):
            return {}
        pairs = zip(
            self.final.mean(axis=0).tolist(), self.holdout_model.mean(axis=0).tolist(), strict=True
        )
        return dict(zip(PARTS, pairs, strict=True))

    def corrupted(self) -> list[str]:
        """Parts that rank the targets lower in the final model, beyond noise."""
        n = len(self.final)
        if n < MIN_USERS:
            return []
        loss = self.holdout_model - self.final
        mean, error = loss.mean(axis=0), loss.std(axis=0) / np.sqrt(n)
        found = (mean > MAX_LOSS) & (mean > STANDARD_ERRORS * error)
        return [part for part, bad in zip(PARTS, found, strict=True) if bad]


def final_check(comparison: Comparison, overlap: float, ranks: PartRanks) -> FinalCheck:
    """Judge a final model by its comparison with the holdout model, and by its parts."""
    problem, parts = None, ranks.means()
    if comparison.interval is None and comparison.verdict == "refused":
        problem = f"the final model: {comparison.reason}"
    elif comparison.worse and comparison.difference is not None:
        problem = (
            f"the final model's {METRIC} is {-comparison.difference:.1%} below that of its "
            "holdout model, on interactions that only the final model has seen"
        )
    elif corrupted := ranks.corrupted():
        figures = ", ".join(
            f"{p} {parts[p][0]:.2f} instead of {parts[p][1]:.2f}" for p in corrupted
        )
        problem = f"the final model ranks targets lower than its holdout model: {figures}"
    return FinalCheck(problem, overlap, parts)


def part_ranks(holdout: Holdout, final: RankedModel, holdout_model: RankedModel) -> PartRanks:
    """Rank the targets of a sample of queries among the holdout model's candidates."""
    ids = {*final.model.item_ids.tolist(), *holdout_model.model.item_ids.tolist()}
    log = holdout.split.log.also(sorted(ids))
    models = [
        CandidateGenerator.exact(align(c.model, log.item_ids)) for c in (final, holdout_model)
    ]
    found = [
        _ranks_of(models, asked, sampled.targets[asked.row])
        for queries in holdout.queries.values()
        for sampled in [sample(queries, QUERIES, seed=0)]
        for asked in replay(log, sampled, holdout.known)
    ]
    both = np.array(found, np.float64).reshape(-1, 2, len(PARTS))
    return PartRanks(both[:, 0], both[:, 1])


def _ranks_of(
    models: list[CandidateGenerator], asked: ReplayedQuery, targets: IntArray
) -> list[Float64Array]:
    """(p,) shares below the targets by each model, the last of which retrieves the candidates."""
    queries = [model.query(asked.user, asked.trends) for model in models]
    targets = targets[targets >= 0]
    items = np.union1d(models[-1].retrieve(queries[-1]).items, targets).astype(np.int32)
    relevant = np.isin(items, targets)
    tables = (model.features(query, items) for model, query in zip(models, queries, strict=True))
    return [_share_below(table[:, _COLUMNS], relevant) for table in tables]


def _share_below(values: FloatArray, relevant: BoolArray) -> Float64Array:
    """(p,) mean share of the other candidates' values (c, p) below those of relevant ones.

    A missing value is the lowest; an equal one counts half.
    """
    known = np.where(np.isnan(values), -np.inf, values)
    target, others = known[relevant][:, None], known[~relevant][None]
    if not others.shape[1]:
        return np.full(values.shape[1], 0.5)
    below = (others < target) + 0.5 * (others == target)
    return np.asarray(below.mean(axis=(0, 1)), np.float64)
