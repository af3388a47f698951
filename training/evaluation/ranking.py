"""Top-n lists from scores, over all ranked items, with ties broken at random."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

LENGTH = 100
"""Places of a list that are kept."""


def top_n(
    scores: NDArray[np.floating],
    items: NDArray[np.int32],
    random: np.random.Generator,
    n: int = LENGTH,
) -> NDArray[np.int32]:
    """(q, n) int32 of `items` (c,) by `scores` (q, c), best first; −1 pads, and −inf is never shown.

    The columns are shuffled first: among equal scores every item has the same chance, so a score that is zero
    for most items wins nothing.
    """
    shuffle = random.permutation(scores.shape[1])
    scores, items = scores[:, shuffle], items[shuffle]
    n_found = min(n, scores.shape[1])
    part = np.argpartition(-scores, n_found - 1, axis=1)[:, :n_found]
    value = np.take_along_axis(scores, part, axis=1)
    # argpartition leaves equal scores in no particular order; sorting by position first keeps them shuffled
    order = np.lexsort((part, -value), axis=1)
    best = np.take_along_axis(part, order, axis=1)
    value = np.take_along_axis(value, order, axis=1)
    lists = np.full((len(scores), n), -1, np.int32)
    lists[:, :n_found] = np.where(np.isfinite(value), items[best], -1)
    return lists
