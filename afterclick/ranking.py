"""Two-stage recommendation: retrieve candidates, compute their features, score them.

The one composition of the three, used by the request path, the training of the ranker, the release
gate and the evaluation. Callers filter or extend the candidates between `retrieve` and `features`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from afterclick.arrays import BoolArray, FloatArray, IntArray
from afterclick.features import TrendView, features
from afterclick.model import Model
from afterclick.retrieval import CandidateLimits, Candidates, Searches, candidate_items
from afterclick.user_vectors import UserState, UserVectors


class Ranker(Protocol):
    """Scores candidates by their features."""

    def score(self, features: FloatArray) -> NDArray[np.floating]:
        """(c,) scores of feature rows (c, F); higher is better."""
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

    def query(self, user: UserState, trends: TrendView) -> RankingQuery:
        """Compute the user's vectors once, for retrieval and for features."""
        return RankingQuery(UserVectors.of(self.model, user), trends)

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
) -> tuple[IntArray, NDArray[np.floating]]:
    """The candidates (c,) of a query and their scores (c,), unordered."""
    items = generator.retrieve(query).items
    if not len(items):
        return items, np.empty(0)
    return items, ranker.score(generator.features(query, items))
