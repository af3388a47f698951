"""The ranker: LambdaMART (LightGBM) over the candidates of all sources, learned on past cuts.

At each past cut a model is fitted on the rows before it and queried for what came after it, with
the user states and trends of those moments; so every feature is as old as it will be when served,
and none contains the future. Candidates and features come from afterclick/ranking.py, as in
serving.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from afterclick.arrays import BoolArray, Float64Array, FloatArray, IntArray
from afterclick.errors import BadArtifact
from afterclick.features import FEATURE_NAMES
from afterclick.model import Model
from afterclick.ranking import CandidateGenerator
from afterclick.trends import DAY_MS
from training.config import RankerConfig
from training.interactions import Interactions, TooFewInteractions
from training.protocols import EvaluationSplit, moments, sample, with_history
from training.query_replay import align, replay

if TYPE_CHECKING:
    import lightgbm

FitPast = Callable[[Interactions], Model]
"""Fits a model on the rows before a cut."""
MIN_QUERIES = 50


class NotEnoughHistory(TooFewInteractions):
    """The past cuts hold too few queries whose target is a candidate."""


@dataclass(frozen=True)
class BoosterRanker:
    """A LightGBM ranker for training and evaluation."""

    booster: lightgbm.Booster
    columns: list[int]
    """Features that the ranker uses: fewer, if it is older than a feature."""

    @classmethod
    def of(cls, text: str) -> BoosterRanker:
        """From LightGBM's text. Raises BadArtifact for a feature that this program does not
        have."""
        import lightgbm

        booster = lightgbm.Booster(model_str=text)
        names = booster.feature_name()
        unknown = sorted(set(names) - set(FEATURE_NAMES))
        if unknown:
            raise BadArtifact(f"ranker: unknown features {', '.join(unknown)}; train again")
        return cls(booster, [FEATURE_NAMES.index(name) for name in names])

    def score(self, features: FloatArray) -> Float64Array:
        """(c,) scores of feature rows (c, F)."""
        rows = features[:, self.columns]
        return np.asarray(self.booster.predict(rows, num_threads=1), np.float64)


@dataclass(frozen=True)
class RankerExamples:
    """Feature rows grouped by query, the target first in each group."""

    rows: FloatArray
    """(r, F)"""
    groups: IntArray
    """(g,) rows of each query"""
    queries: int
    """Queries, including those whose target was no candidate."""


@dataclass(frozen=True)
class FittedRanker:
    """A ranker as LightGBM's text, and facts about its training."""

    text: str
    queries: int
    """Queries whose target was a candidate."""
    candidate_recall: float
    """Share of the queries whose target was a candidate."""
    importance: dict[str, float]
    """Feature → share of the total gain."""
    seconds: float


def train(
    rows: Interactions,
    fit_past: FitPast,
    config: RankerConfig,
    trusted: NDArray[np.bool_] | None = None,
) -> FittedRanker:
    """Learn the ranker from `rows` (in order of time). `trusted` marks the rows that may become
    targets.

    Raises NotEnoughHistory if the past cuts hold fewer than 50 queries whose target is a candidate.
    """
    start = time.perf_counter()
    trusted = np.ones(len(rows), bool) if trusted is None else trusted
    found = [
        examples(split, fit_past(split.train), config)
        for split in past_splits(rows, trusted, config)
    ]
    groups = np.concatenate([e.groups for e in found]) if found else np.empty(0, np.int32)
    if len(groups) < MIN_QUERIES:
        raise NotEnoughHistory(f"{len(groups)} queries to learn from, {MIN_QUERIES} are needed")
    booster = boost(np.concatenate([e.rows for e in found]), groups, config)
    gain = booster.feature_importance("gain")
    return FittedRanker(
        text=booster.model_to_string(),
        queries=len(groups),
        candidate_recall=len(groups) / max(sum(e.queries for e in found), 1),
        importance=dict(zip(FEATURE_NAMES, (gain / max(gain.sum(), 1e-9)).tolist(), strict=True)),
        seconds=time.perf_counter() - start,
    )


def past_splits(
    rows: Interactions, trusted: BoolArray, config: RankerConfig
) -> Iterator[EvaluationSplit]:
    """The past cuts, newest first, as long as half of the rows come before them."""
    horizon = config.horizon_days * int(DAY_MS)
    end = int(rows.time_ms[-1]) + 1 if len(rows) else 0
    for _ in range(config.cuts):
        cut = (end - horizon) // int(DAY_MS) * int(DAY_MS)
        if 2 * np.searchsorted(rows.time_ms, cut) < len(rows):
            return
        yield EvaluationSplit(rows, cut, end, trusted, config.min_interactions)
        end = cut


def examples(split: EvaluationSplit, model: Model, config: RankerConfig) -> RankerExamples:
    """The interactions after a cut as targets among the candidates of their moment."""
    random = np.random.default_rng(config.seed)
    queries = sample(with_history(split, moments(split)), config.queries, config.seed)
    generator = CandidateGenerator.exact(align(model, split.rows.item_ids), split.eligible)
    rows, groups = [], []
    for replayed in replay(split.rows, queries):
        query = generator.query(replayed.user, replayed.trends)
        items = generator.retrieve(query).items
        target = queries.target[replayed.row]
        others = items[items != target]
        if len(others) == len(items) or not len(others):
            continue
        negatives = random.choice(others, min(config.negatives, len(others)), replace=False)
        items = np.concatenate([[target], negatives]).astype(np.int32)
        rows.append(generator.features(query, items))
        groups.append(len(items))
    table = np.concatenate(rows) if rows else np.empty((0, len(FEATURE_NAMES)), np.float32)
    return RankerExamples(table, np.array(groups, np.int32), len(queries))


def boost(rows: FloatArray, groups: IntArray, config: RankerConfig) -> lightgbm.Booster:
    """LambdaMART on groups whose first row is the target."""
    import lightgbm  # takes seconds: the first model is published before

    label = np.zeros(len(rows), np.int8)
    label[np.cumsum(groups) - groups] = 1
    table = lightgbm.Dataset(rows, label, group=groups, feature_name=list(FEATURE_NAMES))
    parameters = {
        "objective": "lambdarank",
        "lambdarank_truncation_level": 20,
        "label_gain": [0, 1],
        "learning_rate": config.learning_rate,
        "num_leaves": config.leaves,
        "min_data_in_leaf": 100,
        "feature_fraction": 0.7,
        "bagging_fraction": 0.8,
        "bagging_freq": 1,
        "seed": config.seed,
        "deterministic": True,
        "num_threads": config.threads,
        "verbose": -1,
    }
    return lightgbm.train(parameters, table, config.rounds)
