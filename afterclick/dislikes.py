"""How much a user's recent dislikes say against an item, weighed against the recent likes.

    share(c) = n / (1 + n + p)
    n = Σ_j w_j · s(c, j) · Π_i (1 − s(i, j))    over disliked items j, and items i liked after j
    p = Σ_i w_i · s(c, i)                        over liked items i

with the similarity s = max(cosine, 0)² and the weight w = 2^(−age / HALF_LIFE_MS). The share is 0
without similar dislikes and below 1; it grows with each dislike. A later like of a similar item
takes back the dislikes before it. The square makes weak similarities count little, also of many
items.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from afterclick.arrays import Float64Array, FloatArray
from afterclick.trends import DAY_MS

HALF_LIFE_MS: Final = 3 * DAY_MS
"""Age at which a dislike, or a like, weighs half."""


Vectors = FloatArray | Float64Array
Dated = tuple[Vectors, Float64Array]
"""Vectors (j, d) of items, and their times in ms (j,)."""


def dislike_share(similar: Vectors, disliked: Dated, liked: Dated, now_ms: float) -> Vectors:
    """(c,) the share of each candidate.

    `similar`: cosines (j + i, c) of the disliked and the liked items to the candidates; it is
    overwritten. Vectors have length 1 or 0.
    """
    against, against_ms = disliked
    for_it, for_ms = liked
    weights = _weights(now_ms, np.concatenate([against_ms, for_ms]))
    if len(for_it):
        taken_back = np.where(for_ms[:, None] > against_ms, _squared(for_it @ against.T), 0.0)
        weights[: len(against)] *= (1.0 - taken_back).prod(axis=0)
    squared, weights = _squared(similar), weights.astype(similar.dtype)
    n = weights[: len(against)] @ squared[: len(against)]
    return np.asarray(n / (1.0 + weights @ squared))


def _squared(cosines: Vectors) -> Vectors:
    """The similarities; in place."""
    np.maximum(cosines, 0.0, out=cosines)
    cosines *= cosines
    return cosines


def _weights(now_ms: float, times_ms: Float64Array) -> Float64Array:
    return np.asarray(np.exp2(-np.maximum(now_ms - times_ms, 0.0) / HALF_LIFE_MS), np.float64)
