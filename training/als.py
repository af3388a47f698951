"""ALS for implicit feedback by Spark MLlib (Hu, Koren, Volinsky, ICDM 2008), as NumPy factors.

Spark scales the regularisation by the number of interactions of the user or item (ALS-WR), so regParam
keeps its meaning when the data grows. A user's confidence in an item is 1 + alpha × weight.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pyspark.ml.recommendation import ALS, ALSModel
from pyspark.sql import DataFrame, SparkSession

from training.interactions import Interactions


@dataclass(frozen=True)
class AlsConfig:
    """The knobs of one fit."""

    rank: int = 64
    """Latent factors."""
    reg: float = 0.1
    """Spark's regParam; about λ/α₀ of iALS, per interaction."""
    alpha: float = 10.0
    """Confidence of an interaction of weight 1; about 1/α₀ of iALS."""
    iterations: int = 10
    """Passes over users and items."""
    seed: int = 42


@dataclass(frozen=True)
class Factors:
    """What a fit learned. A user or item without interactions has a row of zeros."""

    users: NDArray[np.float32]
    """(n_users, rank)"""
    items: NDArray[np.float32]
    """(n_items, rank)"""

    def scores(self, users: NDArray[np.int32]) -> NDArray[np.float32]:
        """(len(users), n_items) preference of each user for each item."""
        return np.asarray(self.users[users] @ self.items.T, np.float32)


def fit(spark: SparkSession, rows: Interactions, config: AlsConfig) -> Factors:
    """Factorise the interactions. Raises ValueError where there are none."""
    if not len(rows):
        raise ValueError("ALS needs at least one interaction")
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
    # without checkpoints the lineage of many passes overflows the stack of Spark's scheduler
    with tempfile.TemporaryDirectory(prefix="afterclick-als-") as folder:
        spark.sparkContext.setCheckpointDir(folder)
        model: ALSModel = als.fit(_frame(spark, rows))
        return Factors(_collect(model.userFactors, users), _collect(model.itemFactors, items))


def _frame(spark: SparkSession, rows: Interactions) -> DataFrame:
    columns = {"user": rows.user, "item": rows.item, "weight": rows.weight}
    return spark.createDataFrame(pd.DataFrame(columns))


def _collect(factors: DataFrame, n: int) -> NDArray[np.float32]:
    """(n, rank) from Spark's (id, features)."""
    table = factors.toArrow()
    values = table["features"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    matrix = values.reshape(len(table), -1)
    out = np.zeros((n, matrix.shape[1]), np.float32)
    out[table["id"].to_numpy()] = matrix
    return out
