"""NeuMF on a time split. It knows users by their number alone: a live event changes nothing for it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from training.benchmark.ncf import Ncf
from training.interactions import Interactions

Scores = NDArray[np.floating]
DECAY = 0.005
"""What a weight loses in an epoch: most users have two interactions to keep it up."""
EPOCHS = 2
"""So many whatever the machine does meanwhile: a clock would make another model of a slow moment."""


def fit(rows: Interactions, least: int, seed: int) -> Callable[[int], Scores]:
    """Learn from users with two interactions or more, with items that have `least`.

    Returns user_index → (n_items,) scores: −inf for items it does not know, zeros for users it does not know.
    """
    ranked = rows.item_counts() >= least
    known = rows.where(ranked[rows.item])
    told = known.user_counts() >= 2
    matrix = known.matrix()[told][:, ranked].tocsr()
    model = Ncf(decay=DECAY, batch=2048, epochs=EPOCHS, seconds=float("inf"))
    model.fit(matrix, seed)
    place = np.cumsum(told) - 1

    def scores(user: int) -> Scores:
        if not told[user]:
            return np.zeros(len(ranked))
        found = np.full(len(ranked), -np.inf)
        found[ranked] = model.scores(place[user : user + 1])[0]
        return found

    return scores
