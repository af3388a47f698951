"""Lists by one learned model alone, ALS or the two towers, over the user's live history.

The score is the inner product of the model's vectors of user and item, and all of it is the part `model`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from afterclick.api import Policy, Tier
from afterclick.arrays import Float64Array, FloatArray, IntArray
from afterclick.model import UNKNOWN_BIAS
from afterclick.retrieval import Search
from afterclick.state import HistoryEntry
from afterclick.user_vectors import UserState, fold_in, tower_user
from serving.ranking.choice import Choice
from serving.ranking.lists import Ranked
from serving.ranking.reasons import reasons
from serving.state.item_catalogue import Catalogue
from serving.state.loaded_models import LoadedModel
from serving.state.snapshot import ServingSnapshot

FEW = 1000
"""Up to so many items that may not be shown, the index is searched; beyond, every item is scored."""


@dataclass(frozen=True, eq=False)
class OneModel:
    """A learned model, and the user as it sees them."""

    name: str
    """As candidate sources are called."""
    user: FloatArray
    """(k,)"""
    vectors: FloatArray
    """(n, k) the items'"""
    known: NDArray[np.bool_]
    """(n,) whether the model has learned the item."""
    unknown: float
    """What the others score."""
    search: Search

    def score(self, items: IntArray) -> Float64Array:
        """(len(items),) also of items that came after the model."""
        scores = np.full(len(items), self.unknown)
        inside = items < len(self.vectors)
        scores[inside] = self.vectors[items[inside]] @ self.user
        return scores

    def nearest(self, choice: Choice) -> IntArray:
        """The best items the model knows that may be shown, best first."""
        banned = len(choice.seen) + len(choice.excluded)
        if choice.inside is None and banned <= FEW:
            items = self.search(self.user, choice.n + banned)
            items = items[items >= 0]
        else:
            items = (
                np.arange(len(self.vectors), dtype=np.int32)
                if choice.inside is None
                else choice.inside
            )
            items = items[items < len(self.vectors)]
        items = choice.fitting(items[self.known[items]])
        return items[np.argsort(-self.score(items), kind="stable")[: choice.n]]


def one_model(loaded: LoadedModel, policy: Policy, state: UserState) -> OneModel | None:
    """The model that a policy names; None where there is none, or where it knows nothing of the history."""
    model = loaded.model
    if model is None:
        return None
    if (
        policy is Policy.ALS
        and model.factors is not None
        and model.norms is not None
        and loaded.als_search
    ):
        user = fold_in(model, state)
        if user is not None:
            return OneModel("als", user, model.factors, model.norms > 0, 0.0, loaded.als_search)
    if policy is Policy.TWO_TOWER and model.towers is not None and loaded.tower_search:
        user, targets = tower_user(model, state), model.towers.targets
        if user is not None:
            known = targets[:, -1] > UNKNOWN_BIAS
            return OneModel("tower", user, targets, known, UNKNOWN_BIAS, loaded.tower_search)
    return None


def by_one_model(
    snapshot: ServingSnapshot,
    policy: Policy,
    state: UserState,
    choice: Choice,
    catalogue: Catalogue,
    history: Sequence[HistoryEntry],
    source: Tier,
) -> Ranked | None:
    """The model's list, filled up with what is popular; None where the model has nothing for this user."""
    loaded = snapshot.loaded
    found = one_model(loaded, policy, state)
    if loaded.model is None or found is None:
        return None
    items = found.nearest(choice)
    if not len(items):
        return None
    wanted = choice.also(items)
    more = choice.fitting(choice.popular(snapshot), items, wanted)[: max(0, choice.n - len(items))]
    names = [found.name] * len(items) + ["popular"] * (len(more) + len(wanted))
    items = np.concatenate([items, more, wanted])
    scores = found.score(items)
    order = np.argsort(-scores, kind="stable")
    items, names = items[order], [names[row] for row in order.tolist()]
    return Ranked(
        source=source,
        items=items,
        parts={"model": scores[order]},
        sources=names,
        reasons=reasons(loaded.model, snapshot, state, items, names, history, catalogue),
        by=lambda state, shown: _score(loaded, policy, state, shown),
    )


def _score(loaded: LoadedModel, policy: Policy, state: UserState, items: IntArray) -> Float64Array:
    """As the model scores for a history; 0 where it knows nothing of it."""
    found = one_model(loaded, policy, state)
    return found.score(items) if found is not None else np.zeros(len(items))
