"""ALS with the objective of Spark's implicit ALS, in NumPy on one machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.benchmark.clock import Clock
from training.fold import half_step


@dataclass
class Als:
    """Alternating half steps (training/fold.py) from random item factors."""

    rank: int = 64
    """Latent factors."""
    reg: float = 0.1
    """Spark's regParam, times the number of interactions of a user or item."""
    alpha: float = 10.0
    """Confidence of an interaction beyond that of none."""
    iterations: int = 12
    """Passes over users and items, at most."""
    seconds: float = 240.0
    """No pass starts that would end later."""

    def fit(self, train: Any, seed: int) -> None:
        random = np.random.default_rng(seed)
        rows = train.tocoo()
        user, item = rows.row.astype(np.int32), rows.col.astype(np.int32)
        weight = np.ones(len(user), np.float32)
        items = random.normal(size=(train.shape[1], self.rank)).astype(np.float32) / np.sqrt(
            self.rank
        )
        clock = Clock(self.seconds)
        while clock.more(self.iterations):
            users = half_step(user, item, weight, items, train.shape[0], self.alpha, self.reg)
            items = half_step(item, user, weight, users, train.shape[1], self.alpha, self.reg)
        self._users = half_step(user, item, weight, items, train.shape[0], self.alpha, self.reg)
        self._items = items

    def scores(self, users: NDArray[np.intp]) -> NDArray[np.float32]:
        return np.asarray(self._users[users] @ self._items.T, np.float32)
