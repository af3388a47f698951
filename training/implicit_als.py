"""ALS by `implicit` on one machine: the objective of Spark's, seconds instead of minutes.

`implicit` knows one λ for all users and items, where Spark scales regParam by their number of interactions;
λ is set to regParam times the mean number, so the two agree on average and not user by user.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from implicit.cpu.als import AlternatingLeastSquares
from scipy import sparse
from threadpoolctl import threadpool_limits

from training.als import AlsConfig, Factors
from training.interactions import Interactions

Watch = Callable[[int, Factors], None]
"""Called after each pass, with its number from 1 and what is learned so far; may raise to end the fit."""


def fit(rows: Interactions, config: AlsConfig, watch: Watch | None = None) -> Factors:
    """Factorise the interactions. Raises ValueError where there are none."""
    if not len(rows):
        raise ValueError("ALS needs at least one interaction")
    confidence = 1.0 + config.alpha * rows.weight
    matrix = sparse.csr_matrix(
        (confidence, (rows.user, rows.item)), shape=rows.shape, dtype=np.float32
    )
    active = np.unique(rows.user)
    mean = 2 * len(rows) / (len(active) + len(np.unique(rows.item)))
    with threadpool_limits(1, "blas"):  # implicit runs its own threads; BLAS must not add more
        als = AlternatingLeastSquares(
            factors=config.rank,
            regularization=config.reg * mean,
            alpha=1.0,
            iterations=config.iterations,
            random_state=config.seed,
            use_native=True,
        )

        def factors() -> Factors:
            users = np.zeros((rows.shape[0], config.rank), np.float32)
            users[active] = als.user_factors
            items = np.where(rows.item_counts()[:, None] > 0, als.item_factors, 0.0)
            return Factors(users, items.astype(np.float32))

        def look(iteration: int, seconds: float, loss: float | None) -> None:
            if watch is not None:
                watch(iteration + 1, factors())

        als.fit(matrix[active], show_progress=False, callback=look)
        return factors()
