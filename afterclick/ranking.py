"""Two-stage recommendation: retrieve candidates, compute their features, score them.

The one composition of the three, used by the request path, the training of the ranker, the release gate and
the evaluation. Callers filter or extend the candidates between `retrieve` and `features`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from afterclick.arrays import FloatArray, IntArray
from afterclick.content import ItemContent
from afterclick.features import TrendView, UserState, features
from afterclick.model import Model
from afterclick.retrieval import (
    CandidateLimits,
    Candidates,
    Search,
    candidate_items,
    exact_search,
)
from afterclick.user_vectors import fold_in, tower_user


class Ranker(Protocol):
    """Scores candidates by their features."""

    def score(self, features: FloatArray) -> NDArray[np.floating]:
        """(c,) scores of feature rows (c, F); higher is better."""
        ...


@dataclass(frozen=True, eq=False)
class Searches:
    """Nearest-neighbour searches over a model's item vectors. A source without a search is skipped."""

    als: Search | None = None
    tower: Search | None = None
    content: Search | None = None

    @classmethod
    def exact(cls, model: Model, allowed: NDArray[np.bool_] | None = None) -> Searches:
        """Exact searches over the model's items, or over those `allowed` (m,), m ≥ n."""
        mask = None if allowed is None else allowed[: len(model)]

        def search(vectors: FloatArray | None) -> Search | None:
            return None if vectors is None else exact_search(vectors, mask)

        towers = model.towers.targets if model.towers is not None else None
        return cls(search(model.factors), search(towers), search(model.content))


@dataclass(frozen=True, eq=False)
class RankingQuery:
    """A user at a moment, as candidate sources and features read them."""

    user: UserState
    trends: TrendView
    factors: FloatArray | None
    """(k,) ALS factors folded in from the history."""
    tower: FloatArray | None
    """(d + 1,) output of the user tower."""

    @classmethod
    def of(cls, model: Model, user: UserState, trends: TrendView) -> RankingQuery:
        """Compute the user's vectors once, for retrieval and for features."""
        return cls(user, trends, fold_in(model, user), tower_user(model, user))


@dataclass(frozen=True, eq=False)
class CandidateGenerator:
    """Retrieves candidates from all sources of one model and computes their features."""

    model: Model
    searches: Searches
    content: ItemContent | None = None
    """Content of the model's items and of later ones; default: the model's items alone."""
    limits: CandidateLimits = field(default_factory=CandidateLimits)
    allowed: NDArray[np.bool_] | None = None
    """(m,) items that may become candidates; default: all."""

    @classmethod
    def exact(
        cls,
        model: Model,
        allowed: NDArray[np.bool_] | None = None,
        limits: CandidateLimits | None = None,
    ) -> CandidateGenerator:
        """With exact searches in place of ANN indexes: for training and evaluation."""
        searches = Searches.exact(model, allowed)
        return cls(model, searches, limits=limits or CandidateLimits(), allowed=allowed)

    def query(self, user: UserState, trends: TrendView) -> RankingQuery:
        """The query of a user at a moment."""
        return RankingQuery.of(self.model, user, trends)

    def retrieve(
        self,
        query: RankingQuery,
        exclude: IntArray | None = None,
        limits: CandidateLimits | None = None,
    ) -> Candidates:
        """The candidates of all sources, without seen items and those in `exclude`."""
        found = candidate_items(
            self.model,
            query.user,
            query.trends,
            user_factors=query.factors,
            user_towers=query.tower,
            als_search=self.searches.als,
            tower_search=self.searches.tower,
            content_search=self.searches.content,
            content=self.content,
            limits=limits or self.limits,
            exclude=exclude,
        )
        if self.allowed is None:
            return found
        keep = self.allowed[found.items]
        return Candidates(found.items[keep], found.sources[keep])

    def features(self, query: RankingQuery, items: IntArray) -> FloatArray:
        """(len(items), len(FEATURES)) feature rows of items, candidates or not."""
        return features(
            self.model,
            query.user,
            query.trends,
            items,
            query.factors,
            query.tower,
            self.content,
        )


def score_candidates(
    generator: CandidateGenerator, ranker: Ranker, query: RankingQuery
) -> tuple[IntArray, NDArray[np.floating]]:
    """The candidates (c,) of a query and their scores (c,), unordered."""
    items = generator.retrieve(query).items
    if not len(items):
        return items, np.empty(0)
    return items, ranker.score(generator.features(query, items))
