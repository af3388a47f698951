"""Two-stage recommendation: retrieve candidates, compute their features, score them.

The one composition of the three, used by the request path, the training of the ranker, the release
gate and the evaluation. Callers filter or extend the candidates between `retrieve` and `features`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from afterclick.arrays import BoolArray, Float64Array, FloatArray, IndexArray, IntArray
from afterclick.features import FEATURE_NAMES, FEATURES, PARTS, TrendView, features
from afterclick.model import Model
from afterclick.retrieval import CandidateLimits, Candidates, Searches, candidate_items, top_k
from afterclick.transitions import TransitionGraph
from afterclick.user_vectors import UserState, UserVectors

Contributions = dict[str, Float64Array]
"""Part of a score → (c,)"""


class Ranker(Protocol):
    """Scores candidates by their features, and explains the scores by contributions."""

    @property
    def used(self) -> frozenset[str]:
        """Names of the features that the score depends on."""
        ...

    def score(self, features: FloatArray) -> Float64Array:
        """(c,) scores of feature rows (c, F); higher is better."""
        ...

    def contributions(self, features: FloatArray) -> Contributions:
        """Part → (c,); the parts add up to `score` of the same rows."""
        ...

    def best(self, features: FloatArray, n: int) -> tuple[IndexArray, Contributions]:
        """The rows of the n highest scores, best first, and their contributions."""
        ...


@dataclass(frozen=True, eq=False)
class RankingQuery:
    """A user at a moment, as candidate sources and features read them."""

    user: UserVectors
    trends: TrendView


@dataclass(frozen=True, eq=False)
class CandidateGenerator:
    """Retrieves candidates from all sources of one model and computes their features."""

    model: Model
    searches: Searches
    limits: CandidateLimits = field(default_factory=CandidateLimits)
    allowed: BoolArray | None = None
    """(m,) items that may become candidates; default: all."""
    transitions: TransitionGraph | None = None
    """The transition graph with live events; default: the model's."""

    @classmethod
    def exact(
        cls,
        model: Model,
        allowed: BoolArray | None = None,
        limits: CandidateLimits | None = None,
    ) -> CandidateGenerator:
        """With exact searches in place of ANN indexes: for training and evaluation."""
        searches = Searches.exact(model, allowed)
        return cls(model, searches, limits=limits or CandidateLimits(), allowed=allowed)

    def with_graph(self, transitions: TransitionGraph | None) -> CandidateGenerator:
        """The same with another transition graph; None: the model's."""
        return replace(self, transitions=transitions)

    def query(self, user: UserState, trends: TrendView) -> RankingQuery:
        """Compute the user's vectors once, for retrieval and for features."""
        return RankingQuery(UserVectors.of(self.model, user, self.transitions), trends)

    def retrieve(
        self,
        query: RankingQuery,
        exclude: IntArray | None = None,
        limits: CandidateLimits | None = None,
    ) -> Candidates:
        """The candidates of all sources, without seen items and those in `exclude`."""
        candidates = candidate_items(
            self.model, query.user, query.trends.top, self.searches, limits or self.limits
        )
        if exclude is not None:
            candidates = candidates.without(exclude)
        if self.allowed is not None:
            candidates = candidates.where(self.allowed[candidates.items])
        return candidates

    def features(self, query: RankingQuery, items: IntArray) -> FloatArray:
        """(len(items), len(FEATURES)) feature rows of items, candidates or not."""
        content = self.searches.item_content
        return features(self.model, query.user, query.trends, items, content)


def score_candidates(
    generator: CandidateGenerator, ranker: Ranker, query: RankingQuery
) -> tuple[IntArray, Float64Array]:
    """The candidates (c,) of a query and their scores (c,), unordered."""
    items = generator.retrieve(query).items
    if not len(items):
        return items, np.empty(0)
    return items, ranker.score(generator.features(query, items))


# Trends are log2 of a share, −200 for none: `_TREND_FLOOR` clips them at one in a million.
_TREND_FLOOR = -20.0
_FORMULA = {
    "als": 2.0,
    "popularity": 0.05,
    "cosine_last": 4.0,
    "cosine_max": 2.0,
    "cosine_sum": 1.0,
    "same_day_last": 4.0,
    "same_day_sum": 1.0,
    "transition_share": 2.0,
    "als_last": 0.5,
    "trend_day": 0.02,
    "trend_week": 0.06,
    "trend_month": 0.12,
    "content_last": 0.8,
    "content_mean": 0.4,
}


class FormulaRanker:
    """A weighted sum of features: the fallback of a model without a learned ranker.

    Serving ranks with it, and the release gate scores such a model with it.
    """

    used = frozenset(_FORMULA)

    def __init__(self) -> None:
        self._weights = np.array([_FORMULA.get(name, 0.0) for name in FEATURE_NAMES])
        self._trends = np.array([name.startswith("trend_") for name in FEATURE_NAMES])
        self._parts = np.array([[part == p for p in PARTS] for _, part in FEATURES], float)

    def score(self, features: FloatArray) -> Float64Array:
        """(c,) sum of the contributions."""
        return np.asarray(self._values(features).sum(axis=1))

    def contributions(self, features: FloatArray) -> Contributions:
        """Part → (c,); the parts add up to `score` of the same rows."""
        parts = self._values(features) @ self._parts
        return {part: parts[:, i] for i, part in enumerate(PARTS)}

    def best(self, features: FloatArray, n: int) -> tuple[IndexArray, Contributions]:
        """The rows of the n highest scores, best first, and their contributions."""
        top = top_k(self.score(features), n)
        return top, self.contributions(features[top])

    def _values(self, features: FloatArray) -> Float64Array:
        """(c, F) the contribution of each feature."""
        x = np.where(np.isnan(features), 0.0, features.astype(np.float64))
        x[:, self._trends] = np.maximum(x[:, self._trends], _TREND_FLOOR) - _TREND_FLOOR
        return np.asarray(x * self._weights)
