"""Fit a model: ALS, neighbours, popularity, content, sequence model, NCF, and the ranker on past
cuts.

The pipeline and `afterclick evaluate` fit with the same `ModelTrainer`, so that published figures
are those of the served model.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from afterclick.arrays import FloatArray
from afterclick.model import Model
from afterclick.settings import Settings
from training import ranker
from training.config import ModelConfig
from training.event_log import EventLog
from training.interactions import Interactions
from training.models import als, content_vectors, neighbours, popularity
from training.models.als import Factorise
from training.models.content_vectors import ItemTexts
from training.models.transition_graph import transition_graph
from training.ranker import FittedRanker, RankerExamples


@dataclass(frozen=True)
class FittedModel:
    """A model, and the queries that measure its ANN index."""

    model: Model
    user_factors: FloatArray
    """(q, k) ALS factors of a sample of users"""


@dataclass(frozen=True)
class ModelTrainer:
    """Fits models of one configuration."""

    config: ModelConfig
    texts: ItemTexts
    engine: Factorise
    checkpoints: Path | None = None
    """Folder with the state of unfinished trainings of the sequence model; None keeps none"""
    previous: Model | None = None
    """The champion, for warm starts"""

    def fit(self, log: EventLog, version: str) -> FittedModel:
        """Everything but the ranker. Items: those of `log` with enough pairs or a text."""
        return self.with_ncf(self.with_towers(self.without_towers(log, version), log), log)

    def without_towers(self, log: EventLog, version: str) -> FittedModel:
        """All but the sequence model and NCF, which take longest: a model to serve meanwhile."""
        rows, known = self._select(log)
        config = self.config
        factors = als.factorise(known, config.als, self.engine)
        resolution_ms, phase_ms = popularity.time_resolution(rows)
        followers, follower_scores = transition_graph(known, config.transitions)
        model = Model(
            version=version,
            item_ids=rows.item_ids,
            popularity=popularity.popularity(rows),
            first_seen_ms=popularity.first_seen(rows),
            factors=factors.items,
            als_alpha=config.als.alpha,
            als_reg=config.als.reg,
            resolution_ms=resolution_ms,
            phase_ms=phase_ms,
            transition_items=followers,
            transition_scores=follower_scores,
            **neighbours.neighbour_arrays(known, config.neighbours),
        )
        texts = content_vectors.texts_of(model.item_ids.tolist(), self.texts)
        learned = content_vectors.learn(texts, config.content, seed=config.als.seed)
        if learned is not None:
            model = replace(model, content=learned.vectors, words=learned.words)
        return FittedModel(model, _sample(factors.users, config.als.seed))

    def with_towers(self, fitted: FittedModel, log: EventLog) -> FittedModel:
        """The same with the sequence model learned from `log`, if the configuration has it."""
        if self.config.towers is None:
            return fitted
        _, known = self._select(log)
        from training.models import sequence_training  # torch takes seconds to import

        inputs = sequence_training.ItemInputs(
            fitted.model.content, self._previous_vectors(known.item_ids)
        )
        towers = sequence_training.fit(known, self.config.towers, inputs, self.checkpoints)
        return replace(fitted, model=replace(fitted.model, towers=towers))

    def _previous_vectors(self, item_ids: NDArray[np.str_]) -> FloatArray | None:
        """(len(item_ids), d) the champion's item vectors for a warm start, if that is asked for."""
        config, previous = self.config.towers, self.previous
        if config is None or not config.warm_start or previous is None or previous.towers is None:
            return None
        history = previous.towers.history
        if history.shape[1] != config.dim:
            return None
        rows = np.array([previous.index.get(i, -1) for i in item_ids.tolist()], np.intp)
        return np.where(rows[:, None] >= 0, history[rows], np.float32(0.0))

    def with_ncf(self, fitted: FittedModel, log: EventLog) -> FittedModel:
        """The same model with NCF, if the configuration has it, learned from `log`."""
        if self.config.ncf is None:
            return fitted
        _, known = self._select(log)
        from training.models import ncf  # torch takes seconds to import

        return replace(fitted, model=replace(fitted.model, ncf=ncf.fit(known, self.config.ncf)))

    def fit_ranker(self, log: EventLog) -> FittedRanker:
        """Learn the ranker from past cuts of `log`; raises TooFewInteractions."""
        return ranker.learn(self.ranker_examples(log), self.config.ranker)

    def ranker_examples(self, log: EventLog) -> RankerExamples:
        """What the ranker learns from; raises TooFewInteractions."""
        with threadpool_limits(1, "blas"):  # small products, one query at a time
            return ranker.collect(
                log,
                lambda past: self.fit(past, "past").model,
                self.config.ranker,
                self.config.replay,
            )

    def _select(self, log: EventLog) -> tuple[Interactions, Interactions]:
        """The pairs with the model's items, and of these the pairs of items with enough."""
        enough = self.config.min_interactions
        log = popularity.without_pushed_rows(log, self.config.replay)
        rows = log.pairs().also(self.texts)  # items without interactions are found by their texts
        rows = rows.choose(
            (rows.item_counts() >= enough) | np.isin(rows.item_ids, list(self.texts))
        )
        return rows, rows.where((rows.item_counts() >= enough)[rows.item])


@contextmanager
def trainer(settings: Settings, texts: ItemTexts, config: ModelConfig) -> Iterator[ModelTrainer]:
    """A trainer; with Spark as its ALS engine, a session lives as long as it."""
    if config.als.engine == "implicit":
        yield ModelTrainer(config, texts, als.implicit_als)
        return
    from training.workspace import spark_session

    with spark_session(settings) as session:
        yield ModelTrainer(config, texts, lambda rows, how: als.spark_als(session, rows, how))


def _sample(users: FloatArray, seed: int, n: int = 500) -> FloatArray:
    active = np.flatnonzero(users.any(axis=1))
    chosen = np.random.default_rng(seed).choice(active, min(n, len(active)), replace=False)
    return np.asarray(users[np.sort(chosen)], np.float32)
