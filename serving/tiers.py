"""Cold-start tiers, best first: personalised, single model, interests, transitions, trending,
popular.

A tier retrieves candidates and ranks them. What may be shown, and how a short list is filled, is
decided by `eligibility` for all tiers alike; a tier reads the eligibility only to know where to
look and how far.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from afterclick import api
from afterclick.api import Policy, SimilarityKind
from afterclick.arrays import Float64Array, FloatArray, IndexArray, IntArray
from afterclick.features import RECENT
from afterclick.model import UNKNOWN_BIAS
from afterclick.ncf import NcfArrays
from afterclick.ranking import CandidateGenerator, Contributions, RankingQuery
from afterclick.retrieval import CandidateLimits, Candidates, Search, is_in, top_k
from afterclick.transitions import TransitionGraph, scored
from afterclick.user_vectors import UserState, content_user, fold_in, ncf_user, tower_user
from serving.eligibility import (
    CANDIDATE_SOURCES,
    INTERESTS,
    POPULAR,
    TRENDING,
    Eligibility,
    Fill,
    ForcedItems,
    by_popularity,
    by_trend,
    candidates_from,
    pool_size,
)
from serving.explain import reasons, source_reasons
from serving.request import RecommendationRequest, RequestUser
from serving.state.loaded_models import LoadedModel
from serving.state.snapshot import ServingSnapshot, best

MAX_LOOP_POOL = 400
"""Items to rank up to which a list is made on the event loop."""
MAX_LOOP_BASKET = 50
"""Items of a request up to which its list is made on the event loop."""
EXACT_SEARCH_ABOVE = 1000
"""Seen and excluded items above which every item is scored instead of searching the ANN index."""
TREND_WEIGHT = 0.05
"""Weight of the trend score in a list by interests: orders items that match equally well."""
SIMILAR_BY_CONTENT = 100
NCF_RERANKED = 400
"""Items found by NCF's product that the MLP ranks again, at least."""
Scores = Float64Array
_FILL_APART = Fill(forced=ForcedItems.APART)
ReasonFn = Callable[[IntArray, Sequence[str]], list[str]]
ScoreFn = Callable[[UserState, IntArray], Scores]


@dataclass(frozen=True)
class RankedList:
    """Items in order. `contributions` hold a number per item and add up to its score."""

    tier: api.Tier
    items: IntArray
    contributions: dict[str, Scores]
    sources: Sequence[str]
    reason_fn: ReasonFn
    """Reasons for (items, sources)."""
    score_fn: ScoreFn | None = None
    """Scores (n,) of items for another user state; None where the history does not affect the
    score."""
    fixed_reasons: dict[int, str] = field(default_factory=dict)
    """Rank → reason, for items moved by reranking."""
    propensities: Scores | None = None
    """(n,) the probability that each rank shows its item; None without exploration."""
    reranked: bool = False


@dataclass(frozen=True, eq=False)
class TierContext:
    """What a tier reads: the snapshot, the user, and the items that may be shown."""

    snapshot: ServingSnapshot
    user: RequestUser
    eligible: Eligibility

    @property
    def personal_tier(self) -> api.Tier:
        """The tier of a list made from the user's history."""
        return api.Tier.PERSONALISED if self.user.is_known else api.Tier.SESSION

    def reasons(self, shown: IntArray, sources: Sequence[str]) -> list[str]:
        """Reasons from the user's history."""
        return reasons(self.snapshot, self.user, shown, sources)


class RankingTier(Protocol):
    """One level of personalisation."""

    @property
    def fill(self) -> Fill:
        """How its list is filled up."""
        ...

    def retrieve(self, context: TierContext) -> Candidates:
        """Candidates, best first where the tier orders them; not filtered."""
        ...

    def rank(self, context: TierContext, candidates: Candidates) -> RankedList:
        """Order filtered and filled candidates."""
        ...


def tiers_for(
    request: RecommendationRequest,
    snapshot: ServingSnapshot,
    user: RequestUser,
    limits: CandidateLimits | None,
) -> Iterator[RankingTier]:
    """The tiers to try, in order; the first one with an eligible candidate makes the list."""
    policy, generator = request.options.policy, snapshot.generator
    if policy is Policy.POPULAR:
        yield PopularTier(Fill(forced=ForcedItems.APART, from_nothing=True))
    elif policy is not Policy.TRENDING:
        if generator is not None and len(user.state.items) and policy is Policy.BLEND:
            query = generator.query(user.state, snapshot.view)
            yield PersonalisedTier(generator, query, limits)
        else:
            vectors = VectorModel.of(snapshot.loaded, policy, user.state)
            if vectors is not None:
                yield SingleModelTier(policy, vectors)
            interests = request.interests or inferred_categories(snapshot, user.state)
            if interests:
                yield InterestsTier.of(snapshot, interests)
            graph = snapshot.transitions
            if graph is not None and len(user.state.items) and policy is Policy.BLEND:
                yield TransitionsTier(graph)
    yield TrendingTier()
    yield PopularTier()


def grows_with_catalogue(
    request: RecommendationRequest, snapshot: ServingSnapshot, user: RequestUser
) -> bool:
    """Whether making the list may take longer than the event loop should wait for."""
    options = request.options
    if request.category or request.filters or request.explain:
        return True
    if len(request.items) > MAX_LOOP_BASKET:
        return True
    if pool_size(request.n, request.page, options) > MAX_LOOP_POOL:
        return True
    if options.policy in (Policy.TRENDING, Policy.POPULAR):
        return False
    if len(user.state.items) and snapshot.generator is not None:
        return options.policy is not Policy.BLEND
    return bool(request.interests or len(user.state.items))


def inferred_categories(snapshot: ServingSnapshot, state: UserState) -> tuple[str, ...]:
    """The finest category of each of the five newest items, for lists without a model."""
    items = (snapshot.catalogue.get(snapshot.ids[i]) for i in state.items[:5].tolist())
    return tuple(dict.fromkeys(item.categories[-1] for item in items if item and item.categories))


@dataclass(frozen=True, eq=False)
class PersonalisedTier:
    """Candidates of all sources, ranked by the learned ranker."""

    generator: CandidateGenerator
    query: RankingQuery
    limits: CandidateLimits | None = None
    fill: ClassVar[Fill] = Fill(forced=ForcedItems.FIRST, from_nothing=True, category=True)

    def retrieve(self, context: TierContext) -> Candidates:
        return self.generator.retrieve(self.query, limits=self.limits)

    def rank(self, context: TierContext, candidates: Candidates) -> RankedList:
        ranker, items = context.snapshot.loaded.ranker, candidates.items
        rows = self.generator.features(self.query, items)
        top, contributions = ranker.best(rows, context.eligible.pool_size)
        if len(context.eligible.forced):
            forced = np.flatnonzero(np.isin(items, context.eligible.forced))
            top = np.concatenate([top, np.setdiff1d(forced, top)])
            contributions = ranker.contributions(rows[top])
        return self.ranked(context, candidates, (top, contributions))

    def ranked(
        self, context: TierContext, candidates: Candidates, best: tuple[IndexArray, Contributions]
    ) -> RankedList:
        """The list of a ranker's best candidates: their rows and contributions."""
        ranker, (top, contributions) = context.snapshot.loaded.ranker, best
        return RankedList(
            context.personal_tier,
            candidates.items[top],
            contributions,
            _names(candidates.sources[top]),
            context.reasons,
            lambda state, shown: ranker.score(
                self.generator.features(self.generator.query(state, context.snapshot.view), shown)
            ),
        )


@dataclass(frozen=True, eq=False)
class VectorModel:
    """One model, ALS, two-tower, NCF or content, and the user's vector; scores are inner products,
    and NCF's those of NeuMF."""

    source: int
    user: FloatArray
    """(k,)"""
    vectors: FloatArray
    """(n, k) item vectors."""
    known: NDArray[np.bool_]
    """(n,) whether the model has learned the item."""
    unknown: float
    """The score of other items."""
    search: Search

    @classmethod
    def of(cls, loaded: LoadedModel, policy: Policy, state: UserState) -> VectorModel | None:
        """The model a policy names; None where it is missing or knows no item of the history."""
        model = loaded.model
        if model is None:
            return None
        factors, towers = model.factors, model.towers
        if policy is Policy.ALS and factors is not None and model.norms is not None:
            user, search = fold_in(model, state), loaded.als_search
            if user is not None and search is not None:
                return cls(_ALS, user, factors, model.norms > 0, 0.0, search)
        if policy is Policy.TWO_TOWER and towers is not None:
            user, search = tower_user(model, state.at_resolution_of(model)), loaded.tower_search
            if user is not None and search is not None:
                known = towers.targets[:, -1] > UNKNOWN_BIAS
                return cls(_TOWER, user, towers.targets, known, UNKNOWN_BIAS, search)
        if policy is Policy.NCF and model.ncf is not None:
            user = ncf_user(model, state.at_resolution_of(model))
            if user is not None and loaded.ncf_search is not None:
                return NcfModel.of_user(model.ncf, user, loaded.ncf_search)
        if policy is Policy.CONTENT and model.content is not None:
            user, search = content_user(model.content, state.items[:RECENT]), loaded.content_search
            if user is not None and search is not None:
                known = np.asarray(model.content.any(axis=1))
                return cls(_CONTENT, user, model.content, known, 0.0, search)
        return None

    def score(self, items: IntArray) -> Scores:
        """(len(items),) also for items newer than the model."""
        scores = np.full(len(items), self.unknown)
        inside = items < len(self.vectors)
        scores[inside] = self.vectors[items[inside]] @ self.user
        return scores


@dataclass(frozen=True, eq=False)
class NcfModel(VectorModel):
    """NCF: found by the product of vectors, scored by product and MLP."""

    ncf: NcfArrays
    whole_user: FloatArray
    """(d + 1 + h,) the vectors of product and MLP."""

    @classmethod
    def of_user(cls, ncf: NcfArrays, user: FloatArray, search: Search) -> NcfModel:
        """For the vectors (d + 1 + h,) of a user."""

        def at_least(query: FloatArray, count: int) -> IntArray:
            return search(query, max(count, NCF_RERANKED))

        part = ncf.query(user)
        return cls(_NCF, part, ncf.targets, ncf.known, UNKNOWN_BIAS, at_least, ncf, user)

    def score(self, items: IntArray) -> Scores:
        """(len(items),) also for items newer than the model."""
        scores = self.ncf.scores(self.whole_user, items).astype(np.float64)
        scores[np.isnan(scores)] = self.unknown
        return scores


@dataclass(frozen=True)
class TransitionsTier:
    """What users took after the user's newest items, without a model: a shop's first minutes.

    score = transition graph + 0.05 · trend score
    """

    graph: TransitionGraph
    fill: ClassVar[Fill] = Fill(source=TRENDING)

    def retrieve(self, context: TierContext) -> Candidates:
        items, scores = self._scored(context.user.state)
        keep = context.eligible.eligible(items)
        scores = scores[is_in(items, keep)]
        top = top_k(scores, context.eligible.pool_size, above=0.0)
        return candidates_from(keep[top], _TRANSITIONS)

    def rank(self, context: TierContext, candidates: Candidates) -> RankedList:
        items = candidates.items
        history = self._score(context.user.state, items)
        trend = TREND_WEIGHT * context.snapshot.trend_score[items]
        order = np.argsort(-(history + trend), kind="stable")
        return RankedList(
            context.personal_tier,
            items[order],
            {"history": history[order], "trend": trend[order]},
            _names(candidates.sources[order]),
            source_reasons,
            lambda state, shown: (
                self._score(state, shown) + TREND_WEIGHT * context.snapshot.trend_score[shown]
            ),
        )

    def _scored(self, state: UserState) -> tuple[IntArray, Scores]:
        items, scores = scored(self.graph.rows(state.items))
        return items, scores.astype(np.float64)

    def _score(self, state: UserState, items: IntArray) -> Scores:
        """(len(items),) 0 for items that are no neighbours of the newest ones."""
        near, scores = self._scored(state)
        found = np.zeros(len(items))
        known = is_in(items, near)
        found[known] = scores[np.searchsorted(near, items[known])]
        return found


_TRANSITIONS = CANDIDATE_SOURCES.index("transitions")
_ALS, _TOWER, _NCF, _CONTENT = map(CANDIDATE_SOURCES.index, ("als", "tower", "ncf", "content"))


@dataclass(frozen=True, eq=False)
class SingleModelTier:
    """The nearest items by one model over the user's live history."""

    policy: Policy
    model: VectorModel
    fill: ClassVar[Fill] = Fill()

    def retrieve(self, context: TierContext) -> Candidates:
        model, eligible = self.model, context.eligible
        n_out = eligible.reach - eligible.pool_size
        if eligible.allowed is None and n_out <= EXACT_SEARCH_ABOVE:
            items = model.search(model.user, eligible.reach)
            items = items[items >= 0]
        else:
            every = np.arange(len(model.vectors), dtype=np.int32)
            items = every if eligible.allowed is None else eligible.allowed
            items = items[items < len(model.vectors)]
        items = items[model.known[items]]
        if eligible.shown is not None:
            items = items[eligible.shown[items]]
        items = items[top_k(model.score(items), eligible.reach)]
        return candidates_from(items, model.source)

    def rank(self, context: TierContext, candidates: Candidates) -> RankedList:
        scores = self.model.score(candidates.items)
        order = np.argsort(-scores, kind="stable")
        return RankedList(
            context.personal_tier,
            candidates.items[order],
            {"model": scores[order]},
            _names(candidates.sources[order]),
            context.reasons,
            lambda state, shown: self._score(context.snapshot.loaded, state, shown),
        )

    def _score(self, loaded: LoadedModel, state: UserState, items: IntArray) -> Scores:
        """The score for a history; 0 if the model knows no item of it."""
        model = VectorModel.of(loaded, self.policy, state)
        return model.score(items) if model is not None else np.zeros(len(items))


@dataclass(frozen=True, eq=False)
class InterestsTier:
    """Items like the named items, or of the named categories.

    score = content (similarity, or 1 per category) + model (chosen by the same users) + 0.05 ·
    trend score
    """

    content: Scores
    """(m,)"""
    model: Scores
    """(m,)"""
    why: IntArray
    """(m,) the row in `reasons` of the first interest that an item meets; 0 for none."""
    reasons: Sequence[str]
    fill: Fill

    @classmethod
    def of(cls, snapshot: ServingSnapshot, interests: Iterable[str]) -> InterestsTier:
        m = len(snapshot.trend_score)
        content, model, why = np.zeros(m), np.zeros(m), np.zeros(m, np.int32)
        reasons, named = ["trending now"], []
        categories: set[str] = set()
        for interest in interests:
            item = snapshot.find(interest)
            if item is not None:
                named.append(item)
                near, alike, together = item_neighbours(snapshot, item)
                content[near] += alike
                model[near] += together
                reasons.append(f"like {snapshot.catalogue.name(interest)}")
            elif interest.casefold() in categories:
                continue
            else:
                near = snapshot.lookup.of_numbers(snapshot.catalogue.category(interest))
                content[near] += 1.0
                reasons.append(f"in {interest}, which interests you")
                categories.add(interest.casefold())
            why[near[why[near] == 0]] = len(reasons) - 1
        content[named] = model[named] = 0.0
        fill = Fill(source=TRENDING, exclude=np.array(named, np.int32))
        return cls(content, model, why, reasons, fill)

    def retrieve(self, context: TierContext) -> Candidates:
        items = np.flatnonzero(self.content + self.model > 0).astype(np.int32)
        items = context.eligible.eligible(items)
        scores = np.sum(list(self._contributions(context.snapshot, items).values()), axis=0)
        top = top_k(scores, context.eligible.pool_size)
        return candidates_from(items[top], INTERESTS)

    def rank(self, context: TierContext, candidates: Candidates) -> RankedList:
        contributions = self._contributions(context.snapshot, candidates.items)
        order = np.argsort(-sum(contributions.values()), kind="stable")
        return RankedList(
            api.Tier.INTERESTS,
            candidates.items[order],
            {name: values[order] for name, values in contributions.items()},
            _names(candidates.sources[order]),
            lambda shown, _: [self.reasons[row] for row in self.why[shown].tolist()],
        )

    def _contributions(self, snapshot: ServingSnapshot, items: IntArray) -> dict[str, Scores]:
        return {
            "content": self.content[items],
            "model": self.model[items],
            "trend": TREND_WEIGHT * snapshot.trend_score[items],
        }


@dataclass(frozen=True)
class TrendingTier:
    """Trending items, highest first; filled up with popular ones."""

    fill: ClassVar[Fill] = _FILL_APART

    def retrieve(self, context: TierContext) -> Candidates:
        return candidates_from(by_trend(context.snapshot, context.eligible.allowed), TRENDING)

    def rank(self, context: TierContext, candidates: Candidates) -> RankedList:
        return RankedList(
            api.Tier.TRENDING,
            candidates.items,
            {"trend": context.snapshot.trend_score[candidates.items]},
            _names(candidates.sources),
            source_reasons,
        )


@dataclass(frozen=True)
class PopularTier:
    """Items by all-time popularity."""

    fill: Fill = _FILL_APART

    def retrieve(self, context: TierContext) -> Candidates:
        return candidates_from(by_popularity(context.snapshot, context.eligible.allowed), POPULAR)

    def rank(self, context: TierContext, candidates: Candidates) -> RankedList:
        return RankedList(
            api.Tier.POPULAR,
            candidates.items,
            {"popularity": np.log2(1.0 + context.snapshot.popularity[candidates.items])},
            _names(candidates.sources),
            source_reasons,
        )


class AnyItemTier(PopularTier):
    """Every item in index order: before anything is popular."""

    def retrieve(self, context: TierContext) -> Candidates:
        eligible, m = context.eligible, len(context.snapshot.trend_score)
        items = eligible.allowed
        if items is None:
            items = np.arange(m, dtype=np.int32)
        if eligible.shown is not None:
            items = items[eligible.shown[items]]
        return candidates_from(items[: eligible.reach], POPULAR)


LAST_RESORT: tuple[RankingTier, ...] = (
    TrendingTier(),
    PopularTier(),
    AnyItemTier(Fill(forced=ForcedItems.APART, from_nothing=True)),
)
"""Tiers for a list that would be empty, with seen items allowed."""


def similar_items(
    snapshot: ServingSnapshot,
    item: int,
    n: int,
    allowed: IntArray | None = None,
    kind: SimilarityKind = SimilarityKind.ALL,
) -> tuple[IntArray, Scores]:
    """The n items most similar to an item, and their scores."""
    items, content, together = item_neighbours(snapshot, item)
    scores = {
        SimilarityKind.ALL: content + together,
        SimilarityKind.CO_PURCHASE: together,
        SimilarityKind.CONTENT: content,
    }[kind]
    eligible = (items != item) & np.isin(items, snapshot.visible(items))
    if allowed is not None:
        eligible &= is_in(items, allowed)
    items, scores = items[eligible], scores[eligible]
    top = best(scores, n)
    return items[top], scores[top]


def item_neighbours(snapshot: ServingSnapshot, item: int) -> tuple[IntArray, Scores, Scores]:
    """An item's neighbours, each once, and their similarity by content and by shared users.

    Shared users: cosines, and the score in the transition graph relative to the best.
    """
    model, row = snapshot.loaded.model, slice(item, item + 1)  # empty for items after the model's
    groups, shared = [], []
    if model is not None:
        groups = [model.neighbour_items[row].ravel(), model.co_purchase_items[row].ravel()]
        shared = [model.neighbour_scores[row].ravel(), model.co_purchase_scores[row].ravel()]
    if snapshot.transitions is not None:
        near, scores = snapshot.transitions.rows(np.array([item], np.int32))
        groups.append(near.ravel())
        shared.append(scores.ravel() / max(float(scores.max(initial=0.0)), 1e-9))
    if not groups:
        return np.empty(0, np.int32), np.empty(0), np.empty(0)
    alike = [np.zeros(len(group)) for group in groups]
    search, vectors = snapshot.content_search, snapshot.content
    vector = vectors.row(item) if vectors is not None else None
    if search is not None and vectors is not None and vector is not None:
        near = search(vector, SIMILAR_BY_CONTENT)
        near = near[near >= 0]
        groups.append(near)
        shared.append(np.zeros(len(near), np.float32))
        alike.append(np.maximum(vectors.rows(near) @ vector, 0.0))
    items, where = np.unique(np.concatenate(groups), return_inverse=True)
    content, together = (
        np.asarray(np.bincount(where, np.concatenate(part), len(items)), np.float64)
        for part in (alike, shared)
    )
    known = items >= 0
    return items[known], content[known], together[known]


def _names(sources: NDArray[np.int8]) -> list[str]:
    return [CANDIDATE_SOURCES[source] for source in sources.tolist()]
