"""ALS in Spark, and factors of users and items outside of it."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pytest
from scipy import sparse

from afterclick.errors import BadInput
from afterclick.model import Model
from afterclick.settings import Settings
from afterclick.user_vectors import UserState, fold_in
from tests.training import shop
from training.config import AlsConfig, ModelConfig
from training.interactions import TooFewInteractions
from training.models.als import factorise, half_step, improved, spark_als

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

CONFIG = AlsConfig(rank=8, reg=0.05, alpha=10.0, iterations=8)


def model_of(factors: np.ndarray, config: AlsConfig) -> Model:
    n = len(factors)
    none = np.full((n, 1), -1, np.int32), np.zeros((n, 1), np.float32)
    ids = np.array([f"i{i}" for i in range(n)])
    ones = np.ones(n, np.float32)
    return Model(
        "v",
        ids,
        ones,
        np.zeros(n),
        *none,
        *none,
        factors,
        als_alpha=config.alpha,
        als_reg=config.reg,
    )


def state_of(items: list[int]) -> UserState:
    index = np.array(items, np.int32)
    return UserState(index, np.ones(len(items), np.float32), np.zeros(len(items)), index, 0.0)


@pytest.mark.spark
def test_folding_in_a_known_user_gives_the_factors_of_spark(spark: SparkSession) -> None:
    rows, _ = shop.checkerboard()
    # many passes: Spark's user factors belong to the item factors of the pass before
    config = AlsConfig(rank=8, reg=0.05, alpha=10.0, iterations=30)
    factors = spark_als(spark, rows, config)
    model = model_of(factors.items, config)
    for user in (0, 1, 17):
        folded = fold_in(model, state_of(rows.item[rows.user == user].tolist()))
        assert folded is not None
        np.testing.assert_allclose(folded, factors.users[user], atol=5e-3)


def test_a_half_step_is_the_fold_in_of_every_user() -> None:
    random = np.random.default_rng(1)
    factors = random.normal(size=(60, 6)).astype(np.float32)
    factors[3] = 0  # an item that ALS does not know
    pairs = [(u, int(i)) for u in range(12) for i in random.choice(60, 1 + 2 * u, replace=False)]
    pairs += [(12, 3)]
    rows = shop.interactions(pairs, users=14, items=60)
    weights = sparse.csr_matrix((rows.weight, (rows.user, rows.item)), shape=rows.shape)
    users = half_step(weights, factors, CONFIG.alpha, CONFIG.reg)
    model = model_of(factors, CONFIG)
    for user in range(12):
        folded = fold_in(model, state_of(rows.item[rows.user == user].tolist()))
        assert folded is not None
        np.testing.assert_allclose(users[user], folded, rtol=1e-4, atol=1e-5)
    assert not users[12].any()
    assert not users[13].any()


@pytest.mark.spark
def test_items_outside_the_core_get_the_factors_of_their_kind(spark: SparkSession) -> None:
    rows, _ = shop.checkerboard()
    extra = [(u, 40 + u % 2) for u in range(4)]  # two new items, too few interactions for the core
    pairs = list(zip(rows.user.tolist(), rows.item.tolist(), strict=True)) + extra
    rows = shop.interactions(pairs, users=40, items=42)
    factors = factorise(rows, CONFIG, partial(spark_als, spark))
    even, odd = factors.users[0] @ factors.items[40], factors.users[0] @ factors.items[41]
    assert even > odd + 0.1


def test_without_interactions_there_are_no_factors() -> None:
    with pytest.raises(TooFewInteractions, match="at least one"):
        spark_als(None, shop.interactions([], 1, 1), CONFIG)  # type: ignore[arg-type]


def test_the_preset_chooses_the_engine_unless_one_is_named() -> None:
    settings = Settings()
    assert ModelConfig.of(settings, "full").als.engine == "spark"
    assert ModelConfig.of(settings, "fast").als.engine == "implicit"
    assert ModelConfig.of(settings, "fast", "spark").als.engine == "spark"
    assert ModelConfig.of(settings, "fast").preset_values()["als_engine"] == "implicit"
    with pytest.raises(BadInput, match="expected implicit or spark"):
        ModelConfig.of(settings, "fast", "torch")


def test_conjugate_gradients_reach_the_exact_half_step() -> None:
    random = np.random.default_rng(5)
    weights = sparse.random(30, 20, 0.2, "csr", np.float32, random)
    weights.data[:] = 1.0
    others = random.normal(size=(20, 6)).astype(np.float32)
    exact = half_step(weights, others, 7.0, 0.3)
    reg = (0.3 * np.diff(weights.indptr)).astype(np.float32)[:, None]
    found = np.zeros_like(exact)
    for _ in range(10):
        found = improved((7.0 * weights).tocsr(), others, found, reg)
    np.testing.assert_allclose(found, exact, atol=1e-3)
