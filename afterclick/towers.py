"""The user's vector of the two towers from a live history. NumPy only: training/two_tower.py learns it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from afterclick.arrays import FloatArray, IntArray
from afterclick.trends import DAY_MS

LONGEST = 10
"""Items of a history that the user tower reads, the newest ones."""
AGES_DAYS = np.array([0.5, 3.0, 10.0, 30.0, 90.0, 365.0])
"""QuarantineLimits of the age buckets; the last bucket is everything older."""
UNKNOWN = -100.0
"""The bias of an item that the towers know nothing of: no user is near it."""


@dataclass(frozen=True, eq=False)
class TowerArrays:
    """What both towers have learned: the logit of an item is the inner product of the two vectors."""

    history: FloatArray
    """(n, d) what an item of the history adds to the user's vector; zeros where it is unknown"""
    targets: FloatArray
    """(n, d + 1) item vectors, the temperature in them, and the item's bias in the last column"""
    ages: FloatArray
    """(len(AGES_DAYS) + 1,) weight of an item of the history by its age"""

    def user(
        self, items: IntArray, weights: FloatArray, times_ms: NDArray[np.float64], now_ms: float
    ) -> FloatArray | None:
        """(d + 1,) a unit vector and a one (for the bias) from a history, newest first; None where no item
        of it is known."""
        items, weights, times_ms = items[:LONGEST], weights[:LONGEST], times_ms[:LONGEST]
        known = items < len(self.history)
        days = np.maximum(now_ms - times_ms[known], 0.0) / DAY_MS
        worth = weights[known] * self.ages[np.searchsorted(AGES_DAYS, days, side="right")]
        total = worth.astype(np.float32) @ self.history[items[known]]
        length = float(np.linalg.norm(total))
        return np.append(total / length, np.float32(1.0)).astype(np.float32) if length > 0 else None

    def logits(self, users: FloatArray, items: NDArray[np.intp]) -> FloatArray:
        """Logits of these items: (len(items),) for one user (d + 1,), (len(items), u) for columns (d + 1, u).

        NaN for the items that the towers know nothing of.
        """
        near = self.targets[items]
        found = near @ users
        found[near[:, -1] <= UNKNOWN] = np.nan
        return np.asarray(found, np.float32)
