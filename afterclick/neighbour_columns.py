"""Features from neighbour lists: how near each candidate is to the items of a history."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from afterclick.arrays import FloatArray, IntArray


class Order:
    """Finds items among the candidates, each of which is there once."""

    def __init__(self, candidates: IntArray) -> None:
        self._by: NDArray[np.intp] | None = None
        self._sorted = candidates
        if (candidates[1:] < candidates[:-1]).any():
            self._by = candidates.argsort()
            self._sorted = candidates[self._by]
        self.count = len(candidates)

    def find(self, items: IntArray) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
        """Where each item stands among the candidates, and whether it is there at all."""
        at = self._sorted.searchsorted(items)
        at[at == self.count] = 0
        found = self._sorted[at] == items
        return (at if self._by is None else self._by[at]), found


def neighbour_columns(
    items: IntArray,
    scores: FloatArray,
    recent: IntArray,
    order: Order,
    column: dict[str, FloatArray],
    name: str,
) -> None:
    """Similarity to the newest item and to the recent ones, an older one worth less (1, 1/2, 1/3, …)."""
    last, total = column[f"{name}_last"], column[f"{name}_sum"]
    best = column.get(f"{name}_max")
    known = np.flatnonzero(recent >= 0)
    last[:] = 0.0
    total[:] = 0.0
    if best is not None:
        best[:] = 0.0
    if not len(known) or not order.count:
        return
    near, score = items[recent[known]], scores[recent[known]]
    at, found = order.find(near)
    at, score = at[found], score[found]
    step = np.broadcast_to(known[:, None], near.shape)[found]
    if known[0] == 0:
        last[at[step == 0]] = score[step == 0]
    total[:] = np.bincount(at, score / (step + 1), order.count)
    if best is not None:
        np.maximum.at(best, at, score)
