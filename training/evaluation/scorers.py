"""The models that an evaluation compares: each scores every item for one query."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from afterclick.arrays import BoolArray, FloatArray, IntArray
from afterclick.features import RECENT
from afterclick.model import UNKNOWN_BIAS, Model, TowerArrays
from afterclick.ncf import NcfArrays
from afterclick.ranking import CandidateGenerator, Ranker, score_candidates
from afterclick.retrieval import REDUCED_LIMITS, CandidateLimits
from afterclick.transitions import scored
from afterclick.trends import HALF_LIVES_MS
from afterclick.user_vectors import content_user, fold_in, ncf_user, tower_user
from training.config import TransitionConfig
from training.evaluation.measure import Scorer, Scores
from training.graph_replay import GraphReplay
from training.interactions import runs
from training.models.transition_graph import recency_weights
from training.query_replay import ReplayedQuery

BEST_HALF_LIFE = "week"
"""Half-life of the decayed popularity shown: the best or nearly so on Electronics after
2014-06-01."""
SEED_DEPENDENT = ("als", "ncf", "sequence", "blend", "blend_brief")
"""Scorers whose model depends on a seed."""


@dataclass(frozen=True)
class ScorerInputs:
    """What the scorers use, fitted on the rows before the cut and aligned with the split's
    items."""

    model: Model
    ranker: Ranker
    transitions: tuple[IntArray, FloatArray]
    """(n_items, K) targets and scores of `transition_graph`"""
    graphs: GraphReplay | None = None
    """The live transition graph of the model, from the cut on; by default it is not updated."""


def scorers(
    inputs: ScorerInputs, eligible: BoolArray, *, reduced: bool = False
) -> Mapping[str, Scorer]:
    """Every scorer, by the names of the results table.

    `eligible` (n_items,) marks the candidates of the blend. `reduced` adds the blend under load
    shedding.
    """
    model, ranker = inputs.model, inputs.ranker
    found = {
        "popularity": popularity(model),
        "decayed_popularity": decayed_popularity(BEST_HALF_LIFE),
        "item_item": by_neighbours(model.neighbour_items, model.neighbour_scores),
        "last_item": by_neighbours(model.neighbour_items, model.neighbour_scores, recent=1),
        "co_purchase": by_neighbours(model.co_purchase_items, model.co_purchase_scores),
        "random_walk": None
        if model.random_walk_items is None or model.random_walk_scores is None
        else by_neighbours(model.random_walk_items, model.random_walk_scores),
        "transitions": by_transitions(*inputs.transitions),
        "transitions_live": None if inputs.graphs is None else by_live_transitions(inputs.graphs),
        "als": als(model),
        "ncf": None if model.ncf is None else ncf(model, model.ncf),
        "sequence": None if model.towers is None else sequence(model, model.towers),
        "content": None if model.content is None else content(model, model.content),
        "blend": blend(model, ranker, eligible, graphs=inputs.graphs),
        "blend_brief": blend(model, ranker, eligible, REDUCED_LIMITS, inputs.graphs)
        if reduced
        else None,
    }
    return {name: scorer for name, scorer in found.items() if scorer is not None}


def popularity(model: Model) -> Scorer:
    """Interactions of each item in training."""
    return lambda query: model.popularity


def decayed_popularity(half_life: str) -> Scorer:
    """Decayed interactions of each item as of the query's moment."""
    column = list(HALF_LIVES_MS).index(half_life)
    return lambda query: query.trends.log_share[:, column]


def by_neighbours(items: IntArray, scores: FloatArray, recent: int = RECENT) -> Scorer:
    """Similarity to the user's `recent` newest items, an older one weighted less (1, 1/2, 1/3, …).

    `items`, `scores` (n_items, K): the neighbours of each item; -1 pads.
    """
    n_items = len(items)

    def score(query: ReplayedQuery) -> Scores:
        found = np.zeros(n_items + 1)  # the last entry is for the padding, -1
        for rank, item in enumerate(query.user.items[:recent].tolist()):
            found[items[item]] += scores[item] / (rank + 1)
        return found[:-1]

    return score


def by_transitions(
    items: IntArray, scores: FloatArray, config: TransitionConfig | None = None
) -> Scorer:
    """The transition graph (n_items, K) from the user's newest items; zeros without a history."""
    n_items, config = len(items), config or TransitionConfig()

    def score(query: ReplayedQuery) -> Scores:
        found = np.zeros(n_items + 1)  # the last entry is for the padding, -1
        if len(query.user.items):
            weights = recency_weights(*runs(query.user.times_ms), config)
            for item, weight in zip(query.user.items.tolist(), weights.tolist(), strict=True):
                if weight:
                    found[items[item]] += weight * scores[item]
        return found[:-1]

    return score


def by_live_transitions(graphs: GraphReplay) -> Scorer:
    """The same with the events up to the query, as serving has it."""

    def score(query: ReplayedQuery) -> Scores:
        graph = graphs.at(query.user.now_ms)
        items, scores = scored(graph.rows(query.user.items))
        found = np.zeros(graphs.n_items)
        found[items] = scores
        return found

    return score


def als(model: Model) -> Scorer:
    """ALS with the user folded in from the history; zeros for a user without factors."""

    def score(query: ReplayedQuery) -> Scores:
        user = fold_in(model, query.user)
        if user is None or model.factors is None:
            return np.zeros(len(model))
        return np.asarray(model.factors @ user)

    return score


def sequence(model: Model, towers: TowerArrays) -> Scorer:
    """The sequence model's logits for the history; zeros for a user without one."""
    unknown = towers.targets[:, -1] <= UNKNOWN_BIAS

    def score(query: ReplayedQuery) -> Scores:
        user = tower_user(model, query.user.at_resolution_of(model))
        if user is None:
            return np.zeros(len(model))
        return np.where(unknown, -np.inf, towers.targets @ user)

    return score


def ncf(model: Model, arrays: NcfArrays) -> Scorer:
    """NeuMF's logits for the history; zeros for a user without one."""
    every = np.arange(len(model), dtype=np.int32)

    def score(query: ReplayedQuery) -> Scores:
        user = ncf_user(model, query.user.at_resolution_of(model))
        if user is None:
            return np.zeros(len(model))
        return np.where(arrays.known, arrays.scores(user, every), -np.inf)

    return score


def content(model: Model, vectors: FloatArray) -> Scorer:
    """Content cosine to the user's newest items, an older one weighted less (1, 1/2, 1/3, …)."""

    def score(query: ReplayedQuery) -> Scores:
        user = content_user(vectors, query.user.items[:RECENT])
        return np.zeros(len(model)) if user is None else np.asarray(vectors @ user)

    return score


def blend(
    model: Model,
    ranker: Ranker,
    eligible: BoolArray,
    limits: CandidateLimits | None = None,
    graphs: GraphReplay | None = None,
) -> Scorer:
    """What serving shows: candidates of all sources, ranked by the learned ranker.

    `graphs`: updates the transition graph up to each query.

    With `REDUCED_LIMITS`: what it shows under load shedding. A user without a history gets trending
    items.
    """
    exact = CandidateGenerator.exact(model, eligible, limits)

    def score(query: ReplayedQuery) -> Scores:
        if not len(query.user.items):
            return query.trends.trend_score
        graph = None if graphs is None else graphs.at(query.user.now_ms)
        generator = exact.with_graph(graph)
        ranking = generator.query(query.user, query.trends)
        items, candidate_scores = score_candidates(generator, ranker, ranking)
        scores = np.full(len(model), -np.inf)
        scores[items] = candidate_scores
        return scores

    return score
