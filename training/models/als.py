"""ALS for implicit feedback (Hu, Koren, Volinsky, ICDM 2008): Spark, `implicit`, and half steps in
NumPy.

A user's confidence in an item is 1 + alpha × weight. Spark scales the regularisation by the number
of interactions of the user or item (ALS-WR), so regParam keeps its meaning when the data grows.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse
from threadpoolctl import threadpool_limits

from training.config import AlsConfig
from training.interactions import Interactions, TooFewInteractions
from training.models.stopping import TimeBudget

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

_CHUNK = 32_768
"""Interactions that one batch of small solves holds."""


@dataclass(frozen=True)
class Factors:
    """Factors of one fit. A user or item without interactions has a row of zeros."""

    users: NDArray[np.float32]
    """(n_users, rank)"""
    items: NDArray[np.float32]
    """(n_items, rank)"""

    def scores(self, users: NDArray[np.integer]) -> NDArray[np.float32]:
        """(len(users), n_items) preference of each user for each item."""
        return np.asarray(self.users[users] @ self.items.T, np.float32)


Factorise = Callable[[Interactions, AlsConfig], Factors]
"""ALS by one engine."""
OnPass = Callable[[int, Factors], None]
"""Called after each pass with its number (from 1) and the factors; may raise to end the fit."""


def spark_als(spark: SparkSession, rows: Interactions, config: AlsConfig) -> Factors:
    """Factorise by Spark MLlib. Raises TooFewInteractions without interactions."""
    _require_rows(rows)
    from pyspark.ml.recommendation import ALS, ALSModel

    als = ALS(
        rank=config.rank,
        regParam=config.reg,
        alpha=config.alpha,
        maxIter=config.iterations,
        seed=config.seed,
        implicitPrefs=True,
        userCol="user",
        itemCol="item",
        ratingCol="weight",
        numUserBlocks=4,
        numItemBlocks=4,
        intermediateStorageLevel="MEMORY_AND_DISK",
        checkpointInterval=5,
    )
    users, items = rows.shape
    columns = {"user": rows.user, "item": rows.item, "weight": rows.weight}
    # without checkpoints the lineage of many passes overflows the stack of Spark's scheduler
    with tempfile.TemporaryDirectory(prefix="afterclick-als-") as folder:
        spark.sparkContext.setCheckpointDir(folder)
        model: ALSModel = als.fit(spark.createDataFrame(pd.DataFrame(columns)))
        return Factors(_collect(model.userFactors, users), _collect(model.itemFactors, items))


def implicit_als(rows: Interactions, config: AlsConfig, on_pass: OnPass | None = None) -> Factors:
    """Factorise by `implicit`: Spark's objective on one machine, in seconds, not minutes.

    `implicit` has one λ for all users and items, where Spark scales regParam by their interactions.
    λ is regParam times the mean number, so the two agree on average. Raises
    TooFewInteractions without interactions.
    """
    _require_rows(rows)
    from implicit.cpu.als import AlternatingLeastSquares

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

        def callback(iteration: int, seconds: float, loss: float | None) -> None:
            if on_pass is not None:
                on_pass(iteration + 1, factors())

        als.fit(matrix[active], show_progress=False, callback=callback)
        return factors()


def factorise(rows: Interactions, config: AlsConfig, engine: Factorise) -> Factors:
    """Factors of all users and items: the engine on the k-core, then half steps over all rows.

    Most users of a shop have one or two interactions, and iterating over them costs most of the
    time and teaches little. So the engine factorises the core, every user with two interactions is
    folded in, and the factors of all items follow from these users. A core with less than a tenth
    of the rows is not used.
    """
    core = rows.core(config.core)
    items = engine(rows if 10 * len(core) < len(rows) else core, config).items
    active = rows.where(rows.user_counts()[rows.user] >= 2)
    weights = sparse.csr_matrix((active.weight, (active.user, active.item)), shape=rows.shape)
    users = half_step(weights, items, config.alpha, config.reg)
    return Factors(users, half_step(weights.T.tocsr(), users, config.alpha, config.reg))


def half_step(
    weights: Any, factors: NDArray[np.float32], alpha: float, reg: float
) -> NDArray[np.float32]:
    """(n, k) float32 factors of the rows of `weights` (n, m; CSR), given those of the columns (m,
    k).

    The normal equations of afterclick.user_vectors.fold_in, (G + α Σ w y yᵀ + λ n I) x = Σ (1 + α
    w) y; rows with n interactions share the inverse of G + λ n I, and Woodbury's identity leaves an
    n×n solve for each. Columns without factors (a row of zeros) do not count. A row without
    interactions gets zeros.
    """
    known = np.asarray(factors.any(axis=1))
    weights, wide = weights[:, known].tocsr(), factors[known].astype(np.float64)
    gram = wide.T @ wide
    out = np.zeros((weights.shape[0], factors.shape[1]), np.float32)
    start, count = weights.indptr, np.diff(weights.indptr)
    with threadpool_limits(1):  # many small solves: threads would wait for one another
        for n in np.unique(count[count > 0]).tolist():
            inverse = np.linalg.inv(gram + reg * n * np.eye(len(gram)))
            same_count = np.flatnonzero(count == n)
            size = max(1, _CHUNK // n)
            for batch in np.array_split(same_count, -(-len(same_count) // size)):
                entry = start[batch][:, None] + np.arange(n)
                extra = alpha * weights.data[entry].astype(np.float64)
                out[batch] = _solve(inverse, wide[weights.indices[entry]], extra)
    return out


def _solve(
    inverse: NDArray[np.float64], others: NDArray[np.float64], extra: NDArray[np.float64]
) -> NDArray[np.float64]:
    """(b, k) solutions for `others` (b, n, k) with confidences 1 + `extra` (b, n); extra > 0."""
    _, n, k = others.shape
    right = np.einsum("bn,bnk->bk", 1.0 + extra, others)
    if n >= k:
        left = np.linalg.inv(inverse) + np.einsum(
            "bn,bni,bnj->bij", extra, others, others, optimize=True
        )
        return np.asarray(np.linalg.solve(left, right[:, :, None])[:, :, 0])
    spread = others @ inverse
    small = np.einsum("bik,bjk->bij", spread, others, optimize=True)
    small[:, np.arange(n), np.arange(n)] += 1.0 / extra
    base = right @ inverse
    inner = np.linalg.solve(small, np.einsum("bnk,bk->bn", others, base)[:, :, None])[:, :, 0]
    return np.asarray(base - np.einsum("bn,bnk->bk", inner, spread))


@dataclass
class NumpyAls:
    """Spark's objective by alternating half steps from random item factors: for published
    splits."""

    rank: int = 64
    """Latent factors."""
    reg: float = 0.1
    """Spark's regParam, times the number of interactions of a user or item."""
    alpha: float = 10.0
    """Confidence of an interaction beyond that of no interaction."""
    iterations: int = 12
    """Maximum of passes over users and items."""
    seconds: float = 240.0
    """Time budget: no pass starts that would end later."""

    def fit(self, train: Any, seed: int) -> None:
        random, by_user, by_item = np.random.default_rng(seed), train.tocsr(), train.T.tocsr()
        items = random.normal(size=(train.shape[1], self.rank)).astype(np.float32)
        items /= np.sqrt(self.rank)
        budget = TimeBudget(self.seconds)
        while budget.allows(self.iterations):
            users = half_step(by_user, items, self.alpha, self.reg)
            items = half_step(by_item, users, self.alpha, self.reg)
        self._items = items
        self.observe(by_user)

    def observe(self, train: Any) -> None:
        """Replace the users' factors; those of the items stay."""
        self._users = half_step(train.tocsr(), self._items, self.alpha, self.reg)

    def scores(self, users: NDArray[np.intp]) -> NDArray[np.float32]:
        return np.asarray(self._users[users] @ self._items.T, np.float32)


def _require_rows(rows: Interactions) -> None:
    if not len(rows):
        raise TooFewInteractions("ALS needs at least one interaction; ingest more events")


def _collect(factors: DataFrame, n: int) -> NDArray[np.float32]:
    """(n, rank) from Spark's table (id, features)."""
    table = factors.toArrow()
    values = table["features"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    matrix = values.reshape(len(table), -1)
    out = np.zeros((n, matrix.shape[1]), np.float32)
    out[table["id"].to_numpy()] = matrix
    return out
