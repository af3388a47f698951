"""A penalty on the scores of items similar to what the user disliked lately.

    penalty = weight · spread · share

`share` is that of `afterclick.dislikes`, `spread` the standard deviation of the pool's scores, and
`weight` the setting `serving.dislike_weight`. It needs no training and works in every tier, so it
also serves users without a like, and models that have seen no negative feedback.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from afterclick.api import Policy
from afterclick.arrays import Float64Array, IntArray
from afterclick.dislikes import dislike_share
from afterclick.features import RECENT
from afterclick.user_vectors import UserState
from serving.request import RecommendationRequest
from serving.rerank import vectors_of
from serving.state.snapshot import ServingSnapshot
from serving.tiers import RankedList

NAME: Final = "dislikes"
"""Of the contribution to the score."""
POOL: Final = 150
"""Items ranked below the page, so that others can take the place of those similar to dislikes."""
ScoreFn = Callable[[UserState, IntArray], Float64Array]
_NOT_PERSONAL: Final = (Policy.TRENDING, Policy.POPULAR)


def count_in(request: RecommendationRequest, state: UserState) -> bool:
    """Whether the user's dislikes change a list: not one asked for as trending or popular."""
    return len(state.disliked) > 0 and request.options.policy not in _NOT_PERSONAL


@dataclass(frozen=True, eq=False)
class DislikePenalty:
    """The penalty for the lists of one request."""

    snapshot: ServingSnapshot
    amount: float
    """What a share of 1 takes from the score."""

    @classmethod
    def of(cls, snapshot: ServingSnapshot, ranked: RankedList, weight: float) -> DislikePenalty:
        """In units of the spread of the scores of a ranked pool."""
        scores = np.sum(list(ranked.contributions.values()), axis=0)
        spread = float(np.std(scores)) if len(scores) else 0.0
        return cls(snapshot, weight * (spread or 1.0))

    def added(self, state: UserState, items: IntArray) -> Float64Array:
        """(c,) what the user's dislikes add to the scores of items: at most 0."""
        against, liked = state.disliked, state.items[:RECENT]
        if not len(against) or not len(items):
            return np.zeros(len(items))
        every = vectors_of(self.snapshot, np.concatenate([items, against, liked]))
        past = every[len(items) :]
        disliked, positive = np.split(past, [len(against)])
        dated = (disliked, state.disliked_ms), (positive, state.times_ms[:RECENT])
        share = dislike_share(past @ every[: len(items)].T, *dated, state.now_ms)
        return np.asarray(-self.amount * share, np.float64)

    def after(self, score: ScoreFn | None) -> ScoreFn:
        """The scores of a tier with the penalty; None: the history does not affect them."""

        def total(state: UserState, items: IntArray) -> Float64Array:
            own = score(state, items) if score is not None else np.zeros(len(items))
            return own + self.added(state, items)

        return total
