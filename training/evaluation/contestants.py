"""The models that an evaluation compares: each scores the whole catalogue for one question.

A contestant gives a score per item (n_items,); −inf is never shown. Seen and unranked items are taken out,
and ties broken, by the evaluation, the same for all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import lightgbm
import numpy as np
from numpy.typing import NDArray

from afterclick.features import RECENT
from afterclick.model import UNKNOWN_BIAS, Model, TowerArrays
from afterclick.ranking import CandidateGenerator
from afterclick.retrieval import REDUCED_LIMITS, CandidateLimits
from afterclick.trends import HALF_LIVES_MS
from afterclick.user_vectors import fold_in, tower_user
from training.evaluation.states import Asked

Scores = NDArray[np.floating]
Contestant = Callable[[Asked], Scores]
BEST_HALF_LIFE = "week"
"""What decayed popularity is shown with: the best or nearly so of the six on Electronics after 2014-06-01."""


@dataclass(frozen=True)
class Fitted:
    """What the contestants are made of, fitted on the rows before the cut."""

    model: Model
    ranker: str
    """The blend, as LightGBM's text."""
    eligible: NDArray[np.bool_]
    """(n_items,) items that are ranked."""
    ncf: Callable[[int], Scores] | None = None
    """user_index → (n_items,) scores; where it is fitted."""


def contestants(fitted: Fitted, *, brief: bool = False) -> Mapping[str, Contestant]:
    """Every contestant, by the names of the results table; `brief`: the blend made in a hurry, too."""
    model, ncf = fitted.model, fitted.ncf
    found = {
        "popularity": popularity(model),
        "decayed_popularity": decayed_popularity(BEST_HALF_LIFE),
        "item_item": item_item(model),
        "als": als(model),
        "ncf": None if ncf is None else lambda one: ncf(one.user),
        "two_tower": None if model.towers is None else two_tower(model, model.towers),
        "content": None if model.content is None else content(model, model.content),
        "blend": blend(model, fitted.ranker, fitted.eligible),
        "blend_brief": blend(model, fitted.ranker, fitted.eligible, REDUCED_LIMITS)
        if brief
        else None,
    }
    return {name: contestant for name, contestant in found.items() if contestant is not None}


def popularity(model: Model) -> Contestant:
    """How often an item was reviewed in training."""
    return lambda one: model.popularity


def decayed_popularity(half_life: str) -> Contestant:
    """How often an item was reviewed lately, as of the question's moment."""
    column = list(HALF_LIVES_MS).index(half_life)
    return lambda one: one.trends.log_share[:, column]


def item_item(model: Model) -> Contestant:
    """Cosine to the user's newest items, an older one worth less."""

    def score(one: Asked) -> Scores:
        scores = np.zeros(len(model) + 1)
        for rank, item in enumerate(one.state.items[:RECENT].tolist()):
            scores[model.neighbour_items[item]] += model.neighbour_scores[item] / (rank + 1)
        return scores[:-1]

    return score


def als(model: Model) -> Contestant:
    """ALS with the user folded in from the history, live event included; nothing for a user without one."""

    def score(one: Asked) -> Scores:
        user = fold_in(model, one.state)
        if user is None or model.factors is None:
            return np.zeros(len(model))
        return np.asarray(model.factors @ user)

    return score


def two_tower(model: Model, towers: TowerArrays) -> Contestant:
    """The two towers' logits for the history, live event included; nothing for a user without one."""
    unknown = towers.targets[:, -1] <= UNKNOWN_BIAS

    def score(one: Asked) -> Scores:
        user = tower_user(model, one.state)
        if user is None:
            return np.zeros(len(model))
        return np.where(unknown, -np.inf, towers.targets @ user)

    return score


def content(model: Model, vectors: NDArray[np.float32]) -> Contestant:
    """Cosine of titles and categories to those of the user's newest items, an older one worth less."""

    def score(one: Asked) -> Scores:
        recent = one.state.items[:RECENT]
        if not len(recent):
            return np.zeros(len(model))
        return np.asarray(
            vectors @ (vectors[recent] / np.arange(1, len(recent) + 1)[:, None]).sum(axis=0)
        )

    return score


def blend(
    model: Model, ranker: str, eligible: NDArray[np.bool_], limits: CandidateLimits | None = None
) -> Contestant:
    """What serving shows: candidates of all sources, ranked by LambdaMART.

    With the limits `REDUCED_LIMITS`: what it shows while requests queue up. A user without a history gets what is hot.
    """
    booster = lightgbm.Booster(model_str=ranker)
    generator = CandidateGenerator.exact(model, eligible, limits)

    def score(one: Asked) -> Scores:
        if not len(one.state.items):
            return one.trends.trend_score
        query = generator.query(one.state, one.trends)
        items = generator.retrieve(query).items
        scores = np.full(len(model), -np.inf)
        if len(items):
            scores[items] = booster.predict(generator.features(query, items), num_threads=1)
        return scores

    return score
