"""Fit everything of a model that has no labels: ALS, neighbours, popularity, content."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from pyspark.sql import SparkSession

from afterclick.model import Model
from afterclick.settings import TrainingSettings
from training import als, baselines, content
from training.als import AlsConfig
from training.baselines import NeighbourConfig
from training.fold import half_step
from training.interactions import Interactions
from training.tower_config import TowerConfig


@dataclass(frozen=True)
class FitConfig:
    """The knobs of a whole model."""

    als: AlsConfig = field(default_factory=AlsConfig)
    neighbours: NeighbourConfig = field(default_factory=NeighbourConfig)
    core: int = 5
    """ALS is fitted on the k-core with this k."""
    least: int = 5
    """Items with fewer interactions get neither factors nor neighbours."""
    content: str = "tfidf"
    """How titles and categories are embedded."""
    towers: TowerConfig | None = field(default_factory=TowerConfig)
    """How the two towers are learned; None for none."""

    @classmethod
    def of(cls, settings: TrainingSettings) -> FitConfig:
        knobs = AlsConfig(
            rank=settings.rank,
            reg=settings.reg,
            alpha=settings.alpha,
            iterations=settings.iterations,
            seed=settings.seed,
        )
        towers = TowerConfig(
            epochs=settings.tower_epochs, least=settings.least_reviews, seed=settings.seed
        )
        return cls(
            als=knobs,
            core=settings.core,
            least=settings.least_reviews,
            content=settings.content,
            towers=towers if settings.tower_epochs else None,
        )


@dataclass(frozen=True)
class Fitted:
    """A model, and what measuring its index needs."""

    model: Model
    user_factors: NDArray[np.float32]
    """(q, k) a sample of users"""


def fit(
    spark: SparkSession,
    rows: Interactions,
    catalogue: content.Catalogue,
    config: FitConfig,
    version: str,
) -> Fitted:
    """Fit on `rows` (in order of time). The items are those of `rows` with enough interactions or a text."""
    return with_towers(
        without_towers(spark, rows, catalogue, config, version), rows, catalogue, config
    )


def without_towers(
    spark: SparkSession,
    rows: Interactions,
    catalogue: content.Catalogue,
    config: FitConfig,
    version: str,
) -> Fitted:
    """All but the two towers, which take longest: a model that can be served meanwhile."""
    rows, known = _choose(rows, catalogue, config)
    users, items = factorise(spark, known, config)
    model = Model(
        version=version,
        item_ids=rows.item_ids,
        popularity=baselines.popularity(rows),
        first_seen_ms=baselines.first_seen(rows),
        factors=items,
        als_alpha=config.als.alpha,
        als_reg=config.als.reg,
        **baselines.neighbour_arrays(known, config.neighbours),
    )
    texts = content.texts_of(model.item_ids.tolist(), catalogue)
    learned = content.learn(texts, config.content, seed=config.als.seed)
    if learned is not None:
        model = replace(model, content=learned.vectors, words=learned.words)
    return Fitted(model, _sample(users, config.als.seed))


def with_towers(
    fitted: Fitted, rows: Interactions, catalogue: content.Catalogue, config: FitConfig
) -> Fitted:
    """The same model with the two towers, learned from the same rows, where the configuration has them."""
    if config.towers is None:
        return fitted
    _, known = _choose(rows, catalogue, config)
    from training import (
        two_tower,
    )  # torch takes seconds to import: the first model does not wait for it

    towers = two_tower.fit(known, config.towers, fitted.model.content)
    return replace(fitted, model=replace(fitted.model, towers=towers))


def _choose(
    rows: Interactions, catalogue: content.Catalogue, config: FitConfig
) -> tuple[Interactions, Interactions]:
    """The rows with the items of the model, and of these the rows whose items have enough interactions."""
    rows = baselines.unpushed(rows).also(
        catalogue
    )  # what nobody has bought yet can be found by its text
    rows = rows.choose(
        (rows.item_counts() >= config.least) | np.isin(rows.item_ids, list(catalogue))
    )
    return rows, rows.where((rows.item_counts() >= config.least)[rows.item])


def factorise(
    spark: SparkSession, rows: Interactions, config: FitConfig
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """User factors (n_users, k) and item factors (n_items, k) by ALS on the k-core, and half a step on.

    Most users of a shop have one or two interactions: passing over them again and again costs most of the
    time and teaches little. So Spark factorises the core, every user with two interactions is folded in, and
    from all of these users come the factors of all items. A thin core is not used.
    """
    core, alpha, reg = rows.core(config.core), config.als.alpha, config.als.reg
    thin = 10 * len(core) < len(rows)
    fitted = als.fit(spark, rows if thin else core, config.als)
    told = rows.where(rows.user_counts()[rows.user] >= 2)
    n_users, n_items = rows.shape
    users = half_step(told.user, told.item, told.weight, fitted.items, n_users, alpha, reg)
    return users, half_step(told.item, told.user, told.weight, users, n_items, alpha, reg)


def _sample(users: NDArray[np.float32], seed: int, most: int = 500) -> NDArray[np.float32]:
    real = np.flatnonzero(users.any(axis=1))
    chosen = np.random.default_rng(seed).choice(real, min(most, len(real)), replace=False)
    return np.asarray(users[np.sort(chosen)], np.float32)
