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

from afterclick.arrays import FloatArray, IntArray
from afterclick.compiled import compiled_sums
from training.config import AlsConfig
from training.interactions import Interactions, TooFewInteractions
from training.models.stopping import TimeBudget

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

_CHUNK = 32_768
"""Interactions that one batch of small solves holds."""
_CG_STEPS = 3
_TINY = np.float32(1e-30)


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
    """ALS by conjugate gradients from random item factors: for published splits.

    The objective of Spark, but that a row with n interactions is regularised by reg · n^reg_power ·
    mean^(1 - reg_power), where mean is that of all rows: with 1 it is Spark's, with 0 all rows are
    regularised alike. Each half step improves the factors of the last pass by a few steps (Takács,
    Pilászy, Tikk, RecSys 2011).
    """

    rank: int = 128
    """Latent factors."""
    reg: float = 3.0
    """Spark's regParam."""
    alpha: float = 10.0
    """Confidence of an interaction beyond that of no interaction."""
    reg_power: float = 0.5
    """How the regularisation grows with the interactions of a user or item."""
    iterations: int = 8
    """Maximum of passes over users and items."""
    seconds: float = 240.0
    """Time budget: no pass starts that would end later."""

    def fit(self, train: Any, seed: int) -> None:
        random, by_user, by_item = np.random.default_rng(seed), train.tocsr(), train.T.tocsr()
        items = random.normal(size=(train.shape[1], self.rank)).astype(np.float32)
        items *= (np.diff(by_item.indptr) > 0)[:, None] / np.float32(np.sqrt(self.rank))
        users = np.zeros((train.shape[0], self.rank), np.float32)
        self._means = _mean_row(by_user), _mean_row(by_item)
        budget = TimeBudget(self.seconds)
        while budget.allows(self.iterations):
            users = self._improved(by_user, items, users, self._means[0])
            items = self._improved(by_item, users, items, self._means[1])
        self._items = items
        self.observe(by_user)

    def observe(self, train: Any) -> None:
        """Replace the users' factors; those of the items stay."""
        users = np.zeros((train.shape[0], self.rank), np.float32)
        for _ in range(3):  # from zeros it takes more steps than from the last pass
            users = self._improved(train.tocsr(), self._items, users, self._means[0])
        self._users = users

    def _improved(
        self, weights: Any, others: FloatArray, factors: FloatArray, mean: float
    ) -> FloatArray:
        count = np.maximum(np.diff(weights.indptr), 1)
        reg = self.reg * count**self.reg_power * mean ** (1.0 - self.reg_power)
        return improved(
            (self.alpha * weights).tocsr(), others, factors, reg.astype(np.float32)[:, None]
        )

    def scores(self, users: NDArray[np.intp]) -> NDArray[np.float32]:
        return np.asarray(self._users[users] @ self._items.T, np.float32)


def improved(extra: Any, others: FloatArray, factors: FloatArray, reg: FloatArray) -> FloatArray:
    """(n, k) `factors` after some steps towards the solution of the normal equations.

    Row x of factors solves (G + Σ w y yᵀ + λ I) x = Σ (1 + w) y over the entries w of its row in
    `extra` (n, m; CSR), the factors y among `others` (m, k), G = Σ y yᵀ over all of them, and λ in
    `reg` (n, 1). A row without entries must be zeros, and stays so.
    """
    gram = others.T @ others

    def times(direction: FloatArray) -> FloatArray:
        product: FloatArray = direction @ gram + reg * direction
        _add_observed((extra.indptr, extra.indices, extra.data), others, direction, product)
        return product

    confidence = sparse.csr_matrix((1.0 + extra.data, extra.indices, extra.indptr), extra.shape)
    residual = confidence @ others - times(factors)
    direction, square = residual.copy(), _squares(residual, residual)
    for _ in range(_CG_STEPS):
        product = times(direction)
        length = square / np.maximum(_squares(direction, product), _TINY)
        factors, residual = factors + length * direction, residual - length * product
        before, square = square, _squares(residual, residual)
        direction = residual + square / np.maximum(before, _TINY) * direction
    return factors


def _squares(first: FloatArray, second: FloatArray) -> FloatArray:
    """(n, 1) inner products of the rows."""
    return np.asarray(np.einsum("nk,nk->n", first, second)[:, None])


def _mean_row(weights: Any) -> float:
    count = np.diff(weights.indptr)
    return float(count[count > 0].mean()) if count.any() else 1.0


@compiled_sums
def _add_observed(
    entries: tuple[IntArray, IntArray, FloatArray],
    others: FloatArray,
    direction: FloatArray,
    product: FloatArray,
) -> None:
    """Add Σ w y (yᵀ p) over the entries of each row of a CSR (indptr, indices, data)."""
    starts, columns, weights = entries
    rank = others.shape[1]
    for row in range(len(starts) - 1):
        for entry in range(starts[row], starts[row + 1]):
            column = columns[entry]
            inner = np.float32(0.0)
            for factor in range(rank):
                inner += others[column, factor] * direction[row, factor]
            inner *= weights[entry]
            for factor in range(rank):
                product[row, factor] += inner * others[column, factor]


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
