"""The blend: LambdaMART (LightGBM) over the candidates of all sources, learned on past cuts.

At each past cut a model is built from the rows before it and asked what really came after it, with the
states and trends of those moments; so every feature is as old as it will be when served, and none knows the
future. Features come from afterclick/features.py, as in serving.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from afterclick.arrays import FloatArray
from afterclick.features import FEATURE_NAMES
from afterclick.model import Model
from afterclick.ranking import CandidateGenerator
from afterclick.trends import DAY_MS
from training.evaluation.protocols import Split, moments, sample, with_history
from training.evaluation.states import replay
from training.holdout import renumber
from training.interactions import Interactions

if TYPE_CHECKING:
    import lightgbm

Build = Callable[[Interactions], Model]
"""Fits ALS, neighbours and popularity on the rows given, all before a cut."""


@dataclass(frozen=True)
class RankerConfig:
    """How the blend is learned."""

    cuts: int = 5
    """Past cuts, each `horizon_days` before the next."""
    horizon_days: int = 45
    """How far after a cut its questions come from."""
    questions: int = 12_000
    """Most questions of one cut."""
    negatives: int = 50
    """Candidates, chosen at random, that each target is compared with."""
    rounds: int = 120
    """Trees."""
    learning_rate: float = 0.1
    leaves: int = 31
    least: int = 5
    """Interactions an item needs to be ranked."""
    threads: int = 1
    seed: int = 42


@dataclass(frozen=True)
class Examples:
    """Feature rows grouped by question, the target first in each group."""

    rows: FloatArray
    """(r, F)"""
    groups: NDArray[np.int32]
    """(g,) rows of each question"""
    asked: int
    """Questions, those whose target was no candidate included."""


@dataclass(frozen=True)
class Blend:
    """A learned ranker as LightGBM's text, and how it came about."""

    text: str
    questions: int
    """Questions it learned from."""
    candidate_recall: float
    """Share of the questions whose target was among the candidates."""
    importance: dict[str, float]
    """Feature → share of the gain."""
    seconds: float


class NotEnoughHistory(ValueError):
    """Too few interactions to learn how to blend."""


def train(
    rows: Interactions, build: Build, config: RankerConfig, trusted: NDArray[np.bool_] | None = None
) -> Blend:
    """Learn the blend from `rows` (in order of time). `trusted` marks the rows that may become targets.

    Raises NotEnoughHistory where the past cuts hold fewer than 50 answerable questions.
    """
    start = time.perf_counter()
    trusted = np.ones(len(rows), bool) if trusted is None else trusted
    found = [
        examples(split, build(split.train), config) for split in past_splits(rows, trusted, config)
    ]
    groups = np.concatenate([e.groups for e in found]) if found else np.empty(0, np.int32)
    if len(groups) < 50:
        raise NotEnoughHistory(f"only {len(groups)} questions to learn from, 50 are needed")
    booster = fit(np.concatenate([e.rows for e in found]), groups, config)
    gain = booster.feature_importance("gain")
    return Blend(
        text=booster.model_to_string(),
        questions=len(groups),
        candidate_recall=len(groups) / max(sum(e.asked for e in found), 1),
        importance=dict(zip(FEATURE_NAMES, (gain / max(gain.sum(), 1e-9)).tolist(), strict=True)),
        seconds=time.perf_counter() - start,
    )


def past_splits(
    rows: Interactions, trusted: NDArray[np.bool_], config: RankerConfig
) -> Iterator[Split]:
    """The past cuts, newest first, as long as half of the rows come before them."""
    horizon = config.horizon_days * int(DAY_MS)
    end = int(rows.time_ms[-1]) + 1 if len(rows) else 0
    for _ in range(config.cuts):
        cut = (end - horizon) // int(DAY_MS) * int(DAY_MS)
        if 2 * np.searchsorted(rows.time_ms, cut) < len(rows):
            return
        yield Split(rows, cut, end, trusted, config.least)
        end = cut


def examples(split: Split, model: Model, config: RankerConfig) -> Examples:
    """What really came after a cut, among the candidates of its moment."""
    split = replace(split, rows=renumber(split.rows, model.item_ids)[0])
    random = np.random.default_rng(config.seed)
    asked = sample(with_history(split, moments(split)), config.questions, config.seed)
    generator = CandidateGenerator.exact(model, split.eligible)
    rows, groups = [], []
    for one in replay(split.rows, asked):
        query = generator.query(one.state, one.trends)
        items = generator.retrieve(query).items
        target = asked.target[one.query]
        others = items[items != target]
        if len(others) == len(items) or not len(others):
            continue
        chosen = random.choice(others, min(config.negatives, len(others)), replace=False)
        items = np.concatenate([[target], chosen]).astype(np.int32)
        rows.append(generator.features(query, items))
        groups.append(len(items))
    table = np.concatenate(rows) if rows else np.empty((0, len(FEATURE_NAMES)), np.float32)
    return Examples(table, np.array(groups, np.int32), len(asked))


def fit(rows: FloatArray, groups: NDArray[np.int32], config: RankerConfig) -> lightgbm.Booster:
    """LambdaMART on groups whose first row is the target."""
    import lightgbm  # seconds, which the first model does not wait for

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
