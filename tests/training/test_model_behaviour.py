"""Every model, on a checkerboard whose answer is obvious."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import sparse

from tests.training import shop
from training.config import AlsConfig, NeighbourConfig, TowerConfig
from training.evaluation import benchmark_models
from training.evaluation.published_split import RankingTask, Scores
from training.interactions import Interactions
from training.models import sequence_training
from training.models.als import Factorise, factorise, implicit_als, spark_als
from training.models.neighbours import cosine_neighbours

SMALL: dict[str, dict[str, Any]] = {
    "two_tower": {"epochs": 40, "dim": 16, "own": 0.0},
    "ncf": {"epochs": 20, "dim": 16, "batch": 64, "sample": 40},
    "sequence": {"epochs": 40, "dim": 16, "dropout": 0.1, "rate": 0.01},
}
ALS = AlsConfig(rank=8, reg=0.05, alpha=10.0, iterations=8)
TOWERS = TowerConfig(
    dim=16, dropout=0.1, epochs=12, rate=0.01, tokens=64, uniform=16, validation=0, seed=1
)
Fit = Callable[[Interactions], Scores]


def fit_published(name: str, rows: Interactions) -> Scores:
    """A model of published splits."""
    model = benchmark_models.make(name, {**benchmark_models.defaults(name), **SMALL.get(name, {})})
    model.fit(benchmark_models.data_for(model, rows), seed=1)
    return model.scores


def fit_als(engine: Factorise, rows: Interactions) -> Scores:
    """ALS as the pipeline fits it."""
    return factorise(rows, ALS, engine).scores


def fit_neighbours(rows: Interactions) -> Scores:
    """Cosine neighbours, added up over a user's items."""
    items, scores = cosine_neighbours(rows, NeighbourConfig(count=20))
    weights = np.zeros((len(items), len(items)))
    np.add.at(weights, (np.arange(len(items))[:, None], items), scores)  # -1 pads with zeros
    return lambda users: np.asarray(rows.matrix()[users] @ weights)


def fit_served_sequence(rows: Interactions) -> Scores:
    """The served sequence model, each user with the whole history."""
    arrays = sequence_training.fit(rows, TOWERS)
    assert arrays is not None

    def logits(user: int) -> NDArray[np.floating]:
        history = np.flatnonzero(rows.user == user)[::-1]
        times = rows.time_ms[history].astype(np.float64)
        vector = arrays.user(rows.item[history], rows.weight[history], times, times[0])
        assert vector is not None
        return arrays.logits(vector, np.arange(rows.shape[1], dtype=np.int32))

    return lambda users: np.stack([logits(int(user)) for user in users])


FITS: dict[str, Fit] = {
    **{name: partial(fit_published, name) for name in benchmark_models.MODELS},
    "implicit": partial(fit_als, implicit_als),
    "neighbours": fit_neighbours,
    "served_sequence": fit_served_sequence,
}
NAMES = [*FITS, pytest.param("spark", marks=pytest.mark.spark)]
PERSONAL = [name for name in NAMES if name != "popularity"]


class FittedModels:
    """Fits each model at most twice."""

    def __init__(self, request: pytest.FixtureRequest) -> None:
        self._request, self._fitted = request, dict[tuple[str, int], Scores]()
        self.rows, self.held_out = shop.checkerboard()

    def scores(self, name: str, attempt: int = 0) -> Scores:
        if (name, attempt) not in self._fitted:
            fit = FITS.get(name) or self._spark()
            self._fitted[name, attempt] = fit(self.rows)
        return self._fitted[name, attempt]

    def recall(self, name: str) -> float:
        """Recall@10 of the items held out."""
        ones, pairs = np.ones(len(self.held_out), np.float32), zip(*self.held_out, strict=True)
        target = sparse.csr_matrix((ones, tuple(pairs)), self.rows.shape)
        return RankingTask(self.rows.matrix(), target).measure(self.scores(name))["recall@10"]

    def _spark(self) -> Fit:
        return partial(fit_als, partial(spark_als, self._request.getfixturevalue("spark")))


@pytest.fixture(scope="module")
def models(request: pytest.FixtureRequest) -> FittedModels:
    return FittedModels(request)


@pytest.mark.parametrize("name", PERSONAL)
def test_a_checkerboard_is_completed(models: FittedModels, name: str) -> None:
    assert models.recall(name) > 0.95


def test_popularity_cannot_complete_a_checkerboard(models: FittedModels) -> None:
    assert models.recall("popularity") < 0.8


@pytest.mark.parametrize("name", NAMES)
def test_scores_are_finite_and_do_not_depend_on_the_batch(models: FittedModels, name: str) -> None:
    scores, users = models.scores(name), np.arange(models.rows.shape[0])
    together = scores(users)
    assert together.shape == models.rows.shape
    assert np.isfinite(together).all()
    apart = np.concatenate([scores(users[:7]), scores(users[7:])])
    np.testing.assert_allclose(apart, together, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", PERSONAL)
def test_the_same_seed_gives_the_same_model(models: FittedModels, name: str) -> None:
    users = np.arange(5)
    first, second = models.scores(name)(users), models.scores(name, 1)(users)
    np.testing.assert_allclose(first, second, atol=1e-4)
